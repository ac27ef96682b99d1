"""Drop updates whose results no later Learn reads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

from pccompile.ir.check import reads
from pccompile.ir.grammar import Action, Kind, Program, Span, Time, Update

__all__ = ["liveness"]

WHY = "what is not read before the last Learn that depends on it cannot change a gradient"

Quantity = tuple[str, str]  # ("value" | "prediction" | "error", vertex)


def liveness(program: Program) -> Program:
    """Each update runs no later than the last step at which its result is read; one never read is dropped.

    The feed-forward prediction stays: it gives the vertex its value. Where the energy is observed, so do all errors.
    """
    last = _last_runs(program)
    schedule: list[Update] = []
    for update in program.schedule:
        stop = last[update] + 1 if update in last else update.span.start
        if update.action is Action.PREDICT and update.span.start == Time(False, 0):
            stop = max(stop, Time(False, 1))
        if stop.from_end and stop < Time(True, 0):
            stop = update.span.stop  # [0, T) cut to [0, T-1) would split the loop to save one step
        if stop > update.span.start:
            schedule.append(replace(update, span=Span(update.span.start, min(stop, update.span.stop))))
    return program.after("liveness", WHY, schedule)


def _last_runs(program: Program) -> dict[Update, Time]:
    """The last step in which each live update runs: the least fixed point of "a live update reads its operands"."""
    last: dict[Update, Time] = {}
    queue: deque[Update] = deque()

    def need(update: Update, step: Time) -> None:
        step = min(step, update.span.last)
        if step >= update.span.start and (update not in last or last[update] < step):
            last[update] = step
            queue.append(update)

    for update in program.schedule:
        if update.action in (Action.LEARN, Action.DESCEND) or (program.observed and _enters_energy(program, update)):
            need(update, update.span.last)
    while queue:
        update = queue.popleft()
        for quantity in reads(program, update):
            for producer, delay in _producers(program, quantity):
                need(producer, last[update] + -delay)
    return last


def _enters_energy(program: Program, update: Update) -> bool:
    is_loss = update.action is Action.PREDICT and program.vertex(update.vertex).kind is Kind.LOSS
    return is_loss or update.action is Action.COMPARE


def _producers(program: Program, quantity: Quantity) -> Iterator[tuple[Update, int]]:
    """The updates that write a quantity, and how many steps later the result can be read."""
    name, vertex = quantity
    actions: dict[str, tuple[tuple[Action, int], ...]] = {
        "value": ((Action.INFER, 1), (Action.PREDICT, 0)),
        "prediction": ((Action.PREDICT, 0),),
        "error": ((Action.COMPARE, 0), (Action.RELAX, 1)),
        "gradient": (),
    }
    for action, delay in actions[name]:
        for update in program.updates.get((action, vertex), ()):
            if name == "value" and action is Action.PREDICT and not program.vertex(vertex).follows:
                continue  # it takes only its first prediction as value, and that one always stays
            yield update, delay
