"""nn.Transformer looks into its masks to see whether they are causal, which a captured graph cannot do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules import transformer

__all__ = ["masks_as_given"]


@contextmanager
def masks_as_given() -> Iterator[None]:
    """While this lasts, nn.Transformer and its parts apply a mask as it is, unless they are told that it is causal.

    The answer only chooses between two ways of applying the same mask, so the one that holds for every mask is right.
    """
    original = transformer._detect_is_causal_mask

    def told(mask: torch.Tensor | None, is_causal: bool | None = None, size: Any = None) -> bool:
        return is_causal is True

    transformer._detect_is_causal_mask = told
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = original
