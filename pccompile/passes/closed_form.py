"""Replace the T steps of fixed prediction by one sweep and a gain a level."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from pccompile.ir.grammar import Action, Program, Span, Update

__all__ = ["binomial_tail", "closed_form"]

WHY = (
    "with fixed predictions e_i(T) = P[Binomial(T, eta) >= level(i)] * delta_i when every edge joins consecutive levels"
)


def closed_form(program: Program) -> Program:
    """Relax(i) runs once, with step size 1, as the wavefront passes; Learn(i) follows it, with the gain c(level).

    A program with an edge that skips levels, or with vertices that do not keep their error as state, is left as it is.
    """
    if not _applies(program):
        return program.after("closed form", "does not apply: an edge skips levels", program.schedule)
    return program.after("closed form", WHY, [_once(program, update) for update in program.schedule])


@lru_cache(maxsize=4096)
def binomial_tail(trials: int, probability: float, at_least: int) -> float:
    """P[Binomial(trials, probability) >= at_least]: the factor c(l, n) of the closed form.

    Summed by the recursion of the errors themselves, whose terms are all positive: accurate to rounding.
    """
    if at_least > trials:
        return 0.0
    tail = [1.0] + [0.0] * at_least
    for _ in range(trials):
        for successes in range(at_least, 0, -1):
            tail[successes] += probability * (tail[successes - 1] - tail[successes])
    return tail[at_least]


def _applies(program: Program) -> bool:
    for parent, child in program.graph.edges:
        above, below = program.vertex(parent).level, program.vertex(child).level
        if not program.vertex(parent).clamped and above is not None and below is not None and above - below != 1:
            return False
    return not any(action is Action.INFER for action, _ in program.updates)


def _once(program: Program, update: Update) -> Update:
    level = program.vertex(update.vertex).level or 0
    if update.action is Action.RELAX:
        return replace(update, span=Span.steps(level - 1, level), exact=True)
    if update.action is Action.LEARN:
        level = max(level, 0)
        return replace(update, span=Span.steps(level, level + 1), gain=f"c({level})" if level else "1")
    return replace(update, span=Span.steps(0, 1))
