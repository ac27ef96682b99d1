"""A run as markdown: what it ran on, and a table for each rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from bench.steps.results import Results, Row, Status

__all__ = ["TITLES", "as_milliseconds", "markdown", "table_line", "write_between_markers"]

TITLES = {
    "autograd": "Backpropagation (the references)",
    "zil": "Z-IL",
    "fixed": "Fixed prediction, n = 20, η = 0.1",
    "levelled": "Fixed prediction on the levelled graph, n = 20, η = 0.1",
    "strict": "Strict, T = 20",
    "incremental": "Incremental, T = 20",
}
NAME = "results"
MIB = 2**20


def markdown(results: Results) -> str:
    """The whole report."""
    rules = [rule for rule in TITLES if any(row.rule == rule for row in results.rows)]
    parts = [_machine(results), *(_section(results, rule) for rule in rules), _troubles(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_between_markers(path: Path, text: str, name: str = NAME) -> None:
    """Replace what stands between the markers `<!-- NAME -->` and `<!-- end of NAME -->` of a page.

    Raises:
        ValueError: the page has no such place.
    """
    opening, closing = f"<!-- {name} -->", f"<!-- end of {name} -->"
    page = path.read_text(encoding="utf-8")
    before, begin, rest = page.partition(opening)
    _, end, after = rest.partition(closing)
    if not begin or not end:
        raise ValueError(f"{path} has no {opening} ... {closing}")
    path.write_text(f"{before}{begin}\n\n{text}\n{end}{after}", encoding="utf-8")


def _machine(results: Results) -> str:
    machine, versions = results.machine, results.versions
    facts = [
        machine.get("gpu"),
        machine["processor"],
        f"{machine['cores']} cores, {machine['threads']} threads used",
        f"{machine['memory_bytes'] / 2**30:.0f} GiB",
        machine["system"],
        f"Python {machine['python']}",
        *(f"{label} {machine[key]}" for key, label in (("cuda", "CUDA"), ("driver", "driver")) if machine.get(key)),
        *(f"{name} {version}" for name, version in versions.items() if name != "commit"),
        f"commit {versions['commit']}" if "commit" in versions else None,
    ]
    ceilings = ", ".join(f"{facts.name} {facts.ceiling / 1e9:.0f}" for facts in results.models)
    dtypes = ", ".join(dict.fromkeys(facts.dtype for facts in results.models)) or "float32"
    return (
        f"`{results.command}`, {results.date}, {results.seconds / 60:.0f} minutes\n\n"
        f"{', '.join(filter(None, facts))}. {dtypes}.{_load(machine.get('load_average'))}\n\n"
        f"GFLOP/s of a large `torch.mm`, measured with each model: {ceilings}."
    )


def _load(average: float | None) -> str:
    return "" if average is None else f" Load average of the machine before the run: {average:.1f}."


Column = tuple[str, Callable[[Results, Row], str]]


def _columns() -> list[Column]:
    return [
        ("ms a step", lambda results, row: as_milliseconds(row.median)),
        ("quartiles", lambda results, row: _quartiles(row)),
        ("× autograd", lambda results, row: _ratio(results.ratio(row, results.eager(row.model)))),
        ("× torch.compile", lambda results, row: _ratio(results.ratio(row, results.compiled(row.model)))),
        ("peak MiB", lambda results, row: "" if row.peak_bytes is None else f"{row.peak_bytes / MIB:.2f}"),
        ("peak × autograd", lambda results, row: _ratio(_memory_ratio(results, row))),
        ("launches", lambda results, row: "" if row.launches is None else f"{row.launches}"),
        ("kernels", lambda results, row: "" if row.kernels is None else f"{row.kernels}"),
        ("first step, cold s", lambda results, row: "" if row.cold_seconds is None else f"{row.cold_seconds:.1f}"),
        ("first step, warm s", lambda results, row: "" if row.warm_seconds is None else f"{row.warm_seconds:.1f}"),
        ("of torch.mm", lambda results, row: _share(results.share_of_ceiling(row))),
        ("gradients", lambda results, row: _agreement(row)),
    ]


def _section(results: Results, rule: str) -> str:
    rows = [row for row in results.rows if row.rule == rule]
    cells = [(title, [cell(results, row) for row in rows]) for title, cell in _columns()]
    cells = [(title, column) for title, column in cells if any(column)]  # what nobody has is no column
    left = [("model", [row.model for row in rows]), ("run by", [row.backend for row in rows])]
    header = [title for title, _ in left + cells]
    lines = [table_line(header), table_line(["---"] * 2 + ["---:"] * (len(header) - 2))]
    lines += [table_line(line) for line in zip(*(column for _, column in left + cells), strict=True)]
    return f"### {TITLES[rule]}\n\n" + "\n".join(lines)


def _troubles(results: Results) -> str:
    rows = [row for row in results.rows if row.reason]
    if not rows:
        return ""
    lines = [table_line((row.model, row.rule, row.backend, row.status.value, row.reason or "")) for row in rows]
    return "\n".join(
        [
            "### What did not work",
            "",
            table_line(("model", "rule", "run by", "", "why")),
            table_line(["---"] * 5),
            *lines,
        ]
    )


def table_line(cells: Iterable[object]) -> str:
    """A row of a markdown table."""
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def as_milliseconds(seconds: float | None) -> str:
    """Three figures; nothing for what was not measured."""
    if seconds is None:
        return ""
    return f"{1e3 * seconds:.0f}" if seconds >= 0.1 else f"{1e3 * seconds:#.3g}"


def _quartiles(row: Row) -> str:
    if row.quartiles is None:
        return ""
    lower, _, upper = row.quartiles
    return f"{as_milliseconds(lower)} to {as_milliseconds(upper)}"


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _memory_ratio(results: Results, row: Row) -> float | None:
    eager = results.eager(row.model)
    if row.peak_bytes is None or eager is None or not eager.peak_bytes:
        return None
    return row.peak_bytes / eager.peak_bytes


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}" if share >= 0.01 else f"{share:.1%}"


def _agreement(row: Row) -> str:
    if row.status is not Status.MEASURED:
        return row.status.value
    if row.agreement is None:
        return ""
    return "bit-equal" if row.agreement.bit_equal else f"{row.agreement.relative_error:.0e}"
