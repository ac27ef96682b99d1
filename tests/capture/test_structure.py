"""What a forward returns may be any object: its tensors are found, and put back in place."""

import copy
import threading
from collections import namedtuple
from dataclasses import dataclass
from enum import Enum

import pytest
import torch
from torch import nn

import pccompile
from pccompile.capture.structure import Structure
from pccompile.errors import CaptureError


class Mode(Enum):
    FAST = 1


@dataclass
class Outputs:
    logits: torch.Tensor
    cache: object
    mode: Mode = Mode.FAST


class Cache:
    def __init__(self, layers, maker):
        self.layers, self.maker, self.size = layers, maker, layers[0].shape[0]


class Returning(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.first, self.second, self.wrap = nn.Linear(4, 6), nn.Linear(6, 3), wrap

    def forward(self, x):
        hidden = self.first(x).tanh()
        return self.wrap(hidden, self.second(hidden))


def nested(hidden, logits):
    @dataclass
    class Local:  # pickle alone cannot find it again
        outputs: Outputs

    return Local(Outputs(logits, Cache([hidden, logits], maker=nested)))


@pytest.mark.parametrize("batch", [5, 3])
def test_tensors_inside_objects_come_back_with_their_gradients(batch):
    model, x = Returning(nested), torch.randn(batch, 4)
    twin = copy.deepcopy(model)
    pc = pccompile.compile(model, example_inputs=torch.randn(5, 4))
    ours, theirs = pc(x).outputs, twin(x).outputs
    assert isinstance(ours, Outputs) and ours.mode is Mode.FAST and ours.cache.maker is nested
    assert ours.cache.size == batch
    assert ours.cache.layers[1] is ours.logits
    assert torch.equal(ours.logits, theirs.logits) and torch.equal(ours.cache.layers[0], theirs.cache.layers[0])
    for outputs in (ours, theirs):
        (outputs.logits.sum() + outputs.cache.layers[0].square().sum()).backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_every_call_returns_an_object_of_its_own():
    pc = pccompile.compile(Returning(nested))
    first, second = pc(torch.zeros(2, 4)), pc(torch.ones(2, 4))
    first.outputs.cache.layers.clear()
    assert len(second.outputs.cache.layers) == 2
    assert not torch.equal(first.outputs.logits, second.outputs.logits)


Pair = namedtuple("Pair", "hidden logits")


@pytest.mark.parametrize(
    "wrap",
    [lambda h, z: Pair(h, z), lambda h, z: [h, (z, None)], lambda h, z: {"z": z, "n": 3}, lambda h, z: z.max(1)],
    ids=["named tuple", "list", "dict", "torch.return_types"],
)
def test_containers_keep_their_type(wrap):
    model, x = Returning(wrap), torch.randn(2, 4)
    ours, theirs = pccompile.compile(model)(x), model(x)
    assert type(ours) is type(theirs)
    assert Structure.take_apart(ours)[0].pickled == Structure.take_apart(theirs)[0].pickled


def test_an_object_that_cannot_be_copied_is_refused():
    model = Returning(lambda hidden, logits: (logits, threading.Lock()))
    with pytest.raises(CaptureError, match=r"returns a tuple.*lock") as raised:
        pccompile.compile(model)(torch.randn(2, 4))
    assert "dataclasses" in raised.value.cure


def test_what_is_taken_apart_goes_together_again_around_other_tensors():
    first, second = torch.zeros(2), torch.ones(3)
    structure, parts = Structure.take_apart({"a": [first, second], "b": first, "kind": nn.Linear})
    assert parts == [first, second]
    assert structure.around(["x", "y"]) == {"a": ["x", "y"], "b": "x", "kind": nn.Linear}
