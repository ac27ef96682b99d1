"""Write the page of a program: its data as JSON, put into the template with the scripts and the libraries."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any

from pccompile.inspection.modules import backstage, detail_of, grouping, label_of, opened_first
from pccompile.inspection.timeline import timeline
from pccompile.ir.grammar import Action, Program, Vertex
from pccompile.ir.text import type_of

if TYPE_CHECKING:
    from pccompile.inspection.recording import Frame, Recording

__all__ = ["page", "page_data"]

SCRIPTS = ("layout.js", "model.js", "graph.js", "chart.js", "panel.js", "app.js", "search.js", "controls.js")
LONGEST_CODE = 200_000  # statements; the page of a longer program goes without
ACTIONS = {action: number for number, action in enumerate(Action)}


def page(program: Program, steps: int = 20, title: str = "", recording: Recording | None = None) -> str:
    """The page's HTML; arguments as for `Program.save_html`."""
    data = page_data(program, steps, title, recording)
    parts = {
        "title": escape(data["title"]),
        "style": _read("style.css"),
        # "<" cannot end the script element early, nor open a comment in it
        "program": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "elk": _read("vendor/elk-worker.min.js"),
        "d3": _read("vendor/d3.min.js"),
        "scripts": "\n".join(map(_read, SCRIPTS)),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _read("template.html"))


def page_data(program: Program, steps: int = 20, title: str = "", recording: Recording | None = None) -> dict[str, Any]:
    """What the page knows: vertices of all stages, groups, and for every stage its edges, updates and errors."""
    stages = list(program.stages.values())
    largest = max(stages, key=lambda stage: len(stage.vertices))  # levelled: it has the vertices of every other stage
    groups, hidden = grouping(largest), backstage(largest)
    number = {vertex.name: index for index, vertex in enumerate(largest.vertices)}
    code = _code_by_vertex(program)
    first = opened_first(grouping(program))
    return {
        "title": title or f"{program.rule} program",
        "rule": program.rule,
        "steps": steps,
        "uses_steps": any(u.span.stop.from_end for stage in stages for u in stage.schedule),
        "opened": sorted(first & groups.groups.keys()),
        "groups": [asdict(group) for group in groups.groups.values()],
        "vertices": [
            _vertex(largest, vertex, groups.home[vertex.name], vertex.name in hidden, code.get(vertex.name, []))
            for vertex in largest.vertices
        ],
        "stages": [
            _stage(stage, before, number, steps) for stage, before in zip(stages, [None, *stages[:-1]], strict=True)
        ],
        "recording": _recording(recording, number) if recording is not None and recording.frames else None,
    }


def _vertex(program: Program, vertex: Vertex, home: str, is_backstage: bool, code: list[str]) -> dict[str, Any]:
    return {
        "name": vertex.name,
        "label": label_of(vertex, home),
        "detail": detail_of(vertex),
        "kind": vertex.kind.value,
        "operator": vertex.operator,
        "type": type_of(vertex.components),
        "level": vertex.level,
        "module": vertex.module,
        "source": vertex.source,
        "home": home,
        "backstage": is_backstage,
        "learned": [] if vertex.clamped else [parent.name for parent in program.learned(vertex.name)],
        "code": code,
    }


def _stage(stage: Program, before: Program | None, number: dict[str, int], steps: int) -> dict[str, Any]:
    """A stage; vertices and edges are left out where they are those of the stage before."""
    times = timeline(stage, steps)
    same = before is not None and before.graph is stage.graph
    updates = [
        [number[update.vertex], ACTIONS[update.action], start, stop, _text(update)]
        for update, (start, stop) in times.runs.items()
    ]
    return {
        "name": stage.name,
        "why": stage.why,
        "length": times.length,
        "vertices": None if same else [number[vertex.name] for vertex in stage.vertices],
        "edges": None if same else [[number[a], number[b]] for a, b in stage.graph.edges],
        "updates": sorted(updates, key=lambda update: (update[0], update[1], update[2])),
        "errors": [[number[name], first, until] for name, (first, until) in times.errors.items()],
    }


def _text(update: Any) -> str:
    return f"{update.span}" + (f" gain {update.gain}" if update.gain != "1" else "")


def _code_by_vertex(program: Program) -> dict[str, list[str]]:
    """The lines of the lowered program by the vertex after which they name their result, or its beginning."""
    found: dict[str, list[str]] = {}
    if _statements(program) > LONGEST_CODE:
        return found
    names = {"".join(c if c.isalnum() and c.isascii() else "_" for c in v.name): v.name for v in program.vertices}
    for line in program.code.splitlines():
        assigned = re.match(r"    (\w+) = ", line)
        if assigned is None:
            continue
        statement = re.sub(r";  (\w+ = )+None$", "", line.strip())
        word = assigned[1]
        owner = next((names[word[:end]] for end in _ends(word) if word[:end] in names), None)
        if owner is not None:
            found.setdefault(owner, []).append(statement)
    return found


def _statements(program: Program) -> int:
    """About how many statements the program lowers to: a literal one writes every update in every step anew."""
    times = sorted({time for update in program.schedule for time in (update.span.start, update.span.stop)})
    position = {time: index for index, time in enumerate(times)}
    return sum(position[update.span.stop] - position[update.span.start] for update in program.schedule)


def _ends(word: str) -> list[int]:
    """Where a vertex's identifier can end in a variable's name, longest first."""
    return [len(word), *sorted((match.start() for match in re.finditer("_", word)), reverse=True)]


def _recording(recording: Recording, number: dict[str, int]) -> dict[str, Any]:
    return {"frames": [_frame(frame, number) for frame in recording.frames]}


def _frame(frame: Frame, number: dict[str, int]) -> dict[str, Any]:
    norms = [norm for series in frame.errors.values() for norm in series if norm > 0 and math.isfinite(norm)]
    return {
        "energy": [_finite(value) for value in frame.energy],
        "errors": {
            str(number[name]): [_finite(norm) for norm in series]
            for name, series in frame.errors.items()
            if name in number
        },
        "smallest": min(norms, default=0.0),
        "largest": max(norms, default=0.0),
    }


def _finite(value: float) -> float | None:
    """Six digits are more than a picture shows; null stands for what is not there."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _read(name: str) -> str:
    return (resources.files("pccompile.inspection.page") / name).read_text(encoding="utf-8")
