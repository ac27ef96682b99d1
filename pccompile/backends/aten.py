"""The ATen back end: runs a program as flat graphs of ATen operators with explicit derivatives."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from pccompile.backends.eager import EagerBackend
from pccompile.backends.run import Run, State, energy, value_optimizer
from pccompile.derivatives import LocalFunction, Value
from pccompile.errors import ProgramError
from pccompile.ir.grammar import Action, Kind, Program
from pccompile.lowering import Lowered, lower, results_of
from pccompile.lowering.expand import Expansion, FlatPiece, Key
from pccompile.lowering.fragments import Fragment, Unsupported, fake_of
from pccompile.updates import negative

__all__ = ["AtenBackend", "as_it_is"]

logger = logging.getLogger("pccompile")

Compile = Callable[[fx.GraphModule], Callable[[list[Any]], Any]]


def as_it_is(module: fx.GraphModule) -> Callable[[list[Any]], Any]:
    """Run a flat graph's own Python."""
    function: Callable[[list[Any]], Any] = module.forward
    return function


@dataclass
class _Stage:
    piece: FlatPiece
    call: Callable[[list[Any]], Any]
    last_reads: tuple[bool, ...] = ()  # for each input, whether nothing after this stage reads it


@dataclass
class _Plan:
    """A program written out for inputs of one kind."""

    expansion: Expansion
    prediction: _Stage
    sweeps: dict[Hashable, _Sweep]


@dataclass
class _Sweep:
    """The error sweep for a set of outputs that have an error: where each error goes, and the layout it must have."""

    stages: list[_Stage]
    keys: dict[str, tuple[str | None, ...]]
    layouts: dict[str, tuple[Any, ...]]

    def enter(self, errors: Mapping[str, Value]) -> dict[str, torch.Tensor]:
        """The errors by key."""
        found: dict[str, torch.Tensor] = {}
        for name, parts in errors.items():
            for key, part, like in zip(self.keys[name], parts, self.layouts[name], strict=True):
                if key is not None:
                    found[key] = part if part.stride() == like.stride() else _laid_out(part, like)
        return found


class AtenBackend:
    """Executes a program as flat graphs; what cannot be written so, the eager back end runs.

    Args:
        program: the (optimised) program.
        functions: the local function of every predicted vertex.
        compile_graph: turns a flat graph into what runs.
    """

    def __init__(
        self, program: Program, functions: Mapping[str, LocalFunction], compile_graph: Compile = as_it_is
    ) -> None:
        self.program, self.functions, self.compile_graph = program, functions, compile_graph
        self.lowered: Lowered = lower(program)
        self.infers = any(action is Action.INFER for action, _ in program.updates)
        self.needed = results_of(program)
        self.inputs = [v.name for v in program.vertices if v.kind is Kind.INPUT]
        self.eager: EagerBackend | None = None
        self.plans: dict[Hashable, _Plan | None] = {}
        self.fragments: dict[Hashable, Fragment] = {}

    # Running ----------------------------------------------------------------------------------------------------------

    def feed_forward(self, run: Run, clamped: Mapping[str, Value]) -> State:
        """Predict every vertex once; see `EagerBackend.feed_forward`."""
        plan = self._plan(run, clamped)
        if plan is None:
            return self._eager().feed_forward(run, dict(clamped))
        state: State = {("value", name): value for name, value in clamped.items()}
        tensors: dict[str, Any] = {key: clamped[name][0] for name, key in plan.expansion.keys.items()}
        tensors |= self._scalars(run, plan)
        self._execute(plan.prediction, tensors, state, keep=True)
        state["plan", ""], state["tensors", ""] = plan, tensors
        return state

    def infer(self, run: Run, state: State, outputs: Mapping[str, Value], keep: bool = False) -> dict[str, Value]:
        """Run the error sweep; see `EagerBackend.infer`."""
        plan: _Plan | None = state.get(("plan", ""))
        if plan is None:
            return self._eager().infer(run, state, outputs, keep)
        tensors: dict[str, Any] = state["tensors", ""]
        if keep:
            state, tensors = dict(state), dict(tensors)
        tensors |= self._scalars(run, plan)
        errors = {name: d if self.lowered.negated else negative(d) for name, d in outputs.items()}
        sweep = self._sweep(plan, errors)
        tensors |= sweep.enter(errors)
        steps = run.rule.steps
        for stage in sweep.stages:
            piece = stage.piece
            rounds = range(piece.span.start.at(steps), piece.span.stop.at(steps)) if piece.loop else range(1)
            for _ in rounds:
                if piece.loop and run.settled():
                    break
                self._execute(stage, tensors, state, keep or piece.loop)
                self._after_step(run, state, piece, tensors)
        if self.infers:
            run.check_finite(self.program, state)
        return {name: value for (kind, name), value in state.items() if kind == "gradient" and value is not None}

    def _execute(self, stage: _Stage, tensors: dict[str, Any], state: State, keep: bool) -> None:
        piece = stage.piece
        if keep:
            given = [tensors[key] for key in piece.inputs]
        else:
            given = [
                tensors.pop(key) if last else tensors[key]
                for key, last in zip(piece.inputs, stage.last_reads, strict=True)
            ]
        with torch.enable_grad():  # nothing here requires grad; but some operators keep what they need only so
            found = stage.call(given)
        tensors.update(zip(piece.outputs, found, strict=True))
        for quantity, parts in piece.results.items():
            state[quantity] = _filled(parts, tensors)

    def _after_step(self, run: Run, state: State, piece: FlatPiece, tensors: dict[str, Any]) -> None:
        for parameter, key in piece.descents:
            run.descend(parameter, None if key is None else (tensors[key],))
        run.end_step()
        if self.infers and run.records and piece.compares:
            run.energies.append(energy(self.program, run, state))

    def _scalars(self, run: Run, plan: _Plan) -> dict[str, Any]:
        found = {}
        for key, (name, *args) in plan.expansion.scalars.items():
            value = getattr(run, name)
            found[key] = value(*args) if args else value
        return found

    # Writing ----------------------------------------------------------------------------------------------------------

    def _eager(self) -> EagerBackend:
        if self.eager is None:
            self.eager = EagerBackend(self.program, self.functions)
        return self.eager

    def _plan(self, run: Run, clamped: Mapping[str, Value]) -> _Plan | None:
        """The program written out for inputs of these sizes; None where that is not possible."""
        optimizer = value_optimizer(run.rule)
        options = (optimizer.kind, optimizer.momentum, optimizer.betas, optimizer.epsilon)
        key = (options, self._loops(run), *(_kind(clamped[name][0]) for name in self.inputs))
        if key not in self.plans:
            try:
                self.plans[key] = self._write(run, clamped)
            except Unsupported as reason:
                logger.info("the eager back end runs this program: %s", reason)
                self.plans[key] = None
        return self.plans[key]

    def _loops(self, run: Run) -> bool:
        steps = run.rule.steps
        return all(p.span.start.at(steps) < p.span.stop.at(steps) for p in self.lowered.error_sweep if p.loop)

    def _write(self, run: Run, clamped: Mapping[str, Value]) -> _Plan:
        if not self._loops(run):
            raise Unsupported("a loop of the schedule is empty for this number of steps")
        if any(function.random for function in self.functions.values()) and self._predicts_again():
            raise Unsupported("a vertex draws random numbers and is predicted again")
        fakes = {name: fake_of(v[0]) if isinstance(v[0], torch.Tensor) else v[0] for name, v in clamped.items()}
        expansion = Expansion(
            self.lowered, self.functions, fakes, value_optimizer(run.rule), self.needed, self.fragments
        )
        given = self._all_given(expansion)
        graphs, keys = expansion.error_sweep(given)
        plan = _Plan(expansion, self._stage(expansion.prediction.finish()), {})
        plan.sweeps[_mask(given)] = _Sweep(self._stages([graph.finish() for graph in graphs]), keys, given)
        return plan

    def _predicts_again(self) -> bool:
        return any(
            action is Action.PREDICT and any(not update.span.single for update in updates)
            for (action, _), updates in self.program.updates.items()
        )

    def _all_given(self, expansion: Expansion) -> dict[str, tuple[Any, ...]]:
        """Stand-ins for the errors where the loss is outside: one for every differentiable output."""
        loss = next((v for v in self.program.vertices if v.kind is Kind.LOSS and v.nodes), None)
        vertices = [loss] if loss is not None else [v for v in self.program.vertices if v.kind is Kind.OUTPUT]
        given: dict[str, tuple[Any, ...]] = {}
        for vertex in vertices:
            parts = expansion.state["value", vertex.name]
            given[vertex.name] = tuple(
                part.fake if component.free else None for part, component in zip(parts, vertex.components, strict=True)
            )
        return given

    def _sweep(self, plan: _Plan, errors: Mapping[str, Value]) -> _Sweep:
        mask = _mask(errors)
        if mask not in plan.sweeps:
            full = self._all_given(plan.expansion)
            given = {
                name: tuple(None if part is None else like for part, like in zip(parts, full[name], strict=True))
                for name, parts in errors.items()
            }
            try:
                graphs, keys = plan.expansion.error_sweep(given)
            except Unsupported as reason:
                raise ProgramError(f"the error sweep for some outputs only cannot be written: {reason}") from reason
            plan.sweeps[mask] = _Sweep(self._stages([graph.finish() for graph in graphs]), keys, given)
        return plan.sweeps[mask]

    def _stages(self, pieces: list[FlatPiece]) -> list[_Stage]:
        stages = [self._stage(piece) for piece in pieces]
        later: set[str] = set()
        for stage in reversed(stages):
            later.update(key for parts in stage.piece.results.values() for key in parts or () if isinstance(key, Key))
            stage.last_reads = tuple(key not in later for key in stage.piece.inputs)
            later.update(stage.piece.inputs)
        return stages

    def _stage(self, piece: FlatPiece) -> _Stage:
        return _Stage(piece, self.compile_graph(piece.module))


def _mask(errors: Mapping[str, Value]) -> Hashable:
    return tuple((name, tuple(part is None for part in parts)) for name, parts in errors.items())


def _laid_out(part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(like.shape, like.stride(), dtype=part.dtype, device=part.device).copy_(part)


def _kind(value: Any) -> Hashable:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__, repr(value)
    return tuple(value.shape), tuple(value.stride()), value.dtype, value.device


def _filled(parts: tuple[Any, ...] | None, tensors: Mapping[str, Any]) -> tuple[Any, ...] | None:
    return None if parts is None else tuple(tensors[part] if isinstance(part, Key) else part for part in parts)
