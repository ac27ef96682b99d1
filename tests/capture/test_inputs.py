"""What goes into a forward and what comes out: numbers, containers, tensors that share memory, writes in place."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from agreement import agree, batch, refused
from torch import nn

import pccompile
from pccompile.errors import CaptureError, DataDependentError

Pair = namedtuple("Pair", "left right")


@dataclass
class Some:
    value: torch.Tensor
    scale: float


def model_of(forward):
    """A factory of modules with one linear layer and that forward."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

    Model.forward = forward
    return Model


def options(self, x, scale=1.0, negated=False, mode="multiply", nothing=None):
    y = self.fc(x) * scale if mode == "multiply" else self.fc(x) + scale
    return -y if negated else y, nothing, mode


def many(self, *values, **others):
    return self.fc(sum(values)) * others.get("scale", 1) + others.get("bias", 0)


def test_numbers_flags_strings_and_none_are_part_of_what_was_captured():
    x = batch()
    agree(
        model_of(options),
        x,
        (x, 2.0),
        (x, 2),
        (x, 2.0, True),
        ((x,), {"mode": "add", "scale": 3.0}),
        ((x,), {"nothing": None}),
        ((x,), {"nothing": batch()}),
    )


def test_any_number_of_arguments():
    x, y = batch(), batch()
    agree(model_of(many), (x, y), (x, y, x), ((x, y), {"scale": batch()}), ((x,), {"bias": batch(), "scale": 2.0}))


def test_named_tuples_and_dictionaries_go_in_and_out():
    agree(model_of(lambda self, pair: Pair(self.fc(pair.left), pair.right)), (Pair(batch(), batch()),))
    agree(model_of(lambda self, some: {"out": self.fc(some["in"]), **some}), {"in": batch()})


def test_a_data_class_that_torch_does_not_know_is_refused_as_an_argument_and_returned_as_it_is():
    into = model_of(lambda self, some: self.fc(some.value) * some.scale)()
    with pytest.raises(CaptureError, match=r"Some[^#]*cure:[^#]*register_dataclass"):
        pccompile.compile(into)(Some(batch(), 2.0))
    out, x = model_of(lambda self, x: Some(self.fc(x), 2.0))(), batch()
    some = pccompile.compile(out)(x)
    assert isinstance(some, Some)
    assert torch.equal(some.value, out(x).value)
    some.value.sum().backward()
    (expected,) = torch.autograd.grad(out(x).value.sum(), [out.fc.weight])
    assert torch.equal(out.fc.weight.grad, expected)


def test_inputs_that_want_a_gradient_get_it_also_where_one_tensor_is_passed_twice():
    x = batch(requires_grad=True)
    agree(model_of(lambda self, left, right: self.fc(left) * right), (x, x), (x, batch()), (batch(), x))


def test_a_forward_that_asks_whether_two_inputs_are_one_is_captured_for_each_case():
    x = batch()
    agree(model_of(lambda self, a, b: self.fc(a) * (2 if a is b else 3)), (x, x), (x, batch()), (x, x))


@pytest.mark.parametrize("capture", ["export", "symbolic"])
def test_an_input_that_the_forward_writes_into_is_written_into(capture):
    agree(model_of(lambda self, x: self.fc(x.mul_(2).add_(1))), batch(), batch(), capture=capture)


def writes_left(self, left, right):
    left.mul_(2)  # the write
    return self.fc(left) + right


def test_a_write_into_one_of_two_inputs_that_share_memory_is_refused():
    x = batch()
    model = model_of(writes_left)()
    cause = "writes into an input that shares memory"
    kept = x.clone()
    for inputs in ((x, x), (x, x.view(4, 3)), (x[:3], x[1:])):
        with pytest.raises(CaptureError, match=cause):
            pccompile.compile(model, dynamic=False)(*inputs)
    assert torch.equal(x, kept)
    pc = pccompile.compile(model, dynamic=False)
    pc(batch(), batch())
    with pytest.raises(CaptureError, match=cause):
        pc(x, x)


def test_a_capture_that_fails_leaves_no_marks_on_the_inputs():
    x = batch()
    with pytest.raises(DataDependentError):
        pccompile.compile(model_of(lambda self, x: self.fc(x) if x.sum() > 0 else x)(), example_inputs=x)
    assert not vars(x)


@pytest.mark.parametrize("dynamic", [True, False])
def test_marks_of_the_callers_stay_on_the_inputs_and_decide_nothing(dynamic):
    x = batch()
    torch._dynamo.mark_dynamic(x, 0)
    marks = dict(vars(x))
    pc = pccompile.compile(model_of(lambda self, x: self.fc(x))(), example_inputs=x, dynamic=dynamic)
    assert vars(x) == marks
    first = pc.program
    pc(batch()[:2])
    assert (pc.program is first) == dynamic


def test_outputs_may_be_inputs_parameters_and_views_of_them():
    def forward(self, x):
        return self.fc(x), x, x.view(-1), self.fc.weight, self.fc.weight[0]

    agree(model_of(forward), batch(), batch(requires_grad=True))


DATA_DEPENDENT = {
    "a branch": lambda self, x: self.fc(x) if x.sum() > 0 else x,
    "a number": lambda self, x: self.fc(x) * int(x.sum()),
    "a loop": lambda self, x: [x := self.fc(x) for _ in range(int(x.abs().max()))][-1],
}


@pytest.mark.parametrize("forward", DATA_DEPENDENT.values(), ids=DATA_DEPENDENT)
def test_a_forward_that_depends_on_values_is_refused(forward):
    refused(
        model_of(forward)(), batch() + 5, match="depends on a tensor's values", line="lambda", error=DataDependentError
    )


def test_values_that_shapes_depend_on_are_fine_where_only_tensors_follow():
    agree(model_of(lambda self, x: self.fc(x) + x[x > 0].sum() + x.sum().item()), batch(), batch())


def test_numpy_inside_the_forward_is_refused():
    forward = lambda self, x: self.fc(x) + torch.from_numpy(x.detach().numpy())  # noqa: E731
    refused(model_of(forward)(), batch(), match="numpy", line="from_numpy")


def test_an_object_that_is_no_tensor_is_refused_by_name():
    model = model_of(lambda self, x: self.fc(x) * torch.rand(3, generator=self.generator))()
    model.generator = torch.Generator()
    with pytest.raises(CaptureError, match=r"no tensor: a Generator[^#]*default generator"):
        pccompile.compile(model)(batch())


@pytest.mark.parametrize("where", ["outside", "inside", "switched off inside"])
def test_autocast(where):
    def forward(self, x):
        if where == "outside":
            return self.fc(self.fc(x))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=where == "inside"):
            return self.fc(self.fc(x).float())

    model, x = model_of(forward)(), batch()
    pc = pccompile.compile(model, dynamic=False)
    for enabled, dtype in ((where != "inside", torch.bfloat16), (False, torch.bfloat16), (True, torch.float16)):
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            results = pc(x), model(x)
        parameters = list(model.parameters())
        pairs = [(y, *torch.autograd.grad(y.float().square().sum(), parameters)) for y in results]
        for ours, theirs in zip(*pairs, strict=True):
            # eager casts a weight once for both of its uses; each has its own cast here, and the sum is exact
            torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
