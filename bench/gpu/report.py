"""What the campaign found, as JSON and markdown; what is missing is named, with the command that measures it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.gpu.launch_table import launch_table
from bench.gpu.parts import COMMAND, all_parts, not_measured
from bench.gpu.state import State
from bench.gpu.time_table import time_table
from bench.gpu.work import Status
from bench.steps.report import table_line, write_between_markers
from bench.steps.results import Results, load

__all__ = ["MARKER", "section", "write_report"]

MARKER = "gpu results"


def write_report(folder: Path, page: Path | None = None) -> str:
    """Write results.json and report.md into a campaign's folder, and the section of a page; say where.

    A folder that has nothing gives a page where nothing is measured, and is not made.
    """
    text = section(folder)
    written = []
    if State.read(folder) is not None:
        (folder / "report.md").write_text(f"# A campaign on a GPU\n\n{text}", encoding="utf-8")
        (folder / "results.json").write_text(json.dumps(_collected(folder), indent=1) + "\n", encoding="utf-8")
        written = [f"{folder}/report.md", f"{folder}/results.json"]
    if page is not None:
        write_between_markers(page, text, MARKER)
        written.append(str(page))
    return f"written: {', '.join(written) or 'nothing'}"


def section(folder: Path) -> str:
    """The report: what it ran on, checks, times, launches, tuned tables."""
    state = State.read(folder)
    measured = dict(_results_of(folder)) if state is not None else {}
    parts = [
        _facts(state, measured),
        _checks(state),
        "### Training steps\n\n" + time_table(measured),
        "### Kernels launched by a step\n\n" + launch_table(_counts(folder) if state is not None else {}),
    ]
    if state is not None and (tuned := _tuned(folder)):
        parts.append("### Tuned configurations\n\n" + tuned)
    return "\n\n".join(parts) + "\n"


def _facts(state: State | None, measured: dict[str, Results]) -> str:
    if state is None:
        return f"No GPU has been measured yet: `{COMMAND}` does it, part by part."
    key = state.key
    machine = next((results.machine for results in measured.values()), {})
    facts = [
        key["device"],
        *(f"{label} {machine[name]}" for name, label in _LABELS if machine.get(name)),
        f"torch {key['torch']}",
        f"triton {key['triton']}",
        f"commit {key['commit']}",
        f"sources {key['sources']}",
        f"tuned tables {key['tuned']}" if key["tuned"] else "the shipped tables",
    ]
    return f"`{state.command}`, {state.date}\n\n{', '.join(facts)}."


_LABELS = (("driver", "driver"), ("cuda", "CUDA"), ("hip", "HIP"), ("cudnn", "cuDNN"))


def _checks(state: State | None) -> str:
    lines = ["### Checks", "", table_line(("part", "", "")), table_line(("---", "---", "---"))]
    rows = []
    for part in all_parts():
        if part.group != "check":
            continue
        found = state.parts.get(part.name) if state is not None else None
        if found is None or found["status"] != Status.DONE:
            why = found["message"][:300] if found else not_measured(part.name)
            rows.append(table_line((part.name, found["status"] if found else "has not run", why)))
    if not rows:
        return "### Checks\n\nAll passed."
    if state is None or not state.parts:
        return f"### Checks\n\nHave not run: `{COMMAND} --part check`."
    warning = "\n\n**What follows was measured although checks had not passed.**" if state.ignored else ""
    return "\n".join([*lines, *rows]) + warning


def _counts(folder: Path) -> dict[str, dict[str, Any]]:
    """What the parts that count launches have found, by part."""
    records = {part.name: _record(folder, part.name) for part in all_parts() if part.group == "launches"}
    return {name: record["items"] for name, record in records.items() if record.get("items")}


def _tuned(folder: Path) -> str:
    lines = [
        table_line(("operation", "precision", "size", "time by the shipped one's", "configuration")),
        table_line(["---"] * 3 + ["---:", "---"]),
    ]
    for path in sorted((folder / "parts").glob("tune-*.json")):
        operation = path.stem.removeprefix("tune-").rpartition("-")[0]
        for item in _record(folder, path.stem).get("items", {}).values():
            if "configuration" in item:
                fields = ", ".join(f"{name} {value}" for name, value in item["configuration"].items())
                cells = (operation, item["precision"], item["size"], f"{item['ratio']:.2f}", fields)
                lines.append(table_line(cells))
    return "\n".join(lines) if len(lines) > 2 else ""


def _collected(folder: Path) -> dict[str, Any]:
    """Everything that the parts found, in one piece."""
    state = State.read(folder)
    found = {path.stem: json.loads(path.read_text()) for path in sorted((folder / "parts").glob("*.json"))}
    steps = {name: asdict(results) for name, results in _results_of(folder)}
    head = {} if state is None else {name: value for name, value in vars(state).items() if name != "folder"}
    return {"format": 1, "campaign": head, "parts": found, "steps": steps}


def _results_of(folder: Path) -> Iterator[tuple[str, Results]]:
    """What the parts that time have measured for the present key."""
    for path in sorted((folder / "times").glob("*/results.json")):
        if _record(folder, path.parent.name):
            yield path.parent.name, load(path)


def _record(folder: Path, part: str) -> dict[str, Any]:
    """A part's JSON if it is for the state's key, else nothing."""
    state = State.read(folder)
    try:
        content: dict[str, Any] = json.loads((folder / "parts" / f"{part}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if state is not None and content.get("key") == state.key else {}
