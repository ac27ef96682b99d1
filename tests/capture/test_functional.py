"""What becomes of an exported program is what retracing makes of it, at a fraction of the time."""

import copy
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export

import pccompile
from pccompile.capture import functional as functional_module
from pccompile.capture.functional import functional, retraced


class Attention(nn.Module):
    """Chunks, views, transpositions, reshapes that copy."""

    def __init__(self) -> None:
        super().__init__()
        self.projection, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, 2, width // 2).transpose(1, 2) for part in self.projection(x).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width)).flatten(0, 1)


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 2, 3, padding=1), nn.GroupNorm(1, 2), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.max_pool2d(F.relu(self.norm(self.conv(x))), 2).flatten(1))


class Assorted(nn.Module):
    """Composite operators that are kept, and ones that are not."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.tensor_split(x, 2, dim=-1)
        mixed = torch.einsum("bi,bj->bij", first, second).contiguous()
        return F.hardshrink(mixed.mT.to(torch.float64)).expand_as(mixed).squeeze(0).sum(-1) + x[..., None, :2].sum(-1)


class Normalised(nn.Module):
    """Writes to its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.fc(x))


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * 2).relu_().add_(x)


class Unrecorded(nn.Module):
    """A part without gradients is a graph of its own in an exported program."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x.abs().amax()
        return x / scale


QUICK = {
    "attention": (Attention, (3, 5, 8)),
    "convolutional": (Convolutional, (3, 1, 8, 8)),
    "assorted": (Assorted, (3, 4)),
    "dropout": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), (3, 4)),
    "dropout that does nothing": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5).eval()), (3, 4)),
    "batch norm that learns nothing": (lambda: Normalised().eval(), (3, 4)),
}
RETRACED = {
    "batch norm": (Normalised, (3, 4)),
    "in place": (InPlace, (3, 4)),
    "no_grad": (Unrecorded, (3, 4)),
}
ALL = {**QUICK, **RETRACED}


def exported_of(name: str, dynamic: bool) -> ExportedProgram:
    make, shape = ALL[name]
    torch.manual_seed(0)
    shapes: Any = ({0: Dim("batch")},) if dynamic else None
    return export(make(), (torch.randn(shape),), dynamic_shapes=shapes, strict=False)


def operators_of(program: ExportedProgram) -> Counter[str]:
    """Everything that computes a tensor."""
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    return Counter(str(node.target) for node in calls if isinstance(node.meta.get("val"), Tensor | tuple | list))


def run(program: ExportedProgram, x: Tensor) -> Any:
    leaves = [*program.state_dict.values(), *program.constants.values()]
    torch.manual_seed(1)
    return fx.Interpreter(program.graph_module).run(*leaves, x)


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "open"])
@pytest.mark.parametrize("name", ALL)
def test_the_result_is_that_of_retracing(name: str, dynamic: bool) -> None:
    program = exported_of(name, dynamic)
    expected = retraced(copy.deepcopy(program))
    found = functional(program)
    assert operators_of(found) == operators_of(expected)
    x = torch.randn(ALL[name][1])
    for one, other in zip(run(found, x), run(expected, x), strict=True):
        assert torch.equal(one, other)
    assert [spec.kind for spec in found.graph_signature.output_specs] == [
        spec.kind for spec in expected.graph_signature.output_specs
    ]


@pytest.mark.parametrize("name", ALL)
def test_only_what_writes_or_holds_graphs_is_retraced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(functional_module, "retraced", lambda program: calls.append(1) or program)
    functional(exported_of(name, dynamic=True))
    assert bool(calls) == (name in RETRACED)


def test_operators_that_are_opened_keep_their_module_and_line() -> None:
    program = exported_of("attention", dynamic=True)
    places = {node.meta["stack_trace"] for node in program.graph.nodes if node.op == "call_function"}
    for node in functional(program).graph.nodes:
        if node.op == "call_function" and isinstance(node.meta["val"], Tensor):
            assert node.meta["stack_trace"] in places and "nn_module_stack" in node.meta


@pytest.mark.parametrize("name", ["attention", "convolutional"])
def test_sizes_are_read_of_inputs_once(name: str) -> None:
    graph = functional(exported_of(name, dynamic=True)).graph
    read = [node.args for node in graph.find_nodes(op="call_function", target=torch.ops.aten.sym_size.int)]
    assert len(read) == len(set(read)) > 0
    assert all(tensor.op == "placeholder" for tensor, _ in read)


def test_casts_of_autocast_are_in_the_program() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)), torch.randn(5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        pc = pccompile.compile(model, loss_fn=F.cross_entropy, example_inputs=(x,), backend="aten")
        assert pc(x).dtype == model(x).dtype == torch.bfloat16
