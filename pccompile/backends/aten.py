"""The ATen back end: runs a program as flat graphs of ATen operators with explicit derivatives."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import torch
from torch import fx

from pccompile.backends.eager import EagerBackend
from pccompile.backends.report import Row, rows_of
from pccompile.backends.run import Run, State, energy, value_optimizer
from pccompile.derivatives import LocalFunction, Value
from pccompile.errors import ProgramError
from pccompile.ir.grammar import Action, Kind, Program
from pccompile.lowering import Lowered, lower, results_of
from pccompile.lowering.direct import direct
from pccompile.lowering.expand import Expansion, FlatPiece, Key
from pccompile.lowering.fragments import Fragment, Unsupported, fake_of
from pccompile.updates import negative

__all__ = ["AtenBackend", "Compile", "Executable", "as_it_is", "python_of"]

logger = logging.getLogger("pccompile")


@dataclass(frozen=True)
class Executable:
    """A flat graph made ready.

    Attributes:
        call: from the list of inputs, which it empties, to the outputs.
        code: its source.
        runs: what runs its operators, "aten" or "inductor".
        choices: the vertices for which there was a choice, and what was chosen; the operators of these rows are told
            apart in the graph by "chosen" in their meta.
        graph: the graph with those choices made; None where there were none.
    """

    call: Callable[[list[Any]], Any]
    code: str
    runs: str = "aten"
    choices: tuple[Row, ...] = ()
    graph: fx.Graph | None = None

    def rows(self, piece: FlatPiece) -> list[Row]:
        """What runs each vertex."""
        if self.graph is None:
            return rows_of(piece.module.graph, self.runs, f"{self.runs} operators")
        return [*self.choices, *rows_of(self.graph, self.runs, "no kernel takes them")]


Compile = Callable[[FlatPiece], Executable]

_BelowAutograd = torch._C._AutoDispatchBelowAutograd
_NOTHING = nullcontext()


def as_it_is(piece: FlatPiece) -> Executable:
    """Run a flat graph's own Python."""
    graph = copy.deepcopy(piece.module.graph)
    carried = set(piece.inputs) & set(piece.outputs) if piece.loop else set()
    direct(graph, [node for node in graph.find_nodes(op="placeholder") if node.target in carried])
    graph.lint()
    module = fx.GraphModule({}, graph, piece.name)
    return Executable(module.forward, python_of(module, piece.name))


def python_of(module: fx.GraphModule, name: str) -> str:
    """A flat graph as a Python function of that name; kernels go by their own."""
    code: str = module.code.strip().replace("def forward(", f"def {name}(", 1)
    for function in {node.target for node in module.graph.nodes if "kernel" in node.meta}:
        module_name = str(getattr(function, "__module__", ""))
        code = code.replace(f"{module_name.replace('.', '_')}_{function.__name__}", function.__name__)
    return code


@dataclass
class _Stage:
    """A piece that runs.

    Attributes:
        executable: takes the tensors of `piece.inputs` and gives those of `piece.outputs`.
        last_reads: the inputs that nothing after this stage reads.
    """

    piece: FlatPiece
    executable: Executable
    last_reads: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        piece, self._call = self.piece, self.executable.call
        self._given = _getter(piece.inputs)
        self.gradients = {
            name: parts[0]
            for (kind, name), parts in piece.results.items()
            if kind == "gradient" and parts is not None and isinstance(parts[0], Key)
        }
        self._results = [(q, parts) for q, parts in piece.results.items() if q[0] != "gradient"]

    def run(self, tensors: dict[str, Any], release: bool) -> None:
        """Bring the tensors up to date; those that nothing reads afterwards are let go while it runs, on request."""
        given = list(self._given(tensors))
        if release:
            for key in self.last_reads:
                del tensors[key]
        with _BelowAutograd():
            found = self._call(given)
        tensors.update(zip(self.piece.outputs, found, strict=True))

    def results(self, tensors: Mapping[str, Any], state: State) -> None:
        """Write the quantities it brought up to date, beside gradients, into a state."""
        for quantity, parts in self._results:
            state[quantity] = _filled(parts, tensors)


def _getter(keys: tuple[str, ...]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    """Reads several keys of a mapping at once."""
    if len(keys) > 1:
        return itemgetter(*keys)
    return lambda mapping: tuple(mapping[key] for key in keys)


@dataclass
class _Plan:
    """A program written out for inputs of one kind."""

    expansion: Expansion
    prediction: _Stage
    sweeps: dict[Hashable, _Sweep]

    def __post_init__(self) -> None:
        self.keys = tuple(self.expansion.keys.items())
        self.scalars = self.expansion.scalars

    @property
    def stages(self) -> list[_Stage]:
        """Everything that runs, in order, one error sweep after the other."""
        return [self.prediction, *(stage for sweep in self.sweeps.values() for stage in sweep.stages)]


@dataclass
class _Sweep:
    """The error sweep for a set of outputs that have an error: where each error goes, and the layout it must have."""

    stages: list[_Stage]
    keys: dict[str, tuple[str | None, ...]]
    layouts: dict[str, tuple[Any, ...]]

    def __post_init__(self) -> None:
        self.gradients = {name: key for stage in self.stages for name, key in stage.gradients.items()}

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
        fragments: fragments traced before, to which new ones are added.
    """

    def __init__(
        self,
        program: Program,
        functions: Mapping[str, LocalFunction],
        compile_graph: Compile = as_it_is,
        fragments: dict[Hashable, Fragment] | None = None,
    ) -> None:
        self.program, self.functions, self.compile_graph = program, functions, compile_graph
        self.lowered: Lowered = lower(program)
        self.infers = any(action is Action.INFER for action, _ in program.updates)
        self.needed = results_of(program)
        self.loops = any(piece.loop for piece in self.lowered.error_sweep)
        self.eager: EagerBackend | None = None
        self.plans: dict[Hashable, _Plan | None] = {}
        self.latest: _Plan | None = None
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

    def kind_of(self, run: Run) -> Hashable:
        """What a plan depends on: runs of one kind share it."""
        return self._options(run), run.kinds

    def pieces(self, run: Run, clamped: Mapping[str, Value]) -> list[FlatPiece] | None:
        """The flat graphs for inputs of these kinds, if there are any."""
        plan = self._plan(run, clamped)
        return None if plan is None else [stage.piece for stage in plan.stages]

    # Running ----------------------------------------------------------------------------------------------------------

    def feed_forward(self, run: Run, clamped: Mapping[str, Value]) -> State:
        """Predict every vertex once; see `EagerBackend.feed_forward`."""
        plan = self._plan(run, clamped)
        if plan is None:
            found: State = self._eager().feed_forward(run, clamped)
            return found
        tensors: dict[str, Any] = {key: clamped[name][0] for name, key in plan.keys}
        if plan.scalars:
            tensors |= self._scalars(run, plan)
        with _gradients_enabled():
            plan.prediction.run(tensors, release=False)
        state: State = {("plan", ""): plan, ("tensors", ""): tensors}
        plan.prediction.results(tensors, state)
        return state

    def infer(self, run: Run, state: State, outputs: Mapping[str, Value], keep: bool = False) -> dict[str, Value]:
        """Run the error sweep; see `EagerBackend.infer`."""
        plan: _Plan | None = state.get(("plan", ""))
        if plan is None:
            gradients: dict[str, Value] = self._eager().infer(run, state, outputs, keep)
            return gradients
        tensors: dict[str, Any] = state["tensors", ""]
        if keep:
            state, tensors = dict(state), dict(tensors)
        if plan.scalars:
            tensors |= self._scalars(run, plan)
        errors = outputs if self.lowered.negated else {name: negative(d) or () for name, d in outputs.items()}
        sweep = self._sweep(plan, errors)
        tensors |= sweep.enter(errors)
        with _gradients_enabled():
            for stage in sweep.stages:
                self._run(run, stage, tensors, state, keep)
        if self.infers:
            run.check_finite(self.program, state)
        return {name: (tensors[key],) for name, key in sweep.gradients.items()}

    def _run(self, run: Run, stage: _Stage, tensors: dict[str, Any], state: State, keep: bool) -> None:
        piece = stage.piece
        if not piece.loop:
            stage.run(tensors, not keep)
            self._after_step(run, stage, tensors, state)
            return
        for _ in range(piece.span.start.at(run.rule.steps), piece.span.stop.at(run.rule.steps)):
            if run.settled():
                break
            stage.run(tensors, False)
            self._after_step(run, stage, tensors, state)

    def _after_step(self, run: Run, stage: _Stage, tensors: dict[str, Any], state: State) -> None:
        stage.results(tensors, state)
        if stage.piece.descents:
            for parameter, key in stage.piece.descents:
                run.descend(parameter, None if key is None else (tensors[key],))
            run.end_step()
        if self.infers and run.records and stage.piece.compares:
            run.energies.append(energy(self.program, run, state))

    def _scalars(self, run: Run, plan: _Plan) -> dict[str, Any]:
        found = {}
        for key, (name, *args) in plan.scalars.items():
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

    def _write(self, run: Run, clamped: Mapping[str, Value]) -> _Plan:
        if not self._loops(run):
            raise Unsupported("a loop of the schedule is empty for this number of steps")
        fakes = {name: fake_of(v[0]) if isinstance(v[0], torch.Tensor) else v[0] for name, v in clamped.items()}
        expansion = Expansion(
            self.lowered, self.functions, fakes, value_optimizer(run.rule), self.needed, self.fragments
        )
        given = self._all_given(expansion)
        graphs, keys = expansion.error_sweep(given)
        plan = _Plan(expansion, self._stage(expansion.prediction.finish()), {})
        plan.sweeps[_mask(given)] = _Sweep(self._stages([graph.finish() for graph in graphs]), keys, given)
        return plan

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
            stage.last_reads = tuple(key for key in stage.piece.inputs if key not in later)
            later.update(stage.piece.inputs)
        return stages

    def _stage(self, piece: FlatPiece) -> _Stage:
        return _Stage(piece, self.compile_graph(piece))


def _gradients_enabled() -> AbstractContextManager[Any]:
    """Some operators keep what their derivative needs only where gradients are enabled."""
    return _NOTHING if torch.is_grad_enabled() else torch.enable_grad()


def _mask(errors: Mapping[str, Value]) -> Hashable:
    return tuple((name, tuple(part is None for part in parts)) for name, parts in errors.items())


def _laid_out(part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(like.shape, like.stride(), dtype=part.dtype, device=part.device).copy_(part)


def _filled(parts: tuple[Any, ...] | None, tensors: Mapping[str, Any]) -> tuple[Any, ...] | None:
    return None if parts is None else tuple(tensors[part] if isinstance(part, Key) else part for part in parts)
