"""Training steps that were timed, each figure beside its target; what is missing, with the command that measures it."""

from __future__ import annotations

from collections.abc import Mapping

from bench.gpu.parts import not_measured, timed
from bench.gpu.targets import AUTOGRAD, CEILING, COMPILED, JPC, time_target
from bench.gpu.training import BACKENDS
from bench.steps.report import TITLES, as_milliseconds, table_line
from bench.steps.results import Results, Row

__all__ = ["time_table"]

FIGURES = (AUTOGRAD, COMPILED, JPC, CEILING)
HEADER = ("model", "rule", "quickest back end", "ms a step", *FIGURES, "rest")
ALIGNED = (*["---"] * 3, *["---:"] * (1 + len(FIGURES)), "---")


def time_table(measured: Mapping[str, Results]) -> str:
    """A line for each model and rule.

    Args:
        measured: what was measured, by part.
    """
    lines = [_line(model, rule, part, measured.get(part)) for model, rule, part in timed()]
    return "\n".join(map(table_line, (HEADER, ALIGNED, *lines)))


def _line(model: str, rule: str, part: str, results: Results | None) -> list[str]:
    rows = [row for row in results.rows if (row.model, row.rule) == (model, rule) and row.seconds] if results else []
    best = min((row for row in rows if row.backend in BACKENDS), key=_median, default=None)
    if results is None or best is None:
        targets = ["" if (target := time_target(model, rule, name)) is None else str(target) for name in FIGURES]
        return [model, TITLES[rule], not_measured(part), "", *targets, ""]
    others = ", ".join(f"{row.backend} {as_milliseconds(row.median)}" for row in rows if row is not best)
    figures = _figures(results, best)
    cells = [_cell(model, rule, name, figures[name], part) for name in FIGURES]
    return [model, TITLES[rule], best.backend, as_milliseconds(best.median), *cells, others]


def _figures(results: Results, row: Row) -> dict[str, float | None]:
    """What there is to say of a row; None where what it is compared with was not measured."""
    jpc = next((r for r in results.rows if (r.model, r.rule, r.backend) == (row.model, row.rule, "jpc")), None)
    return {
        AUTOGRAD: results.ratio(row, results.eager(row.model)),
        COMPILED: results.ratio(row, results.compiled(row.model)),
        JPC: results.ratio(row, jpc),
        CEILING: results.share_of_ceiling(row),
    }


def _cell(model: str, rule: str, name: str, figure: float | None, part: str) -> str:
    target = time_target(model, rule, name)
    if figure is None:
        return "" if target is None else f"{not_measured(part)} ({target})"
    shown = f"{figure:.0%}" if name == CEILING else f"{figure:.2f}"
    return shown if target is None else f"{shown} ({target}: {'met' if target.is_met(figure) else 'not met'})"


def _median(row: Row) -> float:
    return row.median if row.median is not None else float("inf")
