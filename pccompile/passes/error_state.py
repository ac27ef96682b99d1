"""Keep the error, not the value, as the state of a vertex whose prediction is fixed while it moves."""

from __future__ import annotations

from pccompile.ir.grammar import Action, Program, Update

__all__ = ["error_state"]

WHY = "where mu is fixed, moving v and comparing it with mu is one step on e = v - mu, without the cancellation"


def error_state(program: Program) -> Program:
    """Infer(i) and Compare(i) become Relax(i) where no prediction of i or of a reader is computed after v_i moves."""
    fixed = {vertex.name for vertex in program.vertices if vertex.moves and _is_fixed(program, vertex.name)}
    schedule: list[Update] = []
    for update in program.schedule:
        if update.vertex not in fixed or update.action not in (Action.INFER, Action.COMPARE):
            schedule.append(update)
        elif update.action is Action.INFER:
            schedule.append(Update(Action.RELAX, update.vertex, update.span, exact=update.exact))
    return program.after("error state", WHY, schedule)


def _is_fixed(program: Program, name: str) -> bool:
    moves = program.updates.get((Action.INFER, name), ())
    if not moves:
        return True
    first_moved = min(update.span.start for update in moves) + 1
    readers = [name, *program.graph.successors(name)]
    return all(
        update.span.stop <= first_moved
        for reader in readers
        for update in program.updates.get((Action.PREDICT, reader), ())
    )
