"""What may be lost to rounding where sums are taken in another order."""

import torch


def assert_hardly_more_rounded(found, eager, exact):
    """Inference loses digits in float32, whatever the order; most of them where hardly any error has arrived.

    Args:
        found: tensors in single precision.
        eager: the same as PyTorch's own order of sums gives them.
        exact: in double precision.
    """
    largest = max(map(length, exact))
    for ours, theirs, right in zip(found, eager, exact, strict=True):
        error, usual = length(ours - right), length(theirs - right)
        assert error <= 4 * usual + 1e-3 * length(right) + 3e-6 * largest


def length(tensor):
    return float(torch.linalg.vector_norm(tensor.double()))
