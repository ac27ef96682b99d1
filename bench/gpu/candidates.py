"""Configurations next to one: a tile halved or doubled, other warps, other stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any

from pccompile.kernels.tables import Product, problem_with

__all__ = ["neighbours"]

SMALLEST_TILE, LARGEST_TILE = 16, 256  # tl.dot's least; more than 256 spills
WARPS = (4, 8)
STAGES = (2, 3, 4, 5)


def neighbours(
    configuration: Any,
    products: Sequence[Product],
    architecture: str,
    precision: str,
    least: Mapping[str, int] = MappingProxyType({}),
) -> list[Any]:
    """The configurations one change away that fit an architecture's shared memory.

    Args:
        configuration: a dataclass of an operation's configurations.
        products: the products that its fields cut up.
        architecture: a key of pccompile.kernels.tables.SHARED_BYTES.
        precision: "half", "tf32" or "ieee".
        least: the smallest value of a field, where the kernel needs one.
    """
    return [
        candidate
        for candidate in _changed(configuration, products)
        if candidate != configuration
        and problem_with(candidate, configuration, products, architecture, precision, least) is None
    ]


def _changed(configuration: Any, products: Sequence[Product]) -> Iterator[Any]:
    names = {field.name for field in fields(configuration)}
    for name in dict.fromkeys(name for product in products for name in product):
        value = getattr(configuration, name)
        for changed in (value // 2, value * 2):
            if SMALLEST_TILE <= changed <= LARGEST_TILE:
                yield replace(configuration, **{name: changed})
    for name, values in (("warps", WARPS), ("stages", STAGES)):
        if name in names:
            for value in values:
                yield replace(configuration, **{name: value})
