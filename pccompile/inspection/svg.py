"""A program as an SVG picture, laid out by ELK (the Eclipse layout kernel), which runs in V8 inside this process."""

from __future__ import annotations

import functools
import importlib
import json
import threading
from collections.abc import Collection
from dataclasses import asdict
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from pccompile.errors import MissingPackageError
from pccompile.inspection.dot import FILLS, legal_in_xml
from pccompile.inspection.modules import View, view
from pccompile.ir.grammar import Program

__all__ = ["to_svg"]

LAYOUT_SECONDS = 120

STYLE = """
  .ground { fill: #ffffff } .title { fill: #1c2330 } .name { fill: #1c2330 } .detail { fill: #4a5363 }
  .group { fill: #5b64720a; stroke: #a3abb8 } .edge { fill: none; stroke: #7c8696; stroke-width: 1.2 }
  .arrow { fill: #7c8696 } text { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace }
"""


def to_svg(program: Program, opened: str | Collection[str] = "auto", parameters: bool = False) -> str:
    """SVG text; arguments as for `modules.view`.

    Raises:
        MissingPackageError: mini-racer, which runs the layout, is not installed.
        UsageError: `opened` names no group.
    """
    placed = _layout(view(program, opened, parameters))
    width, height = round(placed["width"]), round(placed["height"]) + 28
    title = escape(f"{program.rule}, stage {program.name}")
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" aria-label="{title}">',
            f"<style>{STYLE}</style>",
            '<marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path class="arrow" d="M0,0 L8,4 L0,8 z"/></marker>',
            f'<rect class="ground" width="{width}" height="{height}"/>',
            f'<text class="title" x="16" y="20" font-size="12">{title}</text>',
            '<g transform="translate(0, 28)">',
            *map(_group, placed["groups"]),
            *(f'<path class="edge" marker-end="url(#arrow)" d="{edge["path"]}"/>' for edge in placed["edges"]),
            *map(_group_label, placed["groups"]),
            *map(_box, placed["nodes"]),
            "</g>",
            "</svg>",
            "",
        ]
    )


def _group(group: dict[str, Any]) -> str:
    x, y, width, height = (round(group[key], 1) for key in ("x", "y", "width", "height"))
    return f'<rect class="group" x="{x}" y="{y}" width="{width}" height="{height}" rx="8"/>'


def _group_label(group: dict[str, Any]) -> str:
    """On a ground of its own, because an edge may pass below it."""
    x, y, width = round(group["x"] + 12, 1), round(group["y"] + 20, 1), 6.8 * len(group["label"]) + 6
    ground = f'<rect class="ground" x="{x - 3}" y="{y - 11}" width="{width:.1f}" height="15" rx="3" opacity=".85"/>'
    return f'{ground}<text class="detail" x="{x}" y="{y}" font-size="11">{_legal(group["label"])}</text>'


def _box(node: dict[str, Any]) -> str:
    fill, outline = FILLS[node["kind"]]
    x, y, width, height = (round(node[key], 1) for key in ("x", "y", "width", "height"))
    corners = f'width="{width}" height="{height}" rx="6" fill="{fill}" stroke="{outline}"'
    behind = f'<rect x="{x + 3}" y="{y + 3}" {corners}/>' if node["vertices"] > 1 else ""
    return (
        f'<g><title>{_legal(node["name"])}</title>{behind}<rect x="{x}" y="{y}" {corners}/>'
        f'<text class="name" x="{x + 13}" y="{y + 17}" font-size="12">{_legal(node["label"])}</text>'
        f'<text class="detail" x="{x + 13}" y="{y + 32}" font-size="10.5">{_legal(node["detail"])}</text></g>'
    )


def _legal(text: str) -> str:
    """Escaped, and without the characters that XML cannot hold."""
    return escape(legal_in_xml(text))


def _layout(seen: View) -> dict[str, Any]:
    """Positions of groups, boxes and edges."""
    with _LOCK:
        placed: dict[str, Any] = json.loads(_engine().eval(f"place({json.dumps(asdict(seen))})"))
    return placed


_LOCK = threading.Lock()


@functools.cache
def _engine() -> Any:
    """A V8 context with ELK and layout.js loaded, and a function `place` from a view to positions, both as JSON.

    ELK believes to be in a web worker: it answers a message by posting one.
    """
    try:
        mini_racer = importlib.import_module("py_mini_racer")
    except ImportError as error:
        raise MissingPackageError(
            f"the layout of an SVG runs in mini-racer: {error}",
            cure='pip install "pccompile[viz]"; or lay out Program.to_dot() with Graphviz',
        ) from error
    page = Path(str(resources.files("pccompile.inspection") / "page"))
    context = mini_racer.MiniRacer()
    context.eval("var self = globalThis, answer = null; self.postMessage = (message) => { answer = message; };")
    context.eval((page / "vendor" / "elk-worker.min.js").read_text(encoding="utf-8") + ";0")
    context.eval((page / "layout.js").read_text(encoding="utf-8") + ";0")
    context.eval("""
        self.onmessage({ data: { id: 0, cmd: "register", algorithms: ["layered"] } });
        function place(view) {
          answer = null;
          self.onmessage({ data: { id: 1, cmd: "layout", graph: elkGraph(view), layoutOptions: {}, options: {} } });
          if (answer.error) throw new Error(JSON.stringify(answer.error));
          const placed = geometry(answer.data, view);
          for (const edge of placed.edges) edge.path = pathThrough(edge.points);
          return JSON.stringify(placed);
        }
        0""")
    return context
