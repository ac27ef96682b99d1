"""Lower a program to torch.fx: a prediction sweep, and an error sweep of straight lines and loop bodies.

Steps with the same updates become one body that runs in a loop; single steps in a row become one straight line. The
state that passes from one piece to the next is named after the vertices, so the code reads as the program does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from pccompile.ir.grammar import Action, Program, Span, Time, Update
from pccompile.lowering.emit import Emitter, Piece, Quantity, identifiers

__all__ = ["Lowered", "Piece", "Quantity", "lower", "results_of"]


@dataclass(frozen=True)
class Lowered:
    """A program as torch.fx graphs.

    `negated` says that the error sweep is linear in the errors of the outputs, which come from outside, and runs on
    -e = dF/dmu, which saves negating every gradient at the end.
    """

    program: Program
    prediction_sweep: Piece
    error_sweep: tuple[Piece, ...]
    negated: bool

    @cached_property
    def code(self) -> str:
        """Readable Python: one function a piece, and in a comment when it runs."""
        sign = "# The error sweep is linear in the errors: each *_error holds -e.\n" if self.negated else ""
        parts = [f"# once, in the feed-forward pass\n{self.prediction_sweep.code}"]
        for piece in self.error_sweep:
            times = f"in every step of {piece.span}" if piece.loop else f"once, steps {piece.span}"
            parts.append(f"# {times}\n{piece.code}")
        return sign + "\n\n".join(parts) + "\n"


def lower(program: Program) -> Lowered:
    """Lower a verified program; linear in what runs.

    Raises:
        ProgramError: an update would read what is not its vertex's neighbour.
    """
    scales = program.rule in ("Strict", "Incremental")  # inference descends the loss itself, Learn gets its factor
    negated = not scales and not any(action is Action.INFER for action, _ in program.updates)
    names = identifiers(program)
    segments = list(_segments(program))
    first = [update for update in segments[0][1] if update.action is Action.PREDICT] if segments else []
    prediction = Emitter(program, names, negated)
    prediction.emit_step(first, first_predictions=True)
    emitters: list[tuple[Span, Emitter]] = []
    for position, (span, updates) in enumerate(segments):
        rest = [u for u in updates if u.action is not Action.PREDICT] if position == 0 else updates
        if span.single and emitters and not emitters[-1][1].loop:
            before, emitter = emitters.pop()
            span = Span(before.start, span.stop)
        else:
            emitter = Emitter(program, names, negated, loop=not span.single)
        emitter.emit_step(rest)
        emitters.append((span, emitter))
    needed = results_of(program)
    pieces: list[Piece] = []
    for number, (span, emitter) in reversed(list(enumerate(emitters, start=1))):
        name = "error_sweep" if len(emitters) == 1 else f"error_sweep_{number}"
        pieces.append(emitter.finish(name, span, needed))
        if not emitter.loop and not program.observed:
            needed -= set(pieces[-1].writes)
        needed |= set(pieces[-1].reads)
    sweep = prediction.finish("prediction_sweep", Span.steps(0, 1), needed | results_of(program))
    return Lowered(program, sweep, tuple(reversed(pieces)), negated)


def results_of(program: Program) -> set[Quantity]:
    """What callers read of a finished run: gradients, outputs, held tensors; errors where they enter the energy."""
    results: set[Quantity] = set()
    for vertex in program.vertices:
        held = any(not component.free for component in vertex.components)
        if vertex.clamped and vertex.requires_grad:
            results.add(("gradient", vertex.name))
        if vertex.follows or (held and vertex.nodes):
            results.add(("value", vertex.name))
        if (Action.INFER, vertex.name) in program.updates:
            results.add(("error", vertex.name))
    return results


def _segments(program: Program) -> Iterator[tuple[Span, list[Update]]]:
    """Maximal ranges of steps with the same updates (step 0 by itself), each in the order in which updates run."""
    ordered = program.ordered
    starting: dict[Time, list[int]] = {}
    for index, update in enumerate(ordered):
        starting.setdefault(update.span.start, []).append(index)
    times = sorted({Time(False, 1), *(t for update in ordered for t in (update.span.start, update.span.stop))})
    active: list[int] = []
    for start, stop in pairwise(times):
        active = sorted([i for i in active if ordered[i].span.stop > start] + starting.get(start, []))
        yield Span(start, stop), [ordered[index] for index in active]
