"""embedding_error against its reference and against autograd."""

import pytest
import torch
from closeness import assert_close
from layers import far_apart, strided, transposed
from torch.nn import functional

from pccompile.errors import ShapeError, UsageError
from pccompile.kernels import embedding_error, embedding_error_into
from pccompile.kernels.embedding_error.configurations import Configuration
from pccompile.kernels.embedding_error.kernel import launch_embedding_error
from pccompile.kernels.embedding_error.reference import embedding_error_reference


def random_uses(device, uses=(63,), rows=9, columns=33, dtype=torch.float32):
    """Errors (*uses, columns) and indices (*uses,), of which half are row 3."""
    indices = torch.randint(0, rows, uses)
    indices = torch.where(torch.rand(uses) < 0.5, min(3, rows - 1), indices)
    return torch.randn(*uses, columns).to(dtype).to(device), indices.to(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_gradient_equals_the_reference(device, dtype):
    error, indices = random_uses(device, dtype=dtype)
    reference = embedding_error_reference(error, indices, 11, gain=-0.7)
    assert_close("gradient", reference, embedding_error(error, indices, 11, gain=-0.7))


@pytest.mark.parametrize(
    ("uses", "rows", "columns"),
    [((1,), 1, 1), ((), 4, 5), ((2, 3, 4), 60, 7), ((0,), 4, 5), ((5,), 4, 0), ((3,), 2, 600)],
)
def test_awkward_and_empty_shapes(device, uses, rows, columns):
    error, indices = random_uses(device, uses, rows, columns)
    assert_close("gradient", embedding_error_reference(error, indices, rows), embedding_error(error, indices, rows))


@pytest.mark.parametrize("padding_idx", [3, -2])
def test_the_padding_row_has_no_gradient(device, padding_idx):
    error, indices = random_uses(device)
    gradient = embedding_error(error, indices, 9, padding_idx=padding_idx)
    assert not gradient[padding_idx].any()
    assert_close("gradient", embedding_error_reference(error, indices, 9, padding_idx), gradient)


def test_strides_and_int32_are_followed(device):
    error, indices = random_uses(device)
    reference = embedding_error_reference(error, indices, 9)
    assert_close("gradient", reference, embedding_error(transposed(error), indices.int(), 9))
    assert_close("gradient", reference, embedding_error(strided(error), indices.repeat_interleave(2)[::2], 9))


def test_rows_far_apart_are_addressed_with_64_bits(device):
    error, indices = random_uses(device, (3,), 4, 5, torch.float16)
    reference = embedding_error_reference(error, indices, 4)
    assert_close("gradient", reference, embedding_error(far_apart(error), indices, 4))


@pytest.mark.parametrize("blocks", [(1, 64), (16, 8), (64, 16)], ids=str)
def test_any_tiles_add_the_same_and_touch_nothing_else(device, blocks):
    error, indices = random_uses(device, rows=5)
    start = torch.randn(7, 33, device=device)
    start[5:] = torch.nan  # rows that are not used are not even read
    target = strided(start)
    launch_embedding_error(error, indices, target, gain=0.5, configuration=Configuration(*blocks))
    reference = embedding_error_reference(error, indices, 7, gain=0.5) + start
    assert_close("gradient", reference[:5], target[:5])
    assert target[5:].isnan().all()
    assert int(target._base.isnan().sum()) == target._base.numel() - 5 * 33


def test_indices_that_are_no_row_are_left_out(device):
    error, indices = random_uses(device)
    known = indices < 5
    reference = embedding_error_reference(error[known], indices[known], 5)
    assert_close("gradient", reference, embedding_error(error, torch.where(known, indices, -1), 5))
    assert_close("gradient", reference, embedding_error(error, torch.where(known, indices, 5), 5))


def test_the_gradient_equals_autograd(device):
    error, indices = random_uses(device, (4, 6))
    table = torch.randn(9, 33, device=device, dtype=torch.float64).requires_grad_()
    functional.embedding(indices, table, padding_idx=3).backward(error.double())
    assert_close("gradient", table.grad, embedding_error(error, indices, 9, padding_idx=3))


def test_results_repeat_bit_for_bit(device):
    error, indices = random_uses(device)
    assert torch.equal(embedding_error(error, indices, 9), embedding_error(error, indices, 9))


def test_the_operators_keep_their_contract(device):
    error, indices = random_uses(device, (4, 6), columns=5)
    torch.library.opcheck(torch.ops.pccompile.embedding_error.default, (error, indices, 9, 3, 0.5))
    gradient = torch.randn(9, 5, device=device)
    torch.library.opcheck(torch.ops.pccompile.embedding_error_into.default, (error, indices, gradient, None, 0.5))


def test_refusals_name_the_argument(device):
    error, indices = random_uses(device, (6,))
    refused = [
        (UsageError, "float64", (error.double(), indices, 9)),
        (UsageError, "indices is torch.float32", (error, indices.float(), 9)),
        (ShapeError, "indices has shape", (error, indices[1:], 9)),
        (ShapeError, "indices is on meta", (error, indices.to("meta"), 9)),
    ]
    for kind, words, arguments in refused:
        with pytest.raises(kind, match=words):
            embedding_error(*arguments)
    with pytest.raises(UsageError, match="padding_idx"):
        embedding_error(error, indices, 9, padding_idx=9)
    with pytest.raises(ShapeError, match="gradient"):
        embedding_error_into(error, indices, error[:, 1:])
