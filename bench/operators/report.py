"""The sweep's table, and what is not exact."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.operators.sweep import Result
from bench.operators.verdict import TOLERANCE, Verdict

__all__ = ["MEANING", "counts", "show"]

MEANING = {
    Verdict.EXACT: "bit-equal to eager autograd",
    Verdict.WITHIN_TOLERANCE: f"relative difference of at most {TOLERANCE:.0e} in float32",
    Verdict.REFUSED: "an error says why",
    Verdict.NOT_APPLICABLE: "eager autograd gives nothing to compare with",
    Verdict.WRONG: "anything else",
}


def counts(results: list[Result], verdict: Verdict) -> tuple[int, int]:
    """How many entries, and how many samples, got this verdict."""
    samples = sum(outcome.verdict is verdict for result in results for outcome in result.outcomes)
    return sum(result.verdict is verdict for result in results), samples


def show(results: list[Result]) -> None:
    """Print the counts, and a line for every entry that is not exact."""
    console = Console()
    table = Table(title=f"{len(results)} operators and modules", show_footer=True)
    table.add_column("verdict", footer="all")
    table.add_column("entries", justify="right", footer=str(len(results)))
    table.add_column("samples", justify="right", footer=str(sum(len(result.outcomes) for result in results)))
    table.add_column("meaning")
    for verdict, meaning in MEANING.items():
        table.add_row(_words(verdict), *map(str, counts(results, verdict)), meaning)
    details = Table("entry", "verdict", "samples", "reason")
    for verdict in (Verdict.WITHIN_TOLERANCE, Verdict.REFUSED, Verdict.NOT_APPLICABLE, Verdict.WRONG):
        for result in results:
            if result.verdict is verdict:
                for reason, count in result.reasons(verdict).most_common(3):
                    count_of = f"{count} of {len(result.outcomes)}"
                    details.add_row(escape(result.name), _words(verdict), count_of, escape(reason))
    if details.row_count:
        console.print(details)
    console.print(table)


def _words(verdict: Verdict) -> str:
    return verdict.name.replace("_", " ").lower()
