"""Packed sequences are laid out by the values of their lengths, which a captured graph does not know; refuse them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn.utils.rnn import PackedSequence

from pccompile.errors import DataDependentError

__all__ = ["refuse_packed_sequences"]


@contextmanager
def refuse_packed_sequences() -> Iterator[None]:
    """While this lasts, making a `PackedSequence` raises.

    Raises:
        DataDependentError: names the cure.
    """
    original = PackedSequence.__dict__["__new__"]

    def refuse(kind: type, *args: Any, **kwargs: Any) -> Any:
        raise DataDependentError(
            "a packed sequence is laid out by the values of its lengths",
            cure="give the recurrent module the padded tensor, and leave the padding out of what reads its outputs: "
            "a mask in the loss, or gather at lengths - 1",
        )

    PackedSequence.__new__ = refuse  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        PackedSequence.__new__ = original  # type: ignore[method-assign]
