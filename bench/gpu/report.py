"""What the campaign found, as JSON and markdown; what is missing is named, with the command that measures it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.gpu.launch_counts import BACKENDS, COUNTED, RULES
from bench.gpu.parts import all_parts
from bench.gpu.state import State
from bench.gpu.training import MEASURED
from bench.gpu.work import Status
from bench.steps.report import TITLES, as_milliseconds, table_line, write_between_markers
from bench.steps.results import Results, Row, load

__all__ = ["MARKER", "section", "write_report"]

MARKER = "gpu results"
COMMAND = "python -m bench gpu"


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
        "### Training steps\n\n" + _times(measured),
        "### Kernels launched by a step\n\n" + _launches(folder if state is not None else None),
    ]
    if state is not None and (tuned := _tuned(folder)):
        parts.append("### Tuned configurations\n\n" + tuned)
    return "\n\n".join(parts) + "\n"


def _missing(part: str) -> str:
    return f"not measured: `{COMMAND} --part {part}`"


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
            why = found["message"][:300] if found else _missing(part.name)
            rows.append(table_line((part.name, found["status"] if found else "has not run", why)))
    if not rows:
        return "### Checks\n\nAll passed."
    if state is None or not state.parts:
        return f"### Checks\n\nHave not run: `{COMMAND} --part check`."
    warning = "\n\n**What follows was measured although checks had not passed.**" if state.ignored else ""
    return "\n".join([*lines, *rows]) + warning


def _times(measured: dict[str, Results]) -> str:
    header = ("model", "rule", "quickest back end", "ms a step", "× autograd", "× torch.compile", "of torch.mm", "rest")
    lines = [table_line(header), table_line(["---"] * 3 + ["---:"] * 4 + ["---"])]
    for part in all_parts():
        if part.group != "time":
            continue
        results = measured.get(part.name)
        name = next(m for m in sorted(MEASURED, key=len, reverse=True) if part.name.startswith(f"time-{m}"))
        for rule in RULES:
            if part.name in (f"time-{name}", f"time-{name}-{rule}"):
                lines.append(table_line(_time_cells(name, rule, part.name, results)))
    return "\n".join(lines)


def _time_cells(model: str, rule: str, part: str, results: Results | None) -> list[str]:
    rows = [row for row in results.rows if row.rule == rule and row.seconds] if results else []
    ours = [row for row in rows if row.backend in ("eager", *BACKENDS)]
    if results is None or not ours:
        return [model, TITLES[rule], _missing(part), "", "", "", "", ""]
    best = min(ours, key=_median)
    others = ", ".join(f"{row.backend} {as_milliseconds(row.median)}" for row in rows if row is not best)
    share = results.share_of_ceiling(best)
    ratios = [results.ratio(best, other) for other in (results.eager(model), results.compiled(model))]
    return [
        model,
        TITLES[rule],
        best.backend,
        as_milliseconds(best.median),
        *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
        "" if share is None else f"{share:.0%}",
        others,
    ]


def _median(row: Row) -> float:
    return row.median if row.median is not None else float("inf")


def _launches(folder: Path | None) -> str:
    header = ("model", "rule", "back end", "kernels", "target", "", "launch calls")
    lines = [table_line(header), table_line(["---"] * 3 + ["---:", "---:", "---", "---:"])]
    for model in COUNTED:
        items = _record(folder, f"launches-{model}").get("items", {}) if folder else {}
        if not items:
            lines.append(table_line((model, "", _missing(f"launches-{model}"), "", "", "", "")))
        for case, item in items.items():
            rule, backend = case.split(" ", 1)
            lines.append(table_line((model, rule, backend, *_launch_cells(item))))
    return "\n".join(lines)


def _launch_cells(item: dict[str, Any]) -> tuple[str, str, str, str]:
    if "raised" in item:
        return ("", "", item["raised"][:200], "")
    words = {True: "met", False: "not met", None: "no target"}
    wanted = "" if item["target"] is None else f"≤ {item['target']}"
    return str(item["kernels"]), wanted, words[item["met"]], str(item["launches"])


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
