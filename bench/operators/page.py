"""docs/coverage.md: a hand-written introduction (introduction.md), then what the sweep found."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path

import torch

from bench.operators.report import MEANING, counts
from bench.operators.sweep import Result
from bench.operators.verdict import Verdict

__all__ = ["render", "verdicts_on", "write"]

_TITLES = {
    Verdict.REFUSED: "Refused",
    Verdict.WRONG: "Wrong",
    Verdict.WITHIN_TOLERANCE: "Within tolerance",
    Verdict.NOT_APPLICABLE: "Not applicable",
    Verdict.EXACT: "Exact",
}


def write(path: Path, results: list[Result], samples: int) -> None:
    """Write the page."""
    path.write_text(render(results, samples), encoding="utf-8")


def render(results: list[Result], samples: int) -> str:
    """The page: the introduction, the counts, and every entry under its verdict.

    Args:
        results: of the whole sweep.
        samples: the limit of samples an entry that it ran with.
    """
    introduction = Path(__file__).with_name("introduction.md").read_text(encoding="utf-8")
    sections = [_section(title, [r for r in results if r.verdict is verdict]) for verdict, title in _TITLES.items()]
    lines = [introduction.rstrip(), "", *_counts(results, samples), *chain.from_iterable(sections)]
    return "\n".join(lines).rstrip() + "\n"


def verdicts_on(page: str) -> dict[str, Verdict]:
    """The verdict on each entry that a page lists."""
    found: dict[str, Verdict] = {}
    for verdict, title in _TITLES.items():
        body = page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
        found |= dict.fromkeys(re.findall(r"^(?:\| )?`(\S+)`", body, re.MULTILINE), verdict)
    return found


def _counts(results: list[Result], samples: int) -> list[str]:
    version = torch.__version__.partition("+")[0]
    total = sum(len(result.outcomes) for result in results)
    rows = [
        f"| {_TITLES[v].lower()} | {counts(results, v)[0]} | {counts(results, v)[1]} | {MEANING[v]} |" for v in MEANING
    ]
    return [
        "## Counts",
        "",
        f"PyTorch {version} on the CPU, float32, at most {samples} samples an entry and as many in place. "
        "`python -m bench operators --write docs/coverage.md` wrote what follows.",
        "",
        "| verdict | entries | samples | |",
        "|---|---:|---:|---|",
        *rows,
        f"| all | {len(results)} | {total} | |",
        "",
    ]


def _section(title: str, results: list[Result]) -> list[str]:
    """A table with the reasons; for what is exact a list of names is enough."""
    lines = [f"## {title}", ""]
    if not results:
        return [*lines, "None.", ""]
    if all(result.verdict is Verdict.EXACT for result in results):
        return [*lines, *(f"`{result.name}`" for result in results), ""]
    return [*lines, "| entry | samples | reason |", "|---|---:|---|", *(_row(result) for result in results), ""]


def _row(result: Result) -> str:
    reasons = result.reasons(result.verdict)
    text = "; ".join(re.sub(r"\s+", " ", reason).replace("|", "\\|") for reason in list(reasons)[:2])
    return f"| `{result.name}` | {reasons.total()} of {len(result.outcomes)} | {text} |"
