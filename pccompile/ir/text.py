"""The printer: a program as a typed table, for readers and, in full, for the parser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import astuple

from pccompile.ir.grammar import Component, Kind, Program, Update, Vertex

__all__ = ["COLUMNS", "FULL_COLUMNS", "aligned", "blocks", "full_table", "header", "spans", "table", "type_of"]

COLUMNS = ("vertex", "kind", "operator", "type", "level", "reads", "updates", "source")
FULL_COLUMNS = ("vertex", "kind", "order", *COLUMNS[2:-1], "nodes", "module", "work", "source")

LONG = 60  # rows; shorter programs are printed whole
LONGEST_BLOCK = 250  # vertices


def table(program: Program) -> str:
    """One row a vertex in the order of the feed-forward pass, after a line that counts vertices and updates.

    In a long program a block that repeats is shown once, with a line that says what the others are.
    """
    vertices = program.vertices
    lines = aligned([COLUMNS, *(_row(program, vertex) for vertex in vertices)])
    shown = [header(program), lines[0]]
    for start, length, times in blocks(program):
        shown += lines[1 + start : 1 + start + length]
        if times > 1:
            shown.append(_fold(vertices[start + length : start + length * times], length))
    return "\n".join(shown)


def full_table(program: Program) -> str:
    """The whole program, every field of every vertex; `Program.parse` reads it back."""
    rows = [_full_row(program, vertex) for vertex in program.vertices]
    observed = ", observed" if program.observed else ""
    first = f"{program.rule} program, stage {json.dumps(program.name)}{observed}: {json.dumps(program.why)}"
    return "\n".join([first, *aligned([FULL_COLUMNS, *rows])])


def header(program: Program) -> str:
    """Rule, stage and counts in one line."""
    kinds = [vertex.kind for vertex in program.vertices]
    counts = ", ".join(f"{kinds.count(kind)} {kind.value}" for kind in Kind if kind in kinds)
    return f"{program.rule} program, stage {program.name!r}: {counts}; {len(program.schedule)} updates"


def blocks(program: Program) -> list[tuple[int, int, int]]:
    """The rows as (first row, rows of a block, how often it repeats); a repetition is one in all but its numbers.

    A program of fewer than 60 vertices is one block.
    """
    vertices = program.vertices
    if len(vertices) < LONG:
        return [(0, len(vertices), 1)]
    shapes = [_shape(program, vertex) for vertex in vertices]
    found: list[tuple[int, int, int]] = []
    plain = row = 0
    while row < len(shapes):
        length, times = _repetition(shapes, row)
        if (times - 1) * length < 3:
            row += 1
            continue
        if row > plain:
            found.append((plain, row - plain, 1))
        found.append((row, length, times))
        plain = row = row + length * times
    return [*found, (plain, len(shapes) - plain, 1)] if plain < len(shapes) else found


def type_of(components: Iterable[Component]) -> str:
    """Dtypes and shapes: "f32[300, 10, 26, 26]"; components that inference never moves are in parentheses."""
    return " ".join(text if part.free else f"({text})" for part in components for text in [_type(part)])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def spans(updates: Iterable[Update], exact: bool = False) -> str:
    """The updates of one vertex without its name: "Predict[0, 1) Learn[3, 4)"; `exact` ones marked by "!" if asked."""
    return " ".join(
        f"{update.action.value}{update.span}"
        + (f"*{update.gain}" if update.gain != "1" else "")
        + ("!" if exact and update.exact else "")
        for update in updates
    )


def _row(program: Program, vertex: Vertex) -> tuple[str, ...]:
    return (
        vertex.name,
        vertex.kind.value,
        vertex.operator,
        type_of(vertex.components),
        "" if vertex.level is None else str(vertex.level),
        ", ".join(parent.name for parent in program.parents(vertex.name)),
        spans(program.updates_of(vertex.name)),
        vertex.source,
    )


def _full_row(program: Program, vertex: Vertex) -> tuple[str, ...]:
    components = (f"{_word(part.node)}:{_type(part)}" for part in vertex.components)
    free = (part.free for part in vertex.components)
    return (
        _word(vertex.name),
        vertex.kind.value + (" wanted" if vertex.requires_grad else ""),
        str(vertex.order),
        _word(vertex.operator),
        " ".join(text if moves else f"({text})" for text, moves in zip(components, free, strict=True)),
        "" if vertex.level is None else str(vertex.level),
        " ".join(_read(program, parent, vertex) for parent in program.parents(vertex.name)),
        spans(program.updates_of(vertex.name), exact=True),
        " ".join(map(_word, vertex.nodes)),
        _word(vertex.module) if vertex.module else "",
        "/".join(map(str, astuple(vertex.work))) if any(astuple(vertex.work)) else "",
        json.dumps(vertex.source) if vertex.source else "",
    )


def _read(program: Program, parent: Vertex, child: Vertex) -> str:
    """The parent's name; with the components that are read, where these are not all, in order."""
    reads = program.graph.edges[parent.name, child.name]["reads"]
    part = "" if reads == tuple(c.node for c in parent.components) else f"({' '.join(map(_word, reads))})"
    return f"{_word(parent.name)}{part}"


def _word(text: str) -> str:
    """The text itself if it is one plain word, else as a JSON string."""
    return text if re.fullmatch(r"[\w.@+*/<>=-]+", text, re.ASCII) else json.dumps(text)


def _type(part: Component) -> str:
    return f"{_SHORT.get(part.dtype, part.dtype)}{list(part.shape)}"


def _shape(program: Program, vertex: Vertex) -> tuple[object, ...]:
    """What two vertices of repeated blocks have in common: everything but numbers in names, levels and sources."""
    actions = tuple(update.action for update in program.updates_of(vertex.name))
    name = re.sub(r"\d+", "#", vertex.name)
    return name, vertex.kind, vertex.operator, type_of(vertex.components), program.graph.in_degree(vertex.name), actions


def _repetition(shapes: Sequence[object], start: int) -> tuple[int, int]:
    """The shortest block at `start` that repeats at once, and how often it stands there."""
    for length in range(1, min(LONGEST_BLOCK, (len(shapes) - start) // 2) + 1):
        if shapes[start] != shapes[start + length]:
            continue
        times = 1
        block = shapes[start : start + length]
        while shapes[start + times * length : start + (times + 1) * length] == block:
            times += 1
        if times > 1 and (times - 1) * length >= 3:
            return length, times
    return 1, 1


def _fold(vertices: Sequence[Vertex], length: int) -> str:
    times = len(vertices) // length
    what = "like this one" if length == 1 else f"of {length} vertices like these"
    blocks_word = "block" if times == 1 else "blocks"
    names = f"{vertices[0].name} to {vertices[-1].name}"
    return f"    ... {times} more {blocks_word} {what}: {names} (verbose=True shows them)"


_SHORT = {
    "float64": "f64",
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "int64": "i64",
    "int32": "i32",
    "bool": "b8",
    "complex64": "c64",
    "complex128": "c128",
}
LONG_DTYPES = {short: long for long, short in _SHORT.items()}
