"""Configurations next to one: a field one value further in its operation's space, or other warps or stages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pccompile.kernels.tables import Space, problem_with

__all__ = ["neighbours"]


def neighbours(configuration: Any, space: Space, architecture: str, precision: str) -> list[Any]:
    """The configurations one change away that fit an architecture's shared memory.

    Args:
        configuration: a dataclass of an operation's configurations.
        space: the operation's.
        architecture: a key of pccompile.kernels.tables.SHARED_BYTES.
        precision: "half", "tf32" or "ieee".
    """
    return [
        candidate
        for candidate in _changed(configuration, space)
        if candidate != configuration and problem_with(candidate, configuration, space, architecture, precision) is None
    ]


def _changed(configuration: Any, space: Space) -> Iterator[Any]:
    for name, values in space.values_of(configuration).items():
        now = getattr(configuration, name)
        if name not in ("warps", "stages"):
            below, above = [v for v in values if v < now], [v for v in values if v > now]
            values = (*below[-1:], *above[:1])
        for value in values:
            yield replace(configuration, **{name: value})
