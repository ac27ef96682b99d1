"""How many launches a step of ResNet-18, of CNNs and of an MLP is with every kernel allowed, counted in flat graphs."""

import pytest
import torch
import torch.nn.functional as F
from networks import resnet18
from torch.utils._python_dispatch import TorchDispatchMode

import pccompile
from bench.gpu.models import GPU_MODELS
from bench.gpu.targets import launch_target, parametric_layers
from bench.steps.networks import ResNet18
from pccompile.backends import triton
from pccompile.backends.patterns.pieces import Pieces
from pccompile.backends.report import rows_of

RULES = [pccompile.ZIL(), *(pccompile.FixedPrediction(steps, 0.1, levelled=True) for steps in (1, 20))]
RULE_NAMES = ["zil", "levelled-1", "levelled"]
IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32), torch.tensor([0, 2])


def rows_with_kernels(model, rule, batch=IMAGES):
    """What would run a step with every kernel taken that fits."""
    pc = pccompile.compile(model, rule, loss_fn=F.cross_entropy, backend="aten", dynamic=False, verify=False)
    pc.loss(*batch).backward()
    (plan,) = pc._latest.backend.plans.values()
    pieces = Pieces([stage.piece for stage in plan.stages])
    triton.rewrite_together(pieces, lambda *matches: (True, "asked for"))
    graphs = [piece.graph for piece in pieces.finish()]
    chosen = [row for graph in graphs for row in triton.rewrite(graph, lambda match: (True, "asked for"))]
    return chosen + [row for graph in graphs for row in rows_of(graph, "aten", "no kernel takes them")]


def two_of(name):
    """Two samples of a model's batch: how many there are changes no launch."""
    return tuple(part[:2] for part in GPU_MODELS[name].batch())


@pytest.mark.parametrize(("rule", "named"), zip(RULES, RULE_NAMES, strict=True), ids=RULE_NAMES)
@pytest.mark.parametrize(("name", "layers", "launches"), [("mlp", 3, 8), ("mnist-cnn", 5, 12), ("cifar-cnn", 6, 14)])
def test_chains_take_two_launches_a_layer_and_two_for_the_loss(name, layers, launches, rule, named):
    model = GPU_MODELS[name].build()
    assert (parametric_layers(model), launch_target(name, named).bound(layers)) == (layers, launches)
    rows = rows_with_kernels(model, rule, two_of(name))
    assert not [row for row in rows if row.kernel in ("aten", "pointwise")]
    assert sum(row.launches for row in rows) == launches


@pytest.mark.parametrize(("rule", "named"), zip(RULES, RULE_NAMES, strict=True), ids=RULE_NAMES)
def test_resnet18_takes_two_launches_a_layer_and_two_for_the_loss_or_fewer(rule, named):
    model = ResNet18()
    bound = launch_target("resnet18-128", named).bound(parametric_layers(model))
    assert (parametric_layers(model), bound) == (41, 84)
    rows = rows_with_kernels(model, rule)
    assert not [row for row in rows if row.kernel in ("aten", "pointwise")]
    assert sum(row.launches for row in rows) == 84 - 6  # three skips are normalised together with what they go around
    buffers = 2  # running statistics and counts of batches, each written into the model's in one copy
    assert sum(row.launches for row in rows) + buffers <= bound


def test_the_stem_of_the_usual_resnet18_pools_by_operators():
    rows = rows_with_kernels(resnet18(), RULES[0])
    assert [row.vertices for row in rows if row.kernel in ("aten", "pointwise")] == [("maxpool",), ("maxpool",)]
    assert sum(row.launches for row in rows) <= 84


class Counting(TorchDispatchMode):
    """The operators that copy."""

    def __init__(self):
        super().__init__()
        self.copies = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(word in str(function) for word in ("copy", "clone")):
            self.copies.append(str(function))
        return function(*args, **(kwargs or {}))


def test_what_a_forward_does_to_its_buffers_is_one_copy_for_each_dtype():
    model = resnet18()
    pc = pccompile.compile(model, loss_fn=F.cross_entropy, backend="aten", dynamic=False, verify=False)
    pc.loss(*IMAGES).backward()
    with Counting() as counted:
        pc.loss(*IMAGES)
    assert counted.copies == ["aten._foreach_copy_.default"] * 2
    assert int(model.bn1.num_batches_tracked) == 2
