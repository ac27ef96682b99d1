"""How close a kernel's result is to its reference: RMS error over RMS reference."""

from __future__ import annotations

import torch
from torch import Tensor

RATIO = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}


def error_ratio(reference: Tensor, actual: Tensor) -> float:
    """RMS of the difference over RMS of the reference; the former alone where the reference is zero."""
    reference, actual = reference.double().cpu(), actual.double().cpu()
    if reference.numel() == 0:
        return 0.0
    difference, scale = (actual - reference).square().mean().sqrt(), reference.square().mean().sqrt()
    return float(difference / scale if scale > 0 else difference)


def assert_close(name: str, reference: Tensor, actual: Tensor | None, ratio: float | None = None) -> None:
    """Check shape, finiteness and error ratio.

    Args:
        name: what is compared, for the message.
        reference: what is right, of any floating dtype.
        actual: the kernel's result; it has to be there.
        ratio: the largest error ratio allowed; by default the actual dtype's in RATIO.
    """
    assert actual is not None, f"{name} is missing"
    assert actual.shape == reference.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(reference.shape)}"
    assert actual.isfinite().all(), f"{name}: {int((~actual.isfinite()).sum())} elements of {actual.numel()} not finite"
    found, allowed = error_ratio(reference, actual), RATIO[actual.dtype] if ratio is None else ratio
    assert found <= allowed, f"{name}: error ratio {found:.2e}, allowed {allowed:.2e}"


def assert_same_wherever_rows_lie(name: str, reference: Tensor, actual: Tensor) -> None:
    """Check that a kernel's result is the same to the last bit, though its rows lie elsewhere in their tiles.

    The interpreter's products are numpy's, which on some processors round a row by its place: there, that it is close.
    """
    if reference.is_cuda or not reference.is_floating_point():
        assert torch.equal(reference, actual), name
    else:
        assert_close(name, reference, actual)
