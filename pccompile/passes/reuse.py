"""Do not compute again what has not changed."""

from __future__ import annotations

from dataclasses import replace

from pccompile.ir.grammar import Action, Kind, Program, Span, Update

__all__ = ["reuse"]

WHY = "a prediction whose parents have not moved, and a loss whose prediction has not moved, would come out the same"


def reuse(program: Program) -> Program:
    """Predict(i) runs first and while its parents move; an output's Compare, while the loss's prediction does."""
    schedule: list[Update] = []
    predicted: dict[str, list[Update]] = {}
    for vertex in program.vertices:
        for update in program.updates.get((Action.PREDICT, vertex.name), ()):
            predicted.setdefault(vertex.name, []).extend(_while_parents_move(program, update, predicted))
    for update in program.schedule:
        if update.action is Action.PREDICT:
            if update == program.updates[(Action.PREDICT, update.vertex)][0]:
                schedule.extend(predicted[update.vertex])
        elif update.action is Action.COMPARE and program.vertex(update.vertex).kind is Kind.OUTPUT:
            schedule.extend(_while_loss_moves(program, update, predicted))
        else:
            schedule.append(update)
    return program.after("reuse", WHY, schedule)


def _while_parents_move(program: Program, update: Update, predicted: dict[str, list[Update]]) -> list[Update]:
    """The first run, and the runs between the first and the last step at which a parent's value is new."""
    moves = []
    for parent in program.parents(update.vertex):
        for action in (Action.INFER, Action.DESCEND):
            moves += [mover.span.later(1) for mover in program.updates.get((action, parent.name), ())]
        if parent.follows:
            moves += [run.span for run in predicted.get(parent.name, ())]
    return _first_and(update, moves)


def _while_loss_moves(program: Program, update: Update, predicted: dict[str, list[Update]]) -> list[Update]:
    losses = [child.name for child in program.children(update.vertex) if child.kind is Kind.LOSS]
    return _first_and(update, [run.span for loss in losses for run in predicted.get(loss, ())])


def _first_and(update: Update, changes: list[Span]) -> list[Update]:
    """The update in its first step, and from the first to the last step at which a change is visible."""
    first = Span(update.span.start, update.span.start + 1)
    if not changes:
        return [replace(update, span=first)]
    start = max(min(change.start for change in changes), first.stop)
    stop = min(max(change.stop for change in changes), update.span.stop)
    if start == first.stop:
        return [replace(update, span=Span(first.start, max(stop, first.stop)))]
    later = Span(start, stop)
    return [replace(update, span=span) for span in (first, later) if not span.empty]
