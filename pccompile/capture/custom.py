"""Custom autograd functions lose their backward in a captured graph; refuse them by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pccompile.errors import CaptureError, Place

__all__ = ["refuse_custom_functions"]


@contextmanager
def refuse_custom_functions() -> Iterator[None]:
    """While this lasts, applying a `torch.autograd.Function` that is not PyTorch's own raises.

    Raises:
        CaptureError: names the function and the cure.
    """
    original = torch.autograd.Function.__dict__["apply"]

    def apply(function: type, *args: Any, **kwargs: Any) -> Any:
        if not function.__module__.startswith("torch."):
            raise CaptureError(
                f"the custom autograd function {function.__qualname__} would lose its backward",
                Place(node=f"{function.__qualname__}.apply"),
                "write it as an operator: torch.library.custom_op with register_autograd and register_fake",
            )
        return original.__get__(None, function)(*args, **kwargs)

    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.autograd.Function.apply = original  # type: ignore[method-assign]
