"""What a residual block does around batch normalisation, in the same launch, against its reference."""

from itertools import product

import pytest
import torch
from closeness import assert_close
from layers import strided

from pccompile.kernels import ACTIVATIONS, counting_launches
from pccompile.kernels.batch_norm.branches import predict_branches, sweep_branches
from pccompile.kernels.batch_norm.configurations import Configuration, can_pool, configuration_for
from pccompile.kernels.batch_norm.predict import Branch, launch_batch_norm_predict
from pccompile.kernels.batch_norm.reference import (
    batch_norm_error_reference,
    batch_norm_reference,
    entering_reference,
    sum_reference,
)

MOMENTUM, EPS = 0.3, 1e-3
SKIPS = ("none", "tensor", "normalised")


class Case:
    """The tensors of a block, by a shape and what is added: each branch has weights and running statistics."""

    def __init__(self, device, shape=(6, 5, 7, 3), dtype=torch.float32, skip="tensor", affine=True):
        self.shape, self.dtype, self.device, self.affine = shape, dtype, device, affine
        self.branches = [self._branch() for _ in range(2 if skip == "normalised" else 1)]
        self.addend = self._drawn(*shape) if skip == "tensor" else None

    def _drawn(self, *shape, dtype=None):
        return (2 * torch.randn(shape) + 0.5).to(dtype or self.dtype).to(self.device)

    def _branch(self):
        channels = self.shape[1]
        weight, bias = (self._drawn(channels) if self.affine else None for _ in range(2))
        running = (self._drawn(channels, dtype=torch.float32) for _ in range(2))
        count = torch.randint(9, (), device=self.device)
        return (self._drawn(*self.shape), weight, bias, *running, count, MOMENTUM, EPS)

    def references(self):
        """Of each branch: normalised x, not rounded, and the statistics."""
        wide = [[t.float() if isinstance(t, torch.Tensor) else t for t in b] for b in self.branches]
        return [batch_norm_reference(*b[:5], MOMENTUM, EPS) for b in wide]

    def strides(self):
        x = self.branches[0][0]
        return torch.empty_like(x).stride()


def check_prediction(case, activation="relu", pooled=True):
    references = case.references()
    expected = sum_reference([r[0] for r in references], case.addend, activation)
    with counting_launches() as launches:
        found = predict_branches(case.branches, case.addend, activation, 0.01, case.strides(), pooled)
    assert launches == {"batch_norm_predict": 1}
    assert found[0].dtype is case.dtype
    assert_close("output", expected[0], found[0])
    if pooled:
        assert_close("average", expected[1], found[1])
    else:
        assert found[1] is None
    for index, (branch, reference) in enumerate(zip(case.branches, references, strict=True)):
        *statistics, count = found[2 + 5 * index : 7 + 5 * index]
        for name, wanted, actual in zip(("mean", "rstd", "mean", "variance"), reference[1:], statistics, strict=True):
            assert_close(f"{name} of branch {index}", wanted, actual)
        assert count is not branch[5] and int(count) == int(branch[5]) + 1


@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_sum_its_activation_and_its_average_equal_the_reference(device, skip, dtype):
    check_prediction(Case(device, dtype=dtype, skip=skip))


@pytest.mark.parametrize("shape", [(63, 33), (1, 1, 2), (3, 2, 1, 1), (60, 3, 1), (2, 3, 2, 2, 3), (5, 9, 63)], ids=str)
@pytest.mark.parametrize("skip", SKIPS)
def test_awkward_shapes(device, shape, skip):
    check_prediction(Case(device, shape, skip=skip), pooled=len(shape) > 2)
    check_error(Case(device, shape, skip=skip))


@pytest.mark.parametrize("activation", ["identity", "relu", "leaky_relu", "tanh", "sigmoid"])
def test_every_activation_whose_derivative_is_read_from_the_output(device, activation):
    check_prediction(Case(device), activation)
    check_prediction(Case(device, skip="normalised", affine=False), activation, pooled=False)


@pytest.mark.parametrize("skip", SKIPS)
def test_channels_last_stay_last(device, skip):
    case = Case(device, skip=skip)
    last = {"memory_format": torch.channels_last}
    case.branches = [(b[0].to(**last), *b[1:]) for b in case.branches]
    check_prediction(case)
    check_error(case)


@pytest.mark.parametrize("inner", [1, 7, 64])
@pytest.mark.parametrize("adjacent", [False, True])
def test_a_block_holds_whole_samples_where_they_are_averaged(inner, adjacent):
    chosen = configuration_for("interpreter", "ieee", 5, 3, inner, adjacent, pools=True)
    assert can_pool(inner, adjacent)
    assert chosen.block_elements >= inner and not can_pool(10**6, adjacent)


@pytest.mark.parametrize("blocks", [(1, 32), (4, 64)], ids=str)
def test_any_tiles_give_the_same_and_nothing_beside_the_targets_is_touched(device, blocks):
    case = Case(device, (6, 5, 7), skip="normalised")
    references = case.references()
    expected = sum_reference([r[0] for r in references], None, "relu")
    made = []
    for x, weight, bias, mean, var, count, *numbers in case.branches:
        kept = torch.full((2, 5), torch.nan, device=device)
        moved = [strided(torch.full_like(mean, torch.nan)) for _ in range(2)]
        made.append(
            Branch(strided(x), weight, bias, mean, var, *kept, *moved, *numbers, count, torch.zeros_like(count))
        )
    output, pooled = (strided(torch.full(shape, torch.nan, device=device)) for shape in ((6, 5, 7), (6, 5)))
    configuration = Configuration(*blocks, warps=4)
    launch_batch_norm_predict(
        made[0], output, other=made[1], pooled=pooled, activation="relu", configuration=configuration
    )
    assert_close("output", expected[0], output)
    assert_close("average", expected[1][:, :, 0], pooled)
    for branch, reference in zip(made, references, strict=True):
        for wanted, actual in zip(
            reference[1:], (branch.mean, branch.rstd, branch.new_mean, branch.new_var), strict=True
        ):
            assert_close("statistics", wanted, actual)
        assert int(branch.new_batches) == int(branch.batches) + 1
    for target in (output, pooled, made[0].new_mean, made[1].new_var):
        assert int(target._base.isnan().sum()) == target._base.numel() - target.numel()


# The way back ---------------------------------------------------------------------------------------------------------


def check_error(case, activation="relu", factor=1.0, error=None, keeps=True, adds=False, asked=(True, True, True)):
    shape = case.shape
    error = case._drawn(*shape) if error is None else error
    residual = None if activation == "identity" else case._drawn(*shape)
    d = entering_reference(error, factor, residual, activation)
    given, expected = [], []
    for gain, (x, weight, *_) in zip((-0.4, 0.7), case.branches, strict=False):
        mean, rstd = batch_norm_reference(x.float(), None, None, None, None, 0.0, EPS)[1:3]
        wide = None if weight is None else weight.float()
        results = batch_norm_error_reference(d, x.float(), wide, mean, rstd, gain)
        starts = [case._drawn(*result.shape) for result in results]
        targets = [start.clone() if adds else start.stride() for start in starts]
        given.append((x, weight, mean, rstd, *(t if a else None for t, a in zip(targets, asked, strict=True)), gain))
        expected += [result + start if adds else result for result, start in zip(results, starts, strict=True)]
    strides = torch.empty(shape).stride() if keeps else None
    with counting_launches() as launches:
        found = sweep_branches(error, factor, residual, activation, 0.01, strides, given)
    assert launches == {"batch_norm_error": 1}
    if keeps:
        assert_close("d", d, found[0])
    else:
        assert found[0] is None
    names = [f"{name} {index}" for index in range(2) for name in ("parent", "weight", "bias")]
    for name, wanted, actual, is_asked in zip(names, expected, found[1:], asked * 2, strict=False):
        if is_asked:
            assert_close(name, wanted, actual)
        else:
            assert actual is None


@pytest.mark.parametrize("skip", ["none", "normalised"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("adds", [False, True])
def test_the_error_of_a_sum_equals_the_reference(device, skip, dtype, adds):
    check_error(Case(device, dtype=dtype, skip=skip), adds=adds)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activations_derivative(device, activation):
    check_error(Case(device, (4, 3, 5)), activation, keeps=False)


@pytest.mark.parametrize("skip", ["none", "normalised"])
def test_an_error_that_was_expanded_is_read_where_it_is_and_divided(device, skip):
    shape = (6, 5, 7, 3)
    error = torch.randn(6, 5, 1, 1, device=device).expand(shape)
    check_error(Case(device, shape, skip=skip), factor=1 / 21, error=error)


@pytest.mark.parametrize("asked", [a for a in product([False, True], repeat=3) if any(a)], ids=str)
def test_what_is_not_asked_for_is_left_out(device, asked):
    check_error(Case(device, (4, 3, 5), skip="normalised", affine=False), asked=asked, keeps=asked[0])


def test_results_repeat_bit_for_bit(device):
    case = Case(device, skip="normalised")
    runs = [predict_branches(case.branches, None, "relu", 0.01, case.strides(), True) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
