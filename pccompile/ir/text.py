"""The printer: a program as a typed table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pccompile.ir.grammar import Component, Kind, Program, Update, Vertex

__all__ = ["table", "type_of"]

COLUMNS = ("vertex", "kind", "operator", "type", "level", "reads", "updates", "source")


def table(program: Program) -> str:
    """One row a vertex in the order of the feed-forward pass, after a line that counts vertices and updates."""
    rows = [_row(program, vertex) for vertex in program.vertices]
    return "\n".join([header(program), *aligned([COLUMNS, *rows])])


def header(program: Program) -> str:
    """Rule, stage and counts in one line."""
    kinds = [vertex.kind for vertex in program.vertices]
    counts = ", ".join(f"{kinds.count(kind)} {kind.value}" for kind in Kind if kind in kinds)
    return f"{program.rule} program, stage {program.name!r}: {counts}; {len(program.schedule)} updates"


def type_of(components: Iterable[Component]) -> str:
    """Dtypes and shapes: "f32[300, 10, 26, 26]"; components that inference never moves are in parentheses."""
    return " ".join(text if part.free else f"({text})" for part in components for text in [_type(part)])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def spans(updates: Iterable[Update]) -> str:
    """The updates of one vertex without its name: "Predict[0, 1) Learn[3, 4)"."""
    return " ".join(
        f"{update.action.value}{update.span}" + (f"*{update.gain}" if update.gain != "1" else "") for update in updates
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


def _type(part: Component) -> str:
    return f"{_SHORT.get(part.dtype, part.dtype)}{list(part.shape)}"


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
