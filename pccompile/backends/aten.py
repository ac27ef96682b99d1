"""The ATen back end: runs a program as flat graphs of ATen operators with explicit derivatives."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

import torch

from pccompile.backends.cudagraph import Recorder, copies, recorder_of
from pccompile.backends.eager import EagerBackend
from pccompile.backends.executables import Compile, Together, as_it_is
from pccompile.backends.plan import FlatState, Plan, Stage, Sweep, keys_of, mask_of
from pccompile.backends.report import Row
from pccompile.backends.run import Run, State, energy, value_optimizer
from pccompile.backends.straight import StraightPlan
from pccompile.derivatives import LocalFunction, Value
from pccompile.errors import ProgramError, UsageError
from pccompile.ir.grammar import Action, Kind, Program
from pccompile.lowering import Lowered, Quantity, lower, results_of
from pccompile.lowering.expand import Expansion, FlatPiece
from pccompile.lowering.fragments import Fragment, Leaf, Substitution, Unsupported, fake_of
from pccompile.lowering.layouts import CHANNELS_LAST
from pccompile.updates import negative

__all__ = ["AtenBackend"]

logger = logging.getLogger("pccompile")


class AtenBackend:
    """Executes a program as flat graphs; what cannot be written so, the eager back end runs.

    Args:
        program: the (optimised) program.
        functions: the local function of every predicted vertex.
        compile_graph: turns a flat graph into what runs.
        fragments: fragments traced before, to which new ones are added.
        together: changes the flat graphs of a program before that, all at once, if there is one error sweep only.
        reorders: sums may be taken in another order than eager PyTorch's, if that is faster.
        sums_errors: loops may carry sums of errors in the place of values; see `lowering.gram`.
    """

    def __init__(
        self,
        program: Program,
        functions: Mapping[str, LocalFunction],
        compile_graph: Compile = as_it_is,
        fragments: dict[Hashable, Fragment] | None = None,
        together: Together = list,
        reorders: bool = False,
        sums_errors: bool = True,
    ) -> None:
        self.together, self.sums_errors = together, sums_errors
        self.program, self.functions, self.compile_graph = program, functions, compile_graph
        self.loss = next((vertex for vertex in program.vertices if vertex.kind is Kind.LOSS and vertex.nodes), None)
        self.lowered: Lowered = lower(program)
        self.infers = any(action is Action.INFER for action, _ in program.updates)
        self.needed = results_of(program)
        self.loops = any(piece.loop for piece in self.lowered.error_sweep)
        self.channels_last = (reorders or self.loops) and not _returns_images(program)
        self.eager: EagerBackend | None = None
        self.plans: dict[Hashable, Plan | None] = {}
        self.latest: Plan | None = None
        self.fragments: dict[Hashable, Fragment] = {} if fragments is None else fragments

    @property
    def code(self) -> str:
        """What runs, as Python, for the inputs seen last."""
        if self.latest is None:
            return self.lowered.code
        return "\n\n".join(stage.executable.code for stage in self.latest.stages) + "\n"

    def report(self) -> list[Row]:
        """What runs each vertex, for the inputs seen last; empty where the eager back end does."""
        if self.latest is None:
            return []
        sweep = list(self.latest.sweeps.values())[-1]
        phased = [("prediction", self.latest.prediction)]
        phased += [("every step" if stage.piece.loop else "error sweep", stage) for stage in sweep.stages]
        return [replace(row, phase=phase) for phase, stage in phased for row in stage.executable.rows(stage.piece)]

    def substitution(self, function: LocalFunction, kinds: Mapping[Leaf, Any]) -> Substitution:
        """What a vertex is traced with, given stand-ins for what it reads."""
        return CHANNELS_LAST if self.channels_last else Substitution()

    def kind_of(self, run: Run) -> Hashable:
        """What a plan depends on: runs of one kind share it."""
        return self._options(run), run.kinds

    def pieces(self, run: Run, clamped: Mapping[str, Value]) -> list[FlatPiece] | None:
        """The flat graphs for inputs of these kinds, if there are any."""
        plan = self._plan(run, clamped)
        return None if plan is None else [stage.piece for stage in plan.stages]

    def consumed(self, run: Run) -> frozenset[str]:
        """The clamped vertices that nothing reads after the feed-forward pass, not even a view; none before the first.

        These may be handed over as they are, whatever is written into them afterwards.
        """
        plan = self.plans.get(self.kind_of(run))
        return frozenset() if plan is None else plan.consumed

    def straight(self, run: Run) -> StraightPlan | None:
        """The plan of a run as two calls, where nothing happens between its stages."""
        plan = self.plans.get(self.kind_of(run))
        if plan is None or run.records or (run.cuda_graph and plan.recorder is not None):
            return None
        sweep = next(iter(plan.sweeps.values()))
        if any(stage.piece.descents for stage in sweep.stages) or self.infers == self.lowered.negated:
            return None
        return StraightPlan(plan, sweep, run, self.program if self.infers else None)

    # Running ----------------------------------------------------------------------------------------------------------

    def feed_forward(self, run: Run, clamped: Mapping[str, Value]) -> State:
        """Predict every vertex once; see `EagerBackend.feed_forward`."""
        plan = self._plan(run, clamped)
        if plan is None:
            found: State = self._eager().feed_forward(run, clamped)
            return found
        tensors = plan.tensors(clamped)
        if plan.scalars:
            tensors |= run.scalars(plan.scalars)
        recorder = self._recorder(run, plan)
        plan.prediction.run(tensors, False, recorder=recorder)
        return plan.state(tensors, recorder)

    def infer(self, run: Run, state: State, outputs: Mapping[str, Value], keep: bool = False) -> dict[str, Value]:
        """Run the error sweep; see `EagerBackend.infer`."""
        if not isinstance(state, FlatState):
            gradients: dict[str, Value] = self._eager().infer(run, state, outputs, keep)
            return gradients
        if keep:
            state = state.copied()
        plan, tensors = state.plan, state.tensors
        state.shown = tensors
        if plan.scalars:
            tensors |= run.scalars(plan.scalars)
        errors = outputs if self.lowered.negated else {name: negative(d) or () for name, d in outputs.items()}
        sweep = plan.sweeps.get(self._mask(errors)) or self._new_sweep(plan, errors)
        tensors |= sweep.enter(errors)
        if not (keep or self.infers) and state.recorder is None:
            for key in sweep.unread:
                del tensors[key]
        for stage in sweep.stages:
            self._run(run, stage, state, keep)
        if self.infers:
            run.check_finite(self.program, state)
        found = {name: tensors[key] for name, key in sweep.gradients.items()}
        if state.recorder is not None:
            found = dict(zip(found, copies(list(found.values())), strict=True))
            plan.finish(state)
        return {name: (gradient,) for name, gradient in found.items()}

    def _run(self, run: Run, stage: Stage, state: FlatState, keep: bool) -> None:
        piece, times = stage.piece, stage.piece.times(run.rule.steps)
        release = state.recorder is None and not (keep or piece.loop)
        if not (piece.loop and (run.records or piece.descents)):  # nothing happens between the steps
            stage.run(state.tensors, release, times, state.recorder)
            self._after_step(run, stage, state)
            return
        for _ in range(times):
            if run.settled():
                break
            stage.run(state.tensors, release)
            self._after_step(run, stage, state)

    def _recorder(self, run: Run, plan: Plan) -> Recorder | None:
        """What records the run's launches, if that is wanted and nothing happens between them.

        Raises:
            UsageError: it is asked for, and not possible.
        """
        if not run.cuda_graph:
            return None
        if plan.recorder is None:
            problem = "not everything is on one GPU"
        elif run.records:
            problem = "the rule reads its energy in every step"
        elif run.optimizer_step is not None:
            problem = "the rule changes parameters while it infers"
        else:
            return plan.free_recorder()
        if run.cuda_graph == "auto":
            return None
        raise UsageError(f"no CUDA graph of this step: {problem}", cure='use cuda_graph="auto" or False')

    def _after_step(self, run: Run, stage: Stage, state: FlatState) -> None:
        state.places = stage.places
        if stage.piece.descents:
            for parameter, key in stage.piece.descents:
                run.descend(parameter, None if key is None else (state.tensors[key],))
            run.end_step()
        if self.infers and run.records and stage.piece.compares:
            run.energies.append(energy(self.program, run, state))

    # Writing ----------------------------------------------------------------------------------------------------------

    def _eager(self) -> EagerBackend:
        if self.eager is None:
            self.eager = EagerBackend(self.program, self.functions)
        return self.eager

    def _plan(self, run: Run, clamped: Mapping[str, Value]) -> Plan | None:
        """The program written out for inputs of these sizes; None where that is not possible."""
        key = self.kind_of(run)
        if key not in self.plans:
            try:
                self.plans[key] = self._write(run, clamped)
            except Unsupported as reason:
                logger.info("the eager back end runs this program: %s", reason)
                self.plans[key] = None
        self.latest = self.plans[key]
        return self.latest

    def _options(self, run: Run) -> Hashable:
        """What of a rule is written into the graphs."""
        if not self.loops:
            return None
        optimizer = value_optimizer(run.rule)
        return optimizer.kind, optimizer.momentum, optimizer.betas, optimizer.epsilon, self._loops(run)

    def _loops(self, run: Run) -> bool:
        steps = run.rule.steps
        return all(p.span.start.at(steps) < p.span.stop.at(steps) for p in self.lowered.error_sweep if p.loop)

    def _write(self, run: Run, clamped: Mapping[str, Value]) -> Plan:
        if not self._loops(run):
            raise Unsupported("a loop of the schedule is empty for this number of steps")
        fakes = {name: fake_of(v[0]) if isinstance(v[0], torch.Tensor) else v[0] for name, v in clamped.items()}
        expansion = self.expansion(self.lowered, self.functions, fakes, run)
        given = self._all_given(expansion)
        graphs, keys = expansion.error_sweep(given)
        devices = {value.device for value in fakes.values() if isinstance(value, torch.Tensor)}
        pieces = [graph.finish() for graph in (expansion.prediction, *graphs)]
        if sum(part is not None for parts in given.values() for part in parts) == 1:  # an error or none: one sweep
            pieces = self.together(pieces)
        plan = Plan(expansion, self._stage(pieces[0], {}), {}, recorder_of(devices))
        plan.sweeps[self._mask(given)] = self._sweep(plan, pieces[1:], keys, given)
        return plan

    def expansion(
        self, lowered: Lowered, functions: Mapping[str, LocalFunction], fakes: Mapping[str, Any], run: Run
    ) -> Expansion:
        """A lowered program being written out; see `Expansion`."""
        optimizer = value_optimizer(run.rule)
        known = self.needed, self.fragments
        return Expansion(lowered, functions, fakes, optimizer, *known, self.substitution, self.sums_errors)

    def _all_given(self, expansion: Expansion) -> dict[str, tuple[Any, ...]]:
        """Stand-ins for the errors where the loss is outside: one for every differentiable output."""
        vertices = [self.loss] if self.loss is not None else [v for v in self.program.vertices if v.kind is Kind.OUTPUT]
        given: dict[str, tuple[Any, ...]] = {}
        for vertex in vertices:
            parts = expansion.state["value", vertex.name]
            given[vertex.name] = tuple(
                part.fake if component.free else None for part, component in zip(parts, vertex.components, strict=True)
            )
        return given

    def _mask(self, errors: Mapping[str, Value]) -> Hashable:
        """Which outputs have an error: a loss always has one."""
        return None if self.loss is not None else mask_of(errors)

    def _new_sweep(self, plan: Plan, errors: Mapping[str, Value]) -> Sweep:
        """The error sweep for errors of some outputs only, which have not come alone before."""
        full = self._all_given(plan.expansion)
        given = {
            name: tuple(None if part is None else like for part, like in zip(parts, full[name], strict=True))
            for name, parts in errors.items()
        }
        try:
            graphs, keys = plan.expansion.error_sweep(given)
        except Unsupported as reason:
            raise ProgramError(f"the error sweep for some outputs only cannot be written: {reason}") from reason
        sweep = plan.sweeps[self._mask(errors)] = self._sweep(plan, [graph.finish() for graph in graphs], keys, given)
        return sweep

    def _sweep(
        self, plan: Plan, pieces: list[FlatPiece], keys: dict[str, tuple[str | None, ...]], given: dict[str, Any]
    ) -> Sweep:
        stages = self._stages(plan, pieces)
        read = {key for stage in stages for key in stage.piece.inputs}
        unread = tuple(key for key in plan.prediction.piece.outputs if key not in read)
        return Sweep(stages, keys, given, unread)

    def _stages(self, plan: Plan, pieces: list[FlatPiece]) -> list[Stage]:
        places = plan.prediction.places
        stages = []
        for piece in pieces:
            stages.append(self._stage(piece, places))
            places = stages[-1].places
        later = keys_of(places.values()) if self.infers else set()  # whether they are finite is asked afterwards
        for stage in reversed(stages):
            later |= keys_of(stage.piece.results.values())
            stage.last_reads = tuple(key for key in stage.piece.inputs if key not in later)
            later.update(stage.piece.inputs)
        return stages

    def _stage(self, piece: FlatPiece, before: Mapping[Quantity, tuple[Any, ...] | None]) -> Stage:
        new = {quantity: parts for quantity, parts in piece.results.items() if quantity[0] != "gradient"}
        return Stage(piece, self.compile_graph(piece), {**before, **new})


def _returns_images(program: Program) -> bool:
    """Whether whoever called the model gets tensors whose memory would be laid out otherwise."""
    outputs = (vertex for vertex in program.vertices if vertex.kind is Kind.OUTPUT)
    return any(len(component.shape) == 4 for vertex in outputs for component in vertex.components)
