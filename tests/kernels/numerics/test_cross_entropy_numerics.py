"""cross_entropy_predict and cross_entropy_error against their references and against autograd."""

import pytest
import torch
from closeness import assert_close
from layers import far_apart, strided, transposed
from torch.nn import functional

from pccompile.errors import PCCompileError, ShapeError, UsageError
from pccompile.kernels import cross_entropy_error, cross_entropy_predict
from pccompile.kernels.cross_entropy.configurations import Configuration
from pccompile.kernels.cross_entropy.kernel import launch_cross_entropy_error, launch_cross_entropy_predict
from pccompile.kernels.cross_entropy.reference import cross_entropy_error_reference, cross_entropy_reference

REDUCTIONS = ("mean", "sum", "none")


def random_rows(device, shape=(63, 33), dtype=torch.float32, ignored=True):
    """Logits of a shape, targets of which about an eighth is ignored, and positive weights of the classes."""
    classes = shape[0] if len(shape) == 1 else shape[1]
    logits = (3 * torch.randn(shape)).to(dtype).to(device)
    targets = torch.randint(0, max(classes, 1), shape[:1][1:] if len(shape) == 1 else shape[:1] + shape[2:])
    if ignored and targets.dim():
        targets.flatten()[::8] = -100
    return logits, targets.to(device), (torch.rand(classes) + 0.5).to(dtype).to(device)


def check_against_reference(logits, targets, class_weight=None, **options):
    reference = cross_entropy_reference(logits, targets, class_weight, **options)
    prediction = cross_entropy_predict(logits, targets, class_weight, **options)
    for name, expected, actual in zip(prediction._fields, reference, prediction, strict=True):
        if name == "total_weight" and options.get("reduction", "mean") != "mean":
            assert actual is None
        else:
            assert_close(name, expected, actual)
    reduction = options.pop("reduction", "mean")
    upstream = torch.randn(prediction.loss.shape).to(logits)
    error = cross_entropy_error(
        logits, targets, class_weight, prediction.log_sum_exp, prediction.total_weight, upstream=upstream, **options
    )
    assert_close(
        "error",
        cross_entropy_error_reference(logits, targets, class_weight, upstream=upstream, reduction=reduction, **options),
        error,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_loss_and_error_equal_the_reference(device, reduction, dtype):
    logits, targets, class_weight = random_rows(device, dtype=dtype)
    check_against_reference(logits, targets, class_weight, reduction=reduction, label_smoothing=0.1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_weights_of_classes_and_label_smoothing_are_options(device, weighted, label_smoothing):
    logits, targets, class_weight = random_rows(device)
    check_against_reference(logits, targets, class_weight if weighted else None, label_smoothing=label_smoothing)


@pytest.mark.parametrize("shape", [(1, 1), (1, 60), (63, 1), (7,), (5, 9, 4, 3), (2, 3, 60), (3, 5000)], ids=str)
def test_awkward_shapes(device, shape):
    logits, targets, class_weight = random_rows(device, shape, ignored=False)
    for reduction in REDUCTIONS:
        check_against_reference(logits, targets, class_weight, reduction=reduction, label_smoothing=0.1)


def test_rows_that_are_ignored_count_for_nothing_whatever_their_logits(device):
    logits, targets, _ = random_rows(device)
    logits[::8] = torch.nan
    check = functional.cross_entropy(logits[targets != -100], targets[targets != -100])
    prediction = cross_entropy_predict(logits, targets)
    assert_close("loss", check, prediction.loss)
    error = cross_entropy_error(logits, targets, None, prediction.log_sum_exp, prediction.total_weight)
    assert not error[::8].any()
    assert_close("loss", functional.cross_entropy(logits[1:8], targets[1:8], ignore_index=int(targets[1])),
                 cross_entropy_predict(logits[1:8], targets[1:8], ignore_index=int(targets[1])).loss)  # fmt: skip


def test_the_mean_of_nothing_is_not_a_number_as_in_torch(device):
    logits = torch.randn(3, 4, device=device)
    assert cross_entropy_predict(logits, torch.full((3,), -100, device=device)).loss.isnan()
    empty = torch.empty(0, dtype=torch.int64, device=device)
    assert cross_entropy_predict(logits[:0], empty).loss.isnan()
    assert cross_entropy_predict(logits[:0], empty, reduction="sum").loss == 0
    assert cross_entropy_predict(logits[:0], empty, reduction="none").loss.shape == (0,)
    assert cross_entropy_error(logits[:0], empty, None, torch.empty(0, device=device)).shape == (0, 4)


def test_a_target_that_is_no_class_makes_the_loss_not_a_number(device):
    logits, targets, _ = random_rows(device, (5, 4), ignored=False)
    targets[2] = 4
    loss = cross_entropy_predict(logits, targets, reduction="none").loss
    assert loss.isnan().tolist() == [False, False, True, False, False]


def test_large_and_infinite_logits_keep_their_precision(device):
    logits, targets, _ = random_rows(device, ignored=False)
    logits = (logits * 1024).round() / 1024 + 4096
    exact = functional.cross_entropy(logits.double(), targets, label_smoothing=0.1)
    assert_close("loss", exact, cross_entropy_predict(logits, targets, label_smoothing=0.1).loss)
    logits, targets, _ = random_rows(device, ignored=False)
    mask = torch.rand_like(logits) < 0.5
    mask[torch.arange(len(targets)), targets] = False
    check_against_reference(logits.masked_fill(mask, -torch.inf), targets)


def test_strides_and_small_targets_are_followed(device):
    logits, targets, class_weight = random_rows(device)
    check_against_reference(
        transposed(logits), targets.int().repeat_interleave(2)[::2], strided(class_weight), label_smoothing=0.1
    )
    logits, targets, _ = random_rows(device, (2, 5, 3, 4))
    check_against_reference(logits.to(memory_format=torch.channels_last), targets.mT.contiguous().mT)


def test_rows_far_apart_are_addressed_with_64_bits(device):
    logits, targets, _ = random_rows(device, (3, 5), torch.float16)
    check_against_reference(far_apart(logits), targets)


def test_strides_of_what_the_prediction_kept_are_followed(device):
    logits, targets, _ = random_rows(device)
    _, log_sum_exp, total_weight = cross_entropy_predict(logits, targets)
    expected = cross_entropy_error_reference(logits, targets, None)
    assert_close("error", expected, cross_entropy_error(logits, targets, None, strided(log_sum_exp), total_weight))


@pytest.mark.parametrize("blocks", [(4, 64), (16, 8)], ids=str)
def test_any_tiles_give_the_same_and_nothing_beside_the_targets_is_touched(device, blocks):
    logits, targets, class_weight = random_rows(device)
    options = {"label_smoothing": 0.2, "configuration": Configuration(*blocks)}
    buffers = torch.full((3, 65), torch.nan, device=device)
    loss, log_sum_exp, total = buffers[0, 1], buffers[1, 1:-1], buffers[2, 1]
    rows = (logits[:, :, None], targets[:, None], class_weight)
    launch_cross_entropy_predict(*rows, loss, log_sum_exp, total, **options)
    reference = cross_entropy_reference(logits, targets, class_weight, label_smoothing=0.2)
    for name, expected, actual in zip(("loss", "log", "total"), reference, (loss, log_sum_exp, total), strict=True):
        assert_close(name, expected, actual)
    assert int(buffers.isnan().sum()) == buffers.numel() - 65
    error = strided(torch.full_like(logits, torch.nan))
    launch_cross_entropy_error(*rows, log_sum_exp, total, None, error[:, :, None], gain=-2.0, **options)
    expected = cross_entropy_error_reference(logits, targets, class_weight, label_smoothing=0.2, gain=-2.0)
    assert_close("error", expected, error)
    assert int(error._base.isnan().sum()) == error._base.numel() - error.numel()


@pytest.mark.parametrize("shape", [(33, 20), (3, 5, 4, 2)], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_gradient_equals_autograd(device, reduction, shape):
    logits, targets, class_weight = random_rows(device, shape)
    leaf, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    options = {"reduction": reduction, "label_smoothing": 0.1}
    loss = cross_entropy_predict(leaf, targets, class_weight, **options).loss
    upstream = torch.randn_like(loss)
    loss.backward(upstream)
    expected = functional.cross_entropy(exact, targets, class_weight.double(), **options)
    expected.backward(upstream.double())
    assert_close("loss", expected, loss)
    assert_close("gradient", exact.grad, leaf.grad)


def test_results_repeat_bit_for_bit(device):
    logits, targets, _ = random_rows(device)
    first, second = (cross_entropy_predict(logits, targets) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_operators_keep_their_contract(device):
    logits, targets, class_weight = random_rows(device, (5, 4))
    for reduction in REDUCTIONS:
        arguments = (logits.clone().requires_grad_(), targets, class_weight, reduction, -100, 0.1)
        torch.library.opcheck(torch.ops.pccompile.cross_entropy_predict.default, arguments)
    _, log_sum_exp, total = cross_entropy_predict(logits, targets)
    arguments = (logits, targets, None, log_sum_exp, total, torch.ones((), device=device), -100, 0.0, -1.0)
    torch.library.opcheck(torch.ops.pccompile.cross_entropy_error.default, arguments)


def test_a_second_derivative_is_refused(device):
    logits, targets, _ = random_rows(device, (5, 4))
    leaf = logits.requires_grad_()
    (first,) = torch.autograd.grad(cross_entropy_predict(leaf, targets).loss, leaf, create_graph=True)
    with pytest.raises(PCCompileError, match="create_graph"):
        first.sum().backward()


def test_refusals_name_the_argument(device):
    logits, targets, class_weight = random_rows(device, (5, 4))
    refused = [
        (UsageError, "float64", (logits.double(), targets)),
        (UsageError, "targets is torch.float32", (logits, targets.float())),
        (ShapeError, "targets has shape", (logits, targets[1:])),
        (ShapeError, "targets is on meta", (logits, targets.to("meta"))),
        (ShapeError, "class_weight has shape", (logits, targets, class_weight[1:])),
        (ShapeError, "class_weight is torch.float16", (logits, targets, class_weight.half())),
        (ShapeError, "scalar", (logits[0, 0], targets[0])),
    ]
    for kind, words, arguments in refused:
        with pytest.raises(kind, match=words):
            cross_entropy_predict(*arguments)
    with pytest.raises(UsageError, match="reduction"):
        cross_entropy_predict(logits, targets, reduction="batchmean")
    with pytest.raises(UsageError, match="label_smoothing"):
        cross_entropy_predict(logits, targets, label_smoothing=1.5)
    with pytest.raises(ShapeError, match="upstream has shape"):
        cross_entropy_error(logits, targets, None, logits[:, 0], upstream=logits)
    lost = [
        ("log_sum_exp is torch.float16", (logits[:, 0].half(), None, None)),
        ("log_sum_exp is on meta", (logits[:, 0].to("meta"), None, None)),
        ("total_weight has shape", (logits[:, 0], logits[:, 0], None)),
        ("upstream is on meta", (logits[:, 0], None, logits[:, 0].to("meta"))),
    ]
    for words, (log_sum_exp, total_weight, upstream) in lost:
        with pytest.raises(ShapeError, match=words):
            cross_entropy_error(logits, targets, None, log_sum_exp, total_weight, upstream=upstream)
