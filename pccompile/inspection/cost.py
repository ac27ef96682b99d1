"""What a program costs by its schedule: operations, bytes and launches, against backpropagation's on the same graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from math import prod

import torch

from pccompile.errors import UsageError
from pccompile.ir.grammar import Action, Component, Kind, Program, Update, Vertex
from pccompile.ir.text import aligned

__all__ = ["Amount", "Cost", "cost"]


@dataclass(frozen=True)
class Amount:
    """Operations as `torch.utils.flop_counter` counts them, bytes read and written, operators launched.

    Operations come from formulas that torch's counter shares. Bytes and launches are estimates: every operator that is
    not a view is one launch that reads and writes its tensors once, and its derivative reads and writes as much again.
    """

    operations: int = 0
    bytes: int = 0
    launches: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Amount)))

    def times(self, count: int) -> Amount:
        """The amount, `count` times."""
        return Amount(*(getattr(self, f.name) * count for f in fields(Amount)))


@dataclass(frozen=True)
class Cost:
    """The cost of one training step; prints as a table.

    Attributes:
        vertices: the program's, by vertex.
        autograd: backpropagation's on the same graph, by vertex.
        steps: T.
    """

    vertices: dict[str, Amount]
    autograd: dict[str, Amount]
    steps: int

    @property
    def total(self) -> Amount:
        """Of all vertices."""
        return sum(self.vertices.values(), Amount())

    @property
    def autograd_total(self) -> Amount:
        """Of backpropagation."""
        return sum(self.autograd.values(), Amount())

    def __str__(self) -> str:
        rows = [_row(name, amount) for name, amount in self.vertices.items() if amount != Amount()]
        ours, theirs = self.total, self.autograd_total
        ratios = [
            f"{getattr(ours, f.name) / getattr(theirs, f.name):.2f}" if getattr(theirs, f.name) else ""
            for f in fields(Amount)
        ]
        header = ("vertex", *(f.name for f in fields(Amount)))
        ends = [_row("all", ours), _row("autograd", theirs), ("ratio", *ratios)]
        return "\n".join(line.rstrip() for line in _right_aligned([header, *rows, *ends]))


def cost(program: Program, steps: int = 20) -> Cost:
    """What one training step of a program costs.

    Args:
        program: any stage.
        steps: T.

    Raises:
        UsageError: fewer than one step.
    """
    if steps < 1:
        raise UsageError(f"steps={steps}", cure="choose at least one inference step")
    reaches = _reaching(program)
    ours = {vertex.name: _scheduled(program, vertex, steps) for vertex in program.vertices}
    theirs = {vertex.name: _once(program, vertex, reaches) for vertex in program.vertices}
    return Cost(ours, theirs, steps)


def _scheduled(program: Program, vertex: Vertex, steps: int) -> Amount:
    """Every update of the vertex, and every product with its transposed Jacobian that a step asks for."""
    amount = Amount()
    for update in program.updates_of(vertex.name):
        amount += _update(program, update).times(_length([update], steps))
    values = [
        update
        for parent in program.parents(vertex.name)
        for action in (Action.INFER, Action.RELAX, *((Action.COMPARE,) if vertex.kind is Kind.LOSS else ()))
        for update in program.updates.get((action, parent.name), ())
        if not parent.clamped
    ]
    learns = program.updates.get((Action.LEARN, vertex.name), ())
    asks = (_products(program, vertex.name, readers, steps) for readers in ([*values, *learns], values, learns))
    return amount + _back(vertex, *asks)


def _once(program: Program, vertex: Vertex, reaches: set[str]) -> Amount:
    """Forward once; backward once where a gradient passes."""
    forward = _prediction(vertex) if vertex.nodes else Amount()
    if vertex.clamped:
        return forward
    values = any(not parent.clamped and parent.name in reaches for parent in program.parents(vertex.name))
    learns = bool(program.learned(vertex.name))
    adds = max(sum(_passes_back(child) for child in program.children(vertex.name)) - 1, 0)
    sums = Amount(0, 3 * _bytes(vertex.components), 1).times(adds if vertex.name in reaches else 0)
    return forward + _back(vertex, int(values or learns), int(values), int(learns)) + sums


def _passes_back(child: Vertex) -> bool:
    outside = child.kind is Kind.LOSS and not child.nodes
    return not child.clamped and not outside


def _reaching(program: Program) -> set[str]:
    """The vertices below which something learns."""
    found: set[str] = set()
    for vertex in program.vertices:
        below = any(parent.name in found for parent in program.parents(vertex.name))
        if vertex.requires_grad or below:
            found.add(vertex.name)
    return found


def _update(program: Program, update: Update) -> Amount:
    """One run of an update without the products with Jacobians that it reads."""
    vertex = program.vertex(update.vertex)
    size = _bytes(vertex.components)
    incoming = sum(vertex.name in program.pulls_back_to(child.name) for child in program.children(vertex.name))
    sums = Amount(0, 3 * size, 1).times(max(incoming - 1, 0))
    if update.action is Action.PREDICT:
        return _prediction(vertex)
    if update.action is Action.COMPARE:
        return sums if vertex.kind is Kind.OUTPUT else Amount(0, 3 * size, 1)
    if update.action is Action.RELAX:
        return sums if update.exact else sums + Amount(0, 3 * size, 1)
    if update.action is Action.INFER:
        return sums + Amount(0, 5 * size, 2)  # minus the error, then the step along the sum
    return Amount()  # a sum over the uses of a parameter, and the optimizer's step, are the same for every rule


def _prediction(vertex: Vertex) -> Amount:
    return Amount(vertex.work.operations, vertex.work.bytes, vertex.work.launches)


def _back(vertex: Vertex, times: int, to_values: int, to_parameters: int) -> Amount:
    """Products with the transposed Jacobian: in how many steps at all, for an unclamped and for a clamped parent."""
    work = vertex.work
    operations = times * work.back_within + to_values * work.back_to_values + to_parameters * work.back_to_parameters
    both = min(to_values, to_parameters) if work.back_to_values and work.back_to_parameters else 0
    return Amount(operations, times * work.bytes, times * work.launches + both)


def _products(program: Program, name: str, readers: Iterable[Update], steps: int) -> int:
    """How many products with the vertex's transposed Jacobian its readers need: one for each error and Jacobian.

    Single steps share the product of an error that has not changed between them, as the lowered program does; a loop
    forms it in every step.
    """
    readers = list(readers)
    loops = [update for update in readers if not update.span.single]
    alone = {update.span.start.at(steps) for update in readers if update.span.single}
    alone = {step for step in alone if not any(u.span.start.at(steps) <= step < u.span.stop.at(steps) for u in loops)}
    return _length(loops, steps) + len({_state_at(program, name, step, steps) for step in alone})


def _state_at(program: Program, name: str, step: int, steps: int) -> tuple[int, ...]:
    """The last steps in which an error and its Jacobian were computed, as the readers of a step see them."""
    latest = []
    for action, delay in ((Action.PREDICT, 0), (Action.COMPARE, 0), (Action.RELAX, 1)):
        runs = [u.span for u in program.updates.get((action, name), ()) if u.span.start.at(steps) + delay <= step]
        latest.append(max((min(span.last.at(steps), step - delay) for span in runs), default=-1))
    return tuple(latest)


def _length(updates: Iterable[Update], steps: int) -> int:
    """In how many steps at least one of the updates runs."""
    covered, end = 0, 0
    for start, stop in sorted((u.span.start.at(steps), u.span.stop.at(steps)) for u in updates):
        covered += max(stop - max(start, end), 0)
        end = max(end, stop)
    return covered


def _bytes(components: Iterable[Component]) -> int:
    return sum(prod(c.shape) * getattr(torch, c.dtype).itemsize for c in components if c.free)


def _row(name: str, amount: Amount) -> tuple[str, ...]:
    return (name, *(f"{getattr(amount, f.name):,}" for f in fields(Amount)))


def _right_aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(1, len(rows[0]))]
    return aligned(
        [(row[0], *(cell.rjust(width) for cell, width in zip(row[1:], widths, strict=True))) for row in rows]
    )
