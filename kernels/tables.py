"""Tables of configurations that a tuner measured, laid over those that the kernels ship.

An operation's configurations.py has the table that it ships and a Space: which fields a tuner may change, to which
values. A file of an operation is JSON: {"format": 1, "operation": NAME, "entries": [ENTRY, ...]}. An entry names the
cell of the operation's table that it replaces (architecture, precision and, where the table has them, size), the fields
of the configuration, and what the tuner has to say about its measurement. `python -m bench gpu --part tune` writes such
files.

Read are, in this order, `kernels/tuned/OPERATION.json` and `OPERATION.json` in `$PCCOMPILE_TUNED_DIR`, once, when the
kernels are imported. What is corrupt, or by an estimate does not fit the architecture, is left out with a warning.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from pccompile.kernels.devices import ARCHITECTURES, Architecture

__all__ = [
    "DIRECTORY",
    "FORMAT",
    "SHARED_BYTES",
    "Product",
    "Space",
    "Streamed",
    "cells",
    "everywhere",
    "overlaid",
    "problem_with",
    "shared_bytes",
    "tuned_files",
]

FORMAT = 1
DIRECTORY = "PCCOMPILE_TUNED_DIR"
# Shared memory of one program; sm_80's tables serve sm_86, sm_89 and sm_120 as well, hence less than its 163 KiB.
SHARED_BYTES = {"sm_80": 99 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
BYTES = {"half": 2, "tf32": 4, "ieee": 4}  # of an operand
MOST_WARPS, MOST_STAGES, LARGEST_TILE = 16, 8, 512

_TILES = (16, 32, 64, 128, 256)  # tl.dot's least; more than 256 spills
_WARPS = (4, 8)
_STAGES = (2, 3, 4, 5)

Product = tuple[str, str, str]  # a configuration's fields: rows, columns and summed terms of a product's tile
Table = TypeVar("Table", bound=Mapping[Any, Any])


@dataclass(frozen=True)
class Space:
    """What of an operation's configurations can be chosen: the mechanism is the same for all of them.

    Attributes:
        operation: its name, and that of its files.
        products: the products of matrices that fields cut up. Of a configuration count those whose fields it has.
        choices: the values that a field may have, ascending powers of two; they go before those that fields of
            products, warps and stages have anyway.
        least: the smallest value of a field, where the kernel needs one.
    """

    operation: str
    products: tuple[Product, ...] = ()
    choices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    least: Mapping[str, int] = field(default_factory=dict)

    def products_of(self, configuration: Any) -> list[Product]:
        """Those that a configuration cuts up."""
        names = {each.name for each in fields(configuration)}
        return [product for product in self.products if names.issuperset(product)]

    def values_of(self, configuration: Any) -> dict[str, tuple[int, ...]]:
        """The values that a tuner may try, by field; a field without any stays as it is."""
        tiles = {name for product in self.products_of(configuration) for name in product}
        known = dict.fromkeys(tiles, _TILES) | {"warps": _WARPS, "stages": _STAGES} | dict(self.choices)
        return {each.name: known[each.name] for each in fields(configuration) if each.name in known}


@dataclass(frozen=True)
class Streamed:
    """How a launch is cut up that is bound by memory.

    Attributes:
        elements: that a program holds at a time.
        warps: warps (wavefronts) per program.
    """

    elements: int
    warps: int


def everywhere(sizes: Mapping[str, Any]) -> dict[Architecture, dict[str, dict[str, Any]]]:
    """The table of an operation without products, whose configurations ship the same for every architecture."""
    return {
        architecture: {each: dict(sizes) for each in ("half", "ieee")}
        for architecture in (*ARCHITECTURES, "interpreter")
    }


def overlaid(space: Space, table: Table) -> Table:
    """The table with the cells that tuned files have, in their place.

    Args:
        space: the operation's.
        table: configurations by architecture, precision and, in most tables, size.
    """
    for path in tuned_files(space.operation):
        for entry in _entries(space.operation, path):
            table = _with(table, entry, space, path)
    return table


def tuned_files(operation: str) -> list[Path]:
    """The files that are there, the one that has the last word last."""
    files = [Path(__file__).parent / "tuned" / f"{operation}.json"]
    if os.environ.get(DIRECTORY):
        files.append(Path(os.environ[DIRECTORY]) / f"{operation}.json")
    return [path for path in files if path.is_file()]


def cells(table: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every configuration of a table with its keys."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            for keys, configuration in cells(value):
                yield (key, *keys), configuration
        else:
            yield (key,), value


def shared_bytes(configuration: Any, products: Sequence[Product], precision: str) -> int:
    """Bytes of the operands' tiles that the largest product holds in shared memory, one set of tiles a stage."""
    fields = asdict(configuration)
    elements = (fields[terms] * (fields[rows] + fields[columns]) for rows, columns, terms in products)
    tiles: int = max(elements, default=0)
    return tiles * BYTES[precision] * max(int(fields.get("stages", 1)), 1)


def problem_with(configuration: Any, shipped: Any, space: Space, architecture: str, precision: str) -> str | None:
    """Why a configuration cannot be launched on an architecture, or None.

    Args:
        configuration: of the same class as `shipped`.
        shipped: the cell that it would replace.
        space: the operation's.
        architecture: a key of SHARED_BYTES; another has no budget.
        precision: "half", "tf32" or "ieee".
    """
    products = space.products_of(shipped)
    tiles = {name for product in products for name in product}
    for name, value in asdict(configuration).items():
        if value is None and getattr(shipped, name) is None:
            continue
        if type(value) is not int or value < 0:
            return f"{name} is {value!r}, not a number"
        if value < space.least.get(name, 0):
            return f"{name} is {value}, less than {space.least[name]}"
        most = max(space.choices.get(name, (LARGEST_TILE,)))
        if name == "warps":
            most = MOST_WARPS
        if name in tiles | {"warps"} | set(space.choices) and not (_power_of_two(value) and value <= most):
            return f"{name} is {value}, not a power of two up to {most}"
        if name == "stages" and not 1 <= value <= MOST_STAGES:
            return f"stages is {value}, not 1 to {MOST_STAGES}"
        if name == "group" and value < 1:
            return "group is 0"
    needed, budget = shared_bytes(configuration, products, precision), SHARED_BYTES.get(architecture)
    if budget is not None and needed > budget:
        return f"its tiles take {needed} bytes of shared memory, and a program on {architecture} has {budget}"
    return None


def _entries(operation: str, path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT or content["operation"] != operation:
            raise ValueError(f"format {content['format']!r} of operation {content['operation']!r}")
        entries = content["entries"]
        if not isinstance(entries, list):
            raise TypeError("entries is not a list")
    except (OSError, ValueError, KeyError, TypeError) as error:
        _warn(path, f"{type(error).__name__}: {error}")
        return []
    return entries


def _with(table: Any, entry: Any, space: Space, path: Path) -> Any:
    """The table with an entry's configuration in its cell, or as it is, with a warning."""
    problem: str | None
    try:
        keys = [entry[name] for name in ("architecture", "precision", "size") if entry.get(name) is not None]
        shipped: Any = table
        for key in keys:
            shipped = shipped[key]
        if isinstance(shipped, Mapping) or set(entry["configuration"]) != set(asdict(shipped)):
            raise ValueError("it does not have the fields of a cell of this table")
        configuration = replace(shipped, **entry["configuration"])
        problem = problem_with(configuration, shipped, space, keys[0], keys[1])
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
    if problem is not None:
        _warn(path, f"entry {_shown(entry)}: {problem}")
        return table
    return _replaced(table, keys, configuration)


def _replaced(table: Any, keys: Sequence[str], value: Any) -> Any:
    if not keys:
        return value
    return {**table, keys[0]: _replaced(table[keys[0]], keys[1:], value)}


def _shown(entry: Any) -> str:
    if not isinstance(entry, dict):
        return repr(entry)[:80]
    return " ".join(str(entry.get(name)) for name in ("architecture", "precision", "size"))


def _power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


def _warn(path: Path, what: str) -> None:
    warnings.warn(f"{path}: {what}; the shipped configuration stays", UserWarning, stacklevel=2)
