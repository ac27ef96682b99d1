"""A plan as two calls: one predicts, one learns, from lists of what they read; nothing else happens in between."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pccompile.backends.plan import FlatState, Plan, Stage, Sweep, keys_of
from pccompile.backends.run import Run
from pccompile.ir.grammar import Kind, Program
from pccompile.updates import length

__all__ = ["StraightPlan"]

_Call = Callable[[list[Any]], Sequence[Any]]  # empties the list


class StraightPlan:
    """A plan for inputs of one kind, whose error sweep for all outputs reads no energy and steps no parameter.

    Args:
        plan: the plan.
        sweep: its error sweep.
        run: a run that has gone the long way, for what does not change between steps.
        program: the program, if its rule moves values: then it is checked whether they stay finite.

    Attributes:
        predict, learn: the calls.
        reads: the keys of what `learn` reads.
        gradients: the place of every gradient in what `learn` returns, by source.
        held: what stays the same from step to step, by key.
        error: the key of what does not: the output's error; under a rule that moves values, what turns J^T e into
            gradients, and the error itself is the loss's own. None where there are several.
        divisor: what the error is divided by for that.
    """

    def __init__(self, plan: Plan, sweep: Sweep, run: Run, program: Program | None) -> None:
        self.plan, self.held, self.divisor = plan, run.scalars(plan.scalars), None
        self.predict: _Call = plan.prediction.executable.call
        errors = [key for keys in sweep.keys.values() for key in keys if key is not None]
        self.error = errors[0] if len(errors) == 1 else None
        stages = [(stage, stage.piece.times(run.rule.steps)) for stage in sweep.stages]
        first, times = stages[0]
        if program is None and len(stages) == 1 and times == 1:
            self.reads: tuple[str, ...] = first.piece.inputs
            self.learn: _Call = first.executable.call
            outputs = first.piece.outputs
        else:
            course = _Course(plan, stages, run, program, tuple(sweep.gradients.values()))
            self.reads, self.learn, outputs = course.reads, course, course.results
        self.gradients = {source: outputs.index(key) for source, key in sweep.gradients.items()}
        if program is not None and self.error is not None:
            ((_, layouts),) = sweep.layouts.items()
            like = next(layout for layout in layouts if layout is not None)
            self.held[self.error] = torch.full(like.shape, -run.loss_scale, dtype=like.dtype, device=like.device)
            factors = [key for key, (name, *_) in plan.scalars.items() if name == "learn_factor"]
            self.error, self.divisor = (factors[0] if factors else None), -run.loss_scale
        self.strides = self._strides(sweep)

    def _strides(self, sweep: Sweep) -> tuple[int, ...]:
        """Of the output's error, as the sweep expects it."""
        found = [strides for entries in sweep.entries.values() for key, strides in entries if key is not None]
        return found[0] if found else ()


class _Course:
    """Stages run one after another as one call, each as often as it is to."""

    def __init__(
        self,
        plan: Plan,
        stages: list[tuple[Stage, int]],
        run: Run,
        program: Program | None,
        results: tuple[str, ...],
    ) -> None:
        self.plan, self.stages, self.run, self.program, self.results = plan, stages, run, program, results
        self.places = stages[-1][0].places
        made: set[str] = set()
        read: dict[str, None] = {}
        for stage, _ in stages:
            read |= dict.fromkeys(key for key in stage.piece.inputs if key not in made)
            made.update(stage.piece.outputs)
        self.lengths: list[str] = []
        self.loss: str | None = None
        if program is not None:
            read |= dict.fromkeys(sorted(keys_of(self.places.values()) - made))
            moving = [("error", vertex.name) for vertex in program.vertices if vertex.moves]
            self.lengths = sorted(keys_of(self.places.get(quantity) for quantity in moving))
            losses = [("value", v.name) for v in program.vertices if v.kind is Kind.LOSS and v.nodes]
            self.loss = next(iter(keys_of(self.places.get(quantity) for quantity in losses)), None)
        self.reads = tuple(read)

    def __call__(self, given: list[Any]) -> list[Any]:
        tensors = dict(zip(self.reads, given, strict=True))
        given.clear()
        for stage, times in self.stages:
            stage.advance(tensors, not stage.piece.loop, times)
        if self.program is not None and not self._is_finite(tensors):
            self.run.check_finite(self.program, FlatState(self.plan, tensors, self.places))
        return [tensors[key] for key in self.results]

    def _is_finite(self, tensors: dict[str, Any]) -> bool:
        """As `Run.check_finite` sees at once, if all is well."""
        total = sum(
            [length(tensors[key]) for key in self.lengths], start=0.0 if self.loss is None else tensors[self.loss]
        )
        return math.isfinite(total)
