"""Names that nothing else has."""

from __future__ import annotations

__all__ = ["unique_name"]


def unique_name(wish: str, taken: set[str]) -> str:
    """The name wished for, numbered where it is taken; it is taken from now on."""
    name, count = wish, 1
    while name in taken:
        name, count = f"{wish}_{count}", count + 1
    taken.add(name)
    return name
