"""Layer and root-mean-square normalisation against their references and against autograd."""

from dataclasses import dataclass, replace

import pytest
import torch
from closeness import assert_close
from layers import far_apart, normals, strided, transposed
from torch import Tensor
from torch.nn import functional

from pccompile.errors import PCCompileError, ShapeError, UsageError
from pccompile.kernels import layer_norm_predict, rms_norm_predict, row_norm_error, row_norm_error_into
from pccompile.kernels.arrivals import FOLD, arrival_counters
from pccompile.kernels.row_norm.configurations import Configuration
from pccompile.kernels.row_norm.error import launch_row_norm_error
from pccompile.kernels.row_norm.predict import launch_row_norm_predict
from pccompile.kernels.row_norm.reference import row_norm_error_reference, row_norm_reference

NAMES = ("parent_error", "weight_gradient", "bias_gradient")
EPS = 1e-3


@dataclass(frozen=True)
class Norm:
    """Rows x and their errors (..., columns), weight and bias (columns,), and the statistics of the rows."""

    x: Tensor
    error: Tensor
    weight: Tensor | None
    bias: Tensor | None
    centred: bool

    @property
    def sweep(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor]:
        """row_norm_error's arguments."""
        _, mean, rstd = row_norm_reference(self.x, self.weight, self.bias, EPS, self.centred)
        return self.error, self.x, self.weight, mean if self.centred else None, rstd

    def predict(self):
        if self.centred:
            return layer_norm_predict(self.x, self.weight, self.bias, eps=EPS)
        return rms_norm_predict(self.x, self.weight, eps=EPS)


def random_norm(device, shape=(63, 33), centred=True, dtype=torch.float32):
    normal = normals(None, dtype, device)
    bias = normal(shape[-1]) if centred else None
    return Norm(normal(*shape) * 2 + 1, normal(*shape), normal(shape[-1]), bias, centred)


def check_against_reference(norm, gain=1.0):
    output, mean, rstd = row_norm_reference(norm.x, norm.weight, norm.bias, EPS, norm.centred)
    prediction = norm.predict()
    assert_close("output", output, prediction.output)
    assert_close("rstd", rstd, prediction.rstd)
    if norm.centred:
        assert_close("mean", mean, prediction.mean)
    else:
        assert prediction.mean is None
    sweep = row_norm_error(*norm.sweep, gain=gain)
    for name, expected, actual in zip(NAMES, row_norm_error_reference(*norm.sweep, gain=gain), sweep, strict=True):
        assert_close(name, expected, actual)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("centred", [True, False], ids=["layer", "rms"])
def test_prediction_and_error_equal_the_reference(device, centred, dtype):
    check_against_reference(random_norm(device, centred=centred, dtype=dtype))


@pytest.mark.parametrize("shape", [(1, 1), (1, 60), (63, 1), (7,), (2, 3, 5), (300, 3), (0, 5), (2, 4100)], ids=str)
@pytest.mark.parametrize("centred", [True, False], ids=["layer", "rms"])
def test_awkward_and_empty_shapes(device, centred, shape):
    check_against_reference(random_norm(device, shape, centred), gain=-0.37)


def test_rows_without_columns_have_no_statistics(device):
    norm = random_norm(device, (5, 0))
    output, mean, rstd = norm.predict()
    assert output.shape == (5, 0) and mean.isnan().all() and rstd.isnan().all()
    assert row_norm_error(*norm.sweep).weight_gradient.shape == (0,)


def test_weight_and_bias_may_be_missing(device):
    norm = random_norm(device)
    check_against_reference(replace(norm, weight=None))
    check_against_reference(replace(norm, weight=None, bias=None))
    check_against_reference(replace(random_norm(device, centred=False), weight=None))


def test_strides_are_followed(device):
    norm = random_norm(device)
    scattered = (transposed(norm.x), strided(norm.error), strided(norm.weight), strided(norm.bias))
    check_against_reference(Norm(*scattered, True))
    cube = random_norm(device, (3, 4, 5))
    check_against_reference(replace(cube, x=cube.x.transpose(0, 1).contiguous().transpose(0, 1)))


@pytest.mark.parametrize("centred", [True, False], ids=["layer", "rms"])
def test_strides_of_statistics_are_followed(device, centred):
    error, x, weight, mean, rstd = random_norm(device, centred=centred).sweep
    apart = (None if mean is None else strided(mean), strided(rstd))
    found = row_norm_error(error, x, weight, *apart)
    targets = {name: torch.full_like(tensor, torch.nan) for name, tensor in zip(NAMES, found, strict=True)}
    row_norm_error_into(error, x, weight, *apart, **targets)
    for name, expected in zip(NAMES, row_norm_error_reference(error, x, weight, mean, rstd), strict=True):
        assert_close(name, expected, getattr(found, name))
        assert_close(name, expected, targets[name])


def test_rows_far_apart_are_addressed_with_64_bits(device):
    norm = random_norm(device, (3, 4), dtype=torch.float16)
    check_against_reference(replace(norm, x=far_apart(norm.x)))


def test_a_large_mean_does_not_cancel(device):
    for columns in (60, 4100):
        x = torch.randn(3, columns, device=device).mul(64).round() / 64 + 1024
        expected = functional.layer_norm(x.double(), (columns,))
        assert_close("output", expected, layer_norm_predict(x).output, ratio=1e-4)


# Several rows a program and several programs; more than one group; rows in runs, as where they are long.
@pytest.mark.parametrize(
    ("cut", "accumulate", "centred"),
    [((4, 64, True, 3), True, True), ((1, 64, True, 21), False, True), ((1, 32, False, 7), False, True),
     ((1, 32, False, 7), True, False), ((2, 64, True, 21), True, False)],
    ids=str,
)  # fmt: skip
def test_any_cut_gives_the_same_and_nothing_beside_the_targets_is_touched(device, centred, accumulate, cut):
    norm = random_norm(device, (21, 40), centred)
    configuration = Configuration(*cut[:3], warps=4)
    references = row_norm_error_reference(*norm.sweep, gain=0.5)
    before = [torch.randn_like(reference) for reference in references]
    targets = [strided(tensor if accumulate else torch.full_like(tensor, torch.nan)) for tensor in before]
    flags = {f"accumulate_{name}": accumulate for name in ("parent", "weight", "bias")}
    options = {"configuration": configuration, "programs": cut[3]}
    launch_row_norm_error(*norm.sweep, **dict(zip(NAMES, targets, strict=True)), **flags, gain=0.5, **options)
    output = strided(torch.full_like(norm.x, torch.nan))
    mean, rstd = torch.full((2, 21), torch.nan, device=device)
    launch_row_norm_predict(norm.x, norm.weight, norm.bias, output, mean if centred else None, rstd, EPS, configuration)
    assert_close("output", row_norm_reference(norm.x, norm.weight, norm.bias, EPS, centred)[0], output)
    for name, reference, start, target in zip(NAMES, references, before, targets, strict=True):
        assert_close(name, reference + start if accumulate else reference, target)
    for target in (output, *targets):
        assert int(target._base.isnan().sum()) == target._base.numel() - target.numel()


@pytest.mark.parametrize("which", range(3))
def test_each_target_stands_alone_and_accumulates_alone(device, which):
    norm = random_norm(device, (20, 33))
    references = row_norm_error_reference(*norm.sweep)
    alone = row_norm_error(*norm.sweep, **{name: index == which for index, name in enumerate(NAMES)})
    assert [part is not None for part in alone] == [index == which for index in range(3)]
    assert_close(NAMES[which], references[which], alone[which])
    targets = [torch.full_like(reference, 3.0) for reference in references]
    flag = ("accumulate_parent", "accumulate_weight", "accumulate_bias")[which]
    row_norm_error_into(*norm.sweep, **dict(zip(NAMES, targets, strict=True)), **{flag: True})
    for index, (reference, target) in enumerate(zip(references, targets, strict=True)):
        assert_close(NAMES[index], reference + 3.0 if index == which else reference, target)


def test_an_empty_batch_gives_zero_gradients_and_leaves_accumulated_ones(device):
    norm = random_norm(device, (0, 5))
    assert not row_norm_error(*norm.sweep).weight_gradient.any()
    gradient = torch.ones(5, device=device)
    row_norm_error_into(*norm.sweep, weight_gradient=gradient, accumulate_weight=True)
    assert (gradient == 1).all()


@pytest.mark.parametrize("centred", [True, False], ids=["layer", "rms"])
def test_every_gradient_equals_autograd(device, centred):
    norm = random_norm(device, (5, 7, 20), centred)
    given = [tensor for tensor in (norm.x, norm.weight, norm.bias) if tensor is not None]
    leaves = [tensor.clone().requires_grad_() for tensor in given]
    exact = [tensor.double().requires_grad_() for tensor in given]
    if centred:
        layer_norm_predict(*leaves).output.backward(norm.error)
        functional.layer_norm(exact[0], (20,), *exact[1:]).backward(norm.error.double())
    else:
        rms_norm_predict(*leaves).output.backward(norm.error)
        functional.rms_norm(exact[0], (20,), exact[1], torch.finfo(torch.float32).eps).backward(norm.error.double())
    for name, leaf, expected in zip(("x", "weight", "bias"), leaves, exact, strict=False):
        assert_close(f"gradient of {name}", expected.grad, leaf.grad)


def test_results_repeat_bit_for_bit_and_counters_of_arrivals_end_as_they_began(device):
    norm = random_norm(device, (40, 33))
    for first, second in zip(row_norm_error(*norm.sweep), row_norm_error(*norm.sweep), strict=True):
        assert torch.equal(first, second)
    assert not arrival_counters(norm.x.device, FOLD).any()


@pytest.mark.parametrize("centred", [True, False], ids=["layer", "rms"])
def test_the_operators_keep_their_contract(device, centred):
    norm = random_norm(device, (2, 3, 4), centred)
    leaves = [None if t is None else t.clone().requires_grad_() for t in (norm.x, norm.weight, norm.bias)]
    torch.library.opcheck(torch.ops.pccompile.row_norm_predict.default, (*leaves, EPS, centred))
    torch.library.opcheck(torch.ops.pccompile.row_norm_error.default, (*norm.sweep, True, centred, True, 0.5))
    norm = random_norm(device, (3, 4), centred)
    targets = (torch.randn_like(norm.x), None, torch.randn_like(norm.weight))
    arguments = (*norm.sweep, *targets, True, False, False, 0.5)
    torch.library.opcheck(torch.ops.pccompile.row_norm_error_into.default, arguments)


def test_a_second_derivative_is_refused(device):
    x = torch.randn(3, 4, device=device).requires_grad_()
    (first,) = torch.autograd.grad(layer_norm_predict(x).output.sum(), x, create_graph=True)
    with pytest.raises(PCCompileError, match="create_graph"):
        first.sum().backward()


def test_refusals_name_the_argument(device):
    norm = random_norm(device, (5, 4))
    error, x, weight, mean, rstd = norm.sweep
    with pytest.raises(UsageError, match="float64"):
        layer_norm_predict(x.double())
    with pytest.raises(ShapeError, match="weight has shape"):
        rms_norm_predict(x, weight[1:])
    with pytest.raises(ShapeError, match="scalar"):
        layer_norm_predict(x[0, 0])
    refused = [
        (ShapeError, "error has shape", (error[1:], x, weight, mean, rstd)),
        (ShapeError, "rstd has shape", (error, x, weight, mean, rstd[1:])),
        (ShapeError, "mean is torch.float16", (error, x, weight, mean.half(), rstd)),
        (ShapeError, "rstd is torch.float16", (error, x, weight, None, rstd.half())),
        (ShapeError, "rstd is on meta", (error, x, weight, None, rstd.to("meta"))),
        (ShapeError, "weight is on meta", (error, x, weight.to("meta"), mean, rstd)),
    ]
    for kind, words, arguments in refused:
        with pytest.raises(kind, match=words):
            row_norm_error(*arguments)
    with pytest.raises(ShapeError, match="bias_gradient has shape"):
        row_norm_error_into(*norm.sweep, bias_gradient=x)
    with pytest.raises(ShapeError, match="reshape it"):
        row_norm_error_into(error[None], x[None], weight, mean, rstd)
