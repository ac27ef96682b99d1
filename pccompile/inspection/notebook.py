"""A program as an HTML table for notebooks: the typed table, with repeated blocks that open on a click."""

from __future__ import annotations

from html import escape

from pccompile.ir.grammar import Kind, Program, Vertex
from pccompile.ir.text import blocks, header, spans, type_of

__all__ = ["notebook_table"]

COLUMNS = ("vertex", "kind", "operator", "type", "level", "updates", "source")

# Inherits the notebook's text and background, so that it is right on a light and on a dark one.
STYLE = """
<style>
.pccompile { overflow-x: auto; font-size: 12px }
.pccompile table { border-collapse: collapse; font-variant-numeric: tabular-nums }
.pccompile td, .pccompile th { text-align: left; padding: 2px 10px 2px 0; white-space: nowrap; background: none }
.pccompile th { border-bottom: 1px solid #8888; font-weight: 600 }
.pccompile td:first-child { font-family: monospace }
.pccompile .kind { border-left: 3px solid var(--kind); padding-left: 5px }
.pccompile summary { cursor: pointer; padding: 3px 0 }
.pccompile .dim { opacity: .65 }
</style>
"""

KIND_COLOURS = {
    Kind.HIDDEN: "#3b7dd8",
    Kind.DELAY: "#a97b1e",
    Kind.OUTPUT: "#7a4fd0",
    Kind.LOSS: "#c9452f",
    Kind.PARAMETER: "#2f8f5b",
}


def notebook_table(program: Program) -> str:
    """Everything the program says is escaped; a repeated block is shown once and the others are in a <details>."""
    parts = [f"<div><b>{escape(header(program))}</b></div>"]
    vertices = program.vertices
    for start, length, times in blocks(program):
        shown, more = vertices[start : start + length], vertices[start + length : start + length * times]
        parts.append(_table(program, shown))
        if more:
            what = f"{times - 1} more of {length} like these: {more[0].name} to {more[-1].name}"
            parts.append(f"<details><summary>{escape(what)}</summary>{_table(program, more)}</details>")
    return f'{STYLE}<div class="pccompile">{"".join(parts)}</div>'


def _table(program: Program, vertices: tuple[Vertex, ...]) -> str:
    head = "".join(f"<th>{column}</th>" for column in COLUMNS)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(_row(program, v) for v in vertices)}</tbody></table>"


def _row(program: Program, vertex: Vertex) -> str:
    colour = KIND_COLOURS.get(vertex.kind, "#888")
    cells = (
        escape(vertex.name),
        f'<span class="kind" style="--kind: {colour}">{vertex.kind.value}</span>',
        escape(vertex.operator),
        escape(type_of(vertex.components)),
        "" if vertex.level is None else str(vertex.level),
        escape(spans(program.updates_of(vertex.name))),
        f'<span class="dim">{escape(vertex.source)}</span>',
    )
    reads = escape("reads " + (", ".join(parent.name for parent in program.parents(vertex.name)) or "nothing"))
    return f'<tr title="{reads}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
