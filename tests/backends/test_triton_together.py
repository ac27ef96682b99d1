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
    return [node.args for node in piece.graph.nodes if getattr(node.target, "__name__", "") == name]


def operators(piece):
    nodes = [node for node in piece.graph.nodes if node.op == "call_function" and "kernel" not in node.meta]
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


def strict_loop(model, choose=None, rule=None):
    """The body of a model's loop of strict inference."""
    pieces = pieces_of(model, rule or pccompile.Strict(steps=3, step_size=0.1))
    return together(pieces, choose or (lambda *matches: (True, "asked for")))["error_sweep_2"]


def deep(**options):
    return nn.Sequential(nn.Conv2d(2, 2, 1), nn.Tanh(), *pooled(**options))


def test_a_strict_loop_predicts_and_goes_back_through_pools_in_one_graph():
    loop = strict_loop(deep(), lambda *matches: (matches[0].kernel != "conv_step", "too slow"))
    assert len(calls(loop, "predict_images")) == len(calls(loop, "sweep_images")) == 1
    assert not calls(loop, "step_images")
    assert not any("pool" in name for name in operators(loop))
    told = {node.meta["row"].kernel: node.meta["row"].reason for node in loop.graph.nodes if "row" in node.meta}
    assert told == {"conv_predict": "too slow", "conv_error": "too slow; no conv_step: too slow"}


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.Identity()], ids=["relu", "gelu", "identity"])
@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Identity()], ids=["max", "average", "none"])
def test_a_convolution_in_a_strict_loop_is_one_call_that_also_moves_its_parent(activation, pool):
    model = deep(activation=activation, pool=pool)
    if isinstance(pool, nn.Identity):
        model[-1] = nn.Linear(64, 3)
    loop = strict_loop(model)
    (arguments,) = calls(loop, "step_images")
    value, siblings, parent_error, step_size = arguments[3:7]
    assert value.meta["val"].dim() == 4 and siblings is None  # the value has been flattened: it is viewed as images
    assert parent_error.target is operator.sub and step_size.target == "step_size"
    assert arguments[10] == {nn.MaxPool2d: "max", nn.AvgPool2d: "average", nn.Identity: "none"}[type(pool)]
    left = ["conv", "pool", "relu", "gelu", "threshold"]
    assert not any(word in name for name in operators(loop) for word in left)
    assert len(calls(loop, "add")) == 1  # the flattened value's own move


class Children(nn.Module):
    """Two convolutions read the same parent."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(2, 2, 1) for _ in range(4))
        self.head = nn.Linear(72, 3)

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.head((self.c(torch.relu(self.b(h))) * self.d(h)).flatten(1))


def test_what_the_parents_other_children_give_is_added_by_the_call():
    loop = strict_loop(Children())
    told = [(arguments[4], arguments[5]) for arguments in calls(loop, "step_images")]
    assert sum(siblings is not None and error is not None for siblings, error in told) == 1
    assert "add.Tensor" not in operators(loop)


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_a_value_that_an_optimizer_moves_is_given_what_comes_back(optimizer):
    loop = strict_loop(deep(), rule=pccompile.Strict(3, 0.1, optimizer))
    (arguments,) = calls(loop, "step_images")
    assert arguments[4:7] == (None, None, 1.0)


def reasons(piece):
    hearts = piece.graph.find_nodes(op="call_function", target=torch.ops.aten.convolution_backward.default)
    return [heart.meta.get("left_by") for heart in hearts]


class Skip(nn.Module):
    """The vertex of the second convolution adds what the first one's gives."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(108, 3)

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.head((h + torch.relu(self.b(h))).flatten(1))


class Twice(nn.Module):
    """The second convolution's pre-activation is read beside its activation."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(108, 3)

    def forward(self, x):
        z = self.b(torch.tanh(self.a(x)))
        return self.head((z * torch.sigmoid(z)).flatten(1))


@pytest.mark.parametrize(
    "model",
    [
        Skip(),
        Twice(),
        nn.Sequential(*deep(pool=nn.MaxPool2d(3, 2))[:-1], nn.Linear(4, 3)),
        nn.Sequential(nn.Conv2d(2, 2, 1), nn.Tanh(), nn.Conv2d(2, 3, 6), nn.Flatten()),
    ],
    ids=["skip", "twice", "overlap", "output"],
)
def test_a_layer_whose_error_is_another_stays_several_launches_and_says_so(model):
    loop = strict_loop(model, lambda *matches: (matches[0].kernel == "conv_step", "asked for"))
    assert not calls(loop, "step_images")
    assert reasons(loop) == ["no conv_step: its error is not v - pool(act(x * W + b))"]


def test_a_layer_that_learns_in_every_step_stays_several_launches_and_says_so():
    pc = pccompile.compile(
        deep(), pccompile.Incremental(3, 0.1), loss_fn=F.cross_entropy, backend="aten", dynamic=False, verify=False
    )
    pc.step(X, Y, torch.optim.SGD(pc.model.parameters(), lr=0.1))
    (plan,) = pc._latest.backend.plans.values()
    (loop,) = [piece for piece in together([stage.piece for stage in plan.stages]).values() if piece.loop]
    assert not calls(loop, "step_images")
    told = {node.meta["row"].reason for node in loop.graph.nodes if "row" in node.meta}
    assert "asked for; no conv_step: its weights learn in the same step" in told


def test_of_other_rules_it_says_nothing():
    model = deep()
    for parameter in model[2].parameters():
        parameter.requires_grad_(False)  # so that its error is carried back, and nothing else
    for rule in (pccompile.ZIL(), pccompile.FixedPrediction(3, 0.1)):
        pieces = pieces_of(model, rule)
        assert not any(calls(piece, "step_images") for piece in together(pieces).values())
        left = together(pieces, lambda *matches: (False, "too slow"))
        assert not any(reason for piece in left.values() for reason in reasons(piece))


def test_what_is_declined_stays_as_it_was_and_the_report_says_why():
    before = pieces_of(pooled())
    found = together(before, lambda *matches: (False, "too slow"))
    for piece in before:
        same = found[piece.name]
        assert (same.inputs, same.outputs) == (piece.inputs, piece.outputs)
        assert operators(same) == operators(piece)
    rows = rows_of(found["prediction_sweep"].graph, "aten", "no kernel takes them")
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
