"""The ATen back end: runs a program as flat graphs of ATen operators with explicit derivatives."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import itemgetter
from typing import Any
from weakref import ref

import torch
from torch import fx

from pccompile.backends.cudagraph import Recorder, Replayed, copies, recorder_of
from pccompile.backends.eager import EagerBackend
from pccompile.backends.report import Row, rows_of
from pccompile.backends.run import Run, State, energy, value_optimizer
from pccompile.derivatives import LocalFunction, Value
from pccompile.errors import ProgramError, UsageError
from pccompile.ir.grammar import Action, Kind, Program
from pccompile.lowering import Lowered, Quantity, lower, results_of
from pccompile.lowering.direct import direct
from pccompile.lowering.expand import Expansion, FlatPiece, Key
from pccompile.lowering.fragments import Fragment, Leaf, Substitution, Unsupported, fake_of
from pccompile.updates import negative

__all__ = ["AtenBackend", "Compile", "Executable", "FlatState", "Together", "as_it_is", "python_of"]

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
Together = Callable[[Sequence[FlatPiece]], list[FlatPiece]]

_BelowAutograd = torch._C._AutoDispatchBelowAutograd


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
    calls = (node for node in module.graph.nodes if node.op == "call_function" and "kernel" in node.meta)
    for function in {node.target for node in calls}:
        prefix = str(getattr(function, "__module__", "")).replace(".", "_")
        code = code.replace(f"{prefix}_{function.__name__}", function.__name__)
    return code


@dataclass
class _Stage:
    """A piece that runs.

    Attributes:
        executable: takes the tensors of `piece.inputs` and gives those of `piece.outputs`.
        places: where every quantity is that is up to date after it, beside gradients.
        last_reads: the inputs that nothing after this stage reads.
    """

    piece: FlatPiece
    executable: Executable
    places: dict[Quantity, tuple[Any, ...] | None]
    last_reads: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        piece, self._call = self.piece, self.executable.call
        self._replayed: Replayed | None = None
        self._given = _getter(piece.inputs)
        self.gradients = {
            name: parts[0]
            for (kind, name), parts in piece.results.items()
            if kind == "gradient" and parts is not None and isinstance(parts[0], Key)
        }

    def run(self, tensors: dict[str, Any], release: bool, recorder: Recorder | None = None, times: int = 1) -> None:
        """Bring the tensors up to date.

        Args:
            tensors: by key.
            release: let those go, while it runs, that nothing reads afterwards.
            recorder: records what is launched, and replays it.
            times: how often a loop's body runs.
        """
        given = list(self._given(tensors))
        if release:
            for key in self.last_reads:
                del tensors[key]
        call = self._call
        if recorder is not None:
            given.append(times)
            call = self._replayed = self._replayed or Replayed(self._repeated, recorder)
        enabled = torch.is_grad_enabled()
        torch._C._set_grad_enabled(True)  # some operators keep what their derivative needs only then
        try:
            with _BelowAutograd():
                found = call(given)
        finally:
            torch._C._set_grad_enabled(enabled)
        tensors.update(zip(self.piece.outputs, found, strict=True))

    def _repeated(self, given: list[Any]) -> tuple[Any, ...]:
        """What it brings up to date after as many runs as the last input says."""
        times: int = given.pop()
        if times == 1:
            found: tuple[Any, ...] = self._call(given)
            return found
        tensors = dict(zip(self.piece.inputs, given, strict=True))
        given.clear()
        for _ in range(times):
            tensors.update(zip(self.piece.outputs, self._call(list(self._given(tensors))), strict=True))
        return tuple(tensors[key] for key in self.piece.outputs)


class FlatState(State):
    """The quantities of a run, read from its tensors when somebody asks.

    Attributes:
        plan: what wrote the tensors.
        tensors: by key.
        places: the parts of each quantity: keys, and what is no tensor itself.
        recorder: what recorded how the tensors came about, and will write into them again.
        shown: what is read in their stead.
    """

    def __init__(
        self,
        plan: _Plan,
        tensors: dict[str, Any],
        places: Mapping[Quantity, tuple[Any, ...] | None],
        recorder: Recorder | None = None,
    ) -> None:
        super().__init__()
        self.plan, self.tensors, self.places, self.recorder = plan, tensors, places, recorder
        self.shown = tensors

    def __missing__(self, quantity: Quantity) -> tuple[Any, ...] | None:
        parts = self.places[quantity]
        return None if parts is None else tuple([self.shown[p] if isinstance(p, Key) else p for p in parts])

    def copied(self) -> FlatState:
        """The same state, for a run that leaves this one as it is."""
        return FlatState(self.plan, dict(self.tensors), self.places, self.recorder)

    def show_copies(self) -> None:
        """Read copies of what is there now."""
        keys = [key for key in _keys_of(self.places.values()) if isinstance(self.tensors[key], torch.Tensor)]
        self.shown = {**self.tensors, **dict(zip(keys, copies([self.tensors[key] for key in keys]), strict=True))}

    def get(self, quantity: Quantity, default: Any = None) -> Any:
        return self[quantity] if quantity in self.places else super().get(quantity, default)


def _getter(keys: tuple[str, ...]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    """Reads several keys of a mapping at once."""
    if len(keys) > 1:
        return itemgetter(*keys)
    return lambda mapping: tuple(mapping[key] for key in keys)


@dataclass
class _Plan:
    """A program written out for inputs of one kind.

    Attributes:
        recorder: what can record the launches of its stages; None where nothing can.
    """

    expansion: Expansion
    prediction: _Stage
    sweeps: dict[Hashable, _Sweep]
    recorder: Recorder | None

    def __post_init__(self) -> None:
        self.scalars = self.expansion.scalars
        self._recorded: Callable[[], FlatState | None] = lambda: None
        self._keys = tuple(self.expansion.keys.values())
        self._given = _getter(tuple(self.expansion.keys))

    def tensors(self, clamped: Mapping[str, Value]) -> dict[str, Any]:
        """The values of the clamped vertices, which have one component each, by key."""
        return dict(zip(self._keys, chain.from_iterable(self._given(clamped)), strict=True))

    def free_recorder(self) -> Recorder | None:
        """What records its launches, unless another run's tensors are still to be read where they were recorded."""
        return self.recorder if self._recorded() is None else None

    def state(self, tensors: dict[str, Any], recorder: Recorder | None) -> FlatState:
        """The state after the prediction."""
        state = FlatState(self, tensors, self.prediction.places, recorder)
        if recorder is not None:
            state.show_copies()
            self._recorded = ref(state)
        return state

    def finish(self, state: FlatState) -> None:
        """Nothing will be read of a state any more."""
        if self._recorded() is state:
            self._recorded = lambda: None

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
        together: changes the flat graphs of a program before that, all at once, if there is one error sweep only.
    """

    def __init__(
        self,
        program: Program,
        functions: Mapping[str, LocalFunction],
        compile_graph: Compile = as_it_is,
        fragments: dict[Hashable, Fragment] | None = None,
        together: Together = list,
    ) -> None:
        self.together = together
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

    def substitution(self, function: LocalFunction, kinds: Mapping[Leaf, Any]) -> Substitution:
        """What a vertex is traced with, given stand-ins for what it reads: its own operators, here."""
        return Substitution()

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
        tensors = plan.tensors(clamped)
        if plan.scalars:
            tensors |= self._scalars(run, plan)
        recorder = self._recorder(run, plan)
        plan.prediction.run(tensors, False, recorder)
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
            tensors |= self._scalars(run, plan)
        errors = outputs if self.lowered.negated else {name: negative(d) or () for name, d in outputs.items()}
        sweep = self._sweep(plan, errors)
        tensors |= sweep.enter(errors)
        for stage in sweep.stages:
            self._run(run, stage, state, keep)
        if self.infers:
            run.check_finite(self.program, state)
        found = {name: tensors[key] for name, key in sweep.gradients.items()}
        if state.recorder is not None:
            found = dict(zip(found, copies(list(found.values())), strict=True))
            plan.finish(state)
        return {name: (gradient,) for name, gradient in found.items()}

    def _run(self, run: Run, stage: _Stage, state: FlatState, keep: bool) -> None:
        piece, release = stage.piece, not (keep or state.recorder)
        if not piece.loop:
            stage.run(state.tensors, release, state.recorder)
            self._after_step(run, stage, state)
            return
        span = piece.span
        times = span.stop.at(run.rule.steps) - span.start.at(run.rule.steps)
        if state.recorder is not None:
            stage.run(state.tensors, False, state.recorder, times)
            self._after_step(run, stage, state)
            return
        for _ in range(times):
            if run.settled():
                break
            stage.run(state.tensors, False)
            self._after_step(run, stage, state)

    def _recorder(self, run: Run, plan: _Plan) -> Recorder | None:
        """What records the run's launches, if that is wanted and nothing happens between them.

        Raises:
            UsageError: it is asked for, and not possible.
        """
        if not run.cuda_graph or (plan.recorder is None and run.cuda_graph == "auto"):
            return None
        between = "reads its energy in every step" if run.records else "changes parameters while it infers"
        if run.records or run.optimizer_step is not None or plan.recorder is None:
            if run.cuda_graph == "auto":
                return None
            problem = "not everything is on one GPU" if plan.recorder is None else f"the rule {between}"
            raise UsageError(f"no CUDA graph of this step: {problem}", cure='use cuda_graph="auto" or False')
        return plan.free_recorder()

    def _after_step(self, run: Run, stage: _Stage, state: FlatState) -> None:
        state.places = stage.places
        if stage.piece.descents:
            for parameter, key in stage.piece.descents:
                run.descend(parameter, None if key is None else (state.tensors[key],))
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
            self.lowered,
            self.functions,
            fakes,
            value_optimizer(run.rule),
            self.needed,
            self.fragments,
            self.substitution,
        )
        given = self._all_given(expansion)
        graphs, keys = expansion.error_sweep(given)
        devices = {value.device for value in fakes.values() if isinstance(value, torch.Tensor)}
        pieces = [graph.finish() for graph in (expansion.prediction, *graphs)]
        if sum(part is not None for parts in given.values() for part in parts) == 1:  # an error or none: one sweep
            pieces = self.together(pieces)
        plan = _Plan(expansion, self._stage(pieces[0], {}), {}, recorder_of(devices))
        plan.sweeps[_mask(given)] = _Sweep(self._stages(plan, pieces[1:]), keys, given)
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
            plan.sweeps[mask] = _Sweep(self._stages(plan, [graph.finish() for graph in graphs]), keys, given)
        return plan.sweeps[mask]

    def _stages(self, plan: _Plan, pieces: list[FlatPiece]) -> list[_Stage]:
        places = plan.prediction.places
        stages = []
        for piece in pieces:
            stages.append(self._stage(piece, places))
            places = stages[-1].places
        later = _keys_of(places.values()) if self.infers else set()  # whether they are finite is asked afterwards
        for stage in reversed(stages):
            later |= _keys_of(stage.piece.results.values())
            stage.last_reads = tuple(key for key in stage.piece.inputs if key not in later)
            later.update(stage.piece.inputs)
        return stages

    def _stage(self, piece: FlatPiece, before: Mapping[Quantity, tuple[Any, ...] | None]) -> _Stage:
        new = {quantity: parts for quantity, parts in piece.results.items() if quantity[0] != "gradient"}
        return _Stage(piece, self.compile_graph(piece), {**before, **new})


def _keys_of(quantities: Iterable[tuple[Any, ...] | None]) -> set[str]:
    return {key for parts in quantities for key in parts or () if isinstance(key, Key)}


def _mask(errors: Mapping[str, Value]) -> Hashable:
    return tuple((name, tuple(part is None for part in parts)) for name, parts in errors.items())


def _laid_out(part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(like.shape, like.stride(), dtype=part.dtype, device=part.device).copy_(part)
