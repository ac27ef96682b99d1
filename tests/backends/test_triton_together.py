"""Where the kernels keep less for the error sweep than the operators do, both graphs change together or not at all."""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pccompile
from pccompile.backends import triton
from pccompile.backends.patterns.pieces import Pieces
from pccompile.backends.report import rows_of

X, Y = torch.linspace(-1, 1, 2 * 2 * 6 * 6).view(2, 2, 6, 6), torch.tensor([0, 2])


def pooled(activation=None, pool=None):
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 4, 3), activation or nn.ReLU(), pool or nn.MaxPool2d(2), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(16, 3))


def pieces_of(model, rule=None, x=X, y=Y):
    """The flat graphs of a model's program, as operators."""
    pc = pccompile.compile(model, rule, loss_fn=F.cross_entropy, backend="aten", dynamic=False, verify=False)
    pc.loss(x, y).backward()
    (plan,) = pc._latest.backend.plans.values()
    return [stage.piece for stage in plan.stages]


def together(pieces, choose=lambda *matches: (True, "asked for")):
    copies = Pieces(pieces)
    triton.rewrite_together(copies, choose)
    return {piece.name: piece for piece in copies.finish()}


def calls(piece, name):
    return [node.args for node in piece.module.graph.nodes if getattr(node.target, "__name__", "") == name]


def operators(piece):
    nodes = [node for node in piece.module.graph.nodes if node.op == "call_function" and "kernel" not in node.meta]
    return [str(node.target).removeprefix("aten.") for node in nodes]


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.Identity()], ids=["relu", "gelu", "identity"])
@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2)], ids=["max", "average"])
def test_a_pooled_convolution_is_one_call_each_way(activation, pool):
    found = together(pieces_of(pooled(activation, pool)))
    (predicted,), (swept,) = (
        calls(found["prediction_sweep"], "predict_images"),
        calls(found["error_sweep"], "sweep_images"),
    )
    kind = "max" if isinstance(pool, nn.MaxPool2d) else "average"
    assert predicted[6:8] == swept[8:10] == (kind, (2, 2, 2, 2))
    left = [*operators(found["prediction_sweep"]), *operators(found["error_sweep"])]
    assert not any(name.startswith(("convolution", "max_pool", "avg_pool", "relu", "gelu")) for name in left)


def test_the_error_sweep_reads_the_argmax_and_what_is_kept_at_it():
    found = together(pieces_of(pooled(nn.GELU())))
    ((_, residual, argmax, *_),) = calls(found["error_sweep"], "sweep_images")
    assert argmax.meta["val"].dtype is torch.int8
    assert residual.meta["val"].shape == argmax.meta["val"].shape == (2, 4, 2, 2)
    assert set(found["error_sweep"].inputs) >= {residual.target, argmax.target}


def test_the_error_of_the_loss_reads_the_logits_and_one_number_a_row():
    before = pieces_of(pooled())
    found = together(before)
    ((logits, _, _, kept, total, *_),) = calls(found["error_sweep"], "error_of_loss")
    assert logits.target in found["prediction_sweep"].outputs and logits.target not in before[1].inputs
    assert (kept.meta["val"].shape, kept.meta["val"].dtype) == ((2,), torch.float32)
    assert total.meta["val"].shape == ()


def test_a_strict_loop_predicts_and_goes_back_through_pools_in_one_graph():
    deep = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Tanh(), *pooled())
    found = together(pieces_of(deep, pccompile.Strict(steps=3, step_size=0.1)))
    loop = found["error_sweep_2"]
    assert len(calls(loop, "predict_images")) == len(calls(loop, "sweep_images")) == 1
    assert not any("pool" in name for name in operators(loop))


def test_what_is_declined_stays_as_it_was_and_the_report_says_why():
    before = pieces_of(pooled())
    found = together(before, lambda *matches: (False, "too slow"))
    for piece in before:
        same = found[piece.name]
        assert (same.inputs, same.outputs) == (piece.inputs, piece.outputs)
        assert operators(same) == operators(piece)
    rows = rows_of(found["prediction_sweep"].module.graph, "aten", "no kernel takes them")
    assert {row.vertices: row.reason for row in rows}["2",] == "too slow"
    assert {row.vertices: row.reason for row in rows}["loss",] == "too slow"


def test_the_copies_are_changed_and_not_the_pieces():
    before = pieces_of(pooled())
    names = [operators(piece) for piece in before]
    together(before)
    assert [operators(piece) for piece in before] == names


@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(3, 1), nn.MaxPool2d(2, padding=1), nn.AvgPool2d(3)], ids=["overlap", "padding", "edge"]
)
def test_poolings_that_the_kernel_does_not_take_stay(pool):
    layers = nn.Conv2d(2, 4, 3), nn.ReLU(), pool, nn.Flatten()
    model = nn.Sequential(*layers, nn.LazyLinear(3))
    model(X)
    found = together(pieces_of(model))
    assert not calls(found["prediction_sweep"], "predict_images")
    assert any("pool" in name for name in operators(found["error_sweep"]))


def test_a_program_with_errors_for_some_outputs_only_keeps_what_any_sweep_may_read(monkeypatch):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.a, self.b = pooled(), nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            h = self.body(x)
            return self.a(h), self.b(h)

    asked = []
    monkeypatch.setattr(triton, "rewrite_together", lambda *given: asked.append(given))
    pc = pccompile.compile(Two(), backend="triton", dynamic=False, verify=False)
    pc(X)[0].sum().backward()
    assert not asked


# Runs of elementwise operators, which no other graph knows of ---------------------------------------------------------


class Elementwise(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = self.a(x)
        return self.b(torch.exp(-h * h) + x.sum(1, keepdim=True))


def test_a_run_of_elementwise_operators_is_one_call_and_what_others_read_stays_outside():
    piece, _ = pieces_of(Elementwise(), x=torch.linspace(-1, 1, 20).view(5, 4), y=torch.arange(5) % 3)
    rows = triton.rewrite(piece.module.graph, lambda match: (match.kernel == "pointwise", "asked for"))
    taken = [row for row in rows if row.kernel == "pointwise"]
    assert [row.vertices for row in taken] == [("mul", "exp")]  # what was negated is read by a derivative
    assert taken[0].launches == 1


def test_gains_and_step_sizes_stay_arguments_of_operators():
    pieces = pieces_of(
        Elementwise(), pccompile.Strict(steps=3), x=torch.linspace(-1, 1, 20).view(5, 4), y=torch.arange(5) % 3
    )
    for piece in pieces:
        triton.rewrite(piece.module.graph, lambda match: (match.kernel == "pointwise", "asked for"))
        for node in piece.module.graph.nodes:
            if node.meta.get("kernel") == "pointwise" and node.target is not operator.getitem:
                assert all(isinstance(read.meta["val"], torch.Tensor) for read in node.all_input_nodes)
