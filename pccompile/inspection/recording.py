"""Record what a program does while it trains: energies, errors, values, and how far its gradients are from autograd's.

While a recording is on, the program runs in the reference evaluator, step by step, and a `Watcher` looks at the state
after each; so it is slower then, and costs nothing when it is off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from pccompile.backends.literal import LiteralBackend, TorchSemantics
from pccompile.backends.run import Run
from pccompile.call import Call
from pccompile.compiled import Compiled
from pccompile.derivatives import LocalFunction, Value, local_functions
from pccompile.errors import UsageError
from pccompile.execution import Execution
from pccompile.inspection.timeline import timeline
from pccompile.ir.evaluate import Evaluator
from pccompile.ir.grammar import Action, Kind, Program
from pccompile.updates import squared_norm

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from pccompile.module import PCModule

__all__ = ["Frame", "Recording", "record"]


@dataclass
class Frame:
    """One training step.

    Attributes:
        program: what ran.
        steps: T.
        energy: F in each step: of the errors that its updates read, and of the loss where that is inside the program.
        errors: |e_i| by vertex and step, as the updates of the step read it; nan where no update reads it any more.
        divergence: |g - g_autograd| / |g_autograd| by parameter, if asked for.
        values: the values by vertex and step, on the CPU, if asked for.
    """

    program: Program
    steps: int
    energy: list[float] = field(default_factory=list)
    errors: dict[str, list[float]] = field(default_factory=dict)
    divergence: dict[str, float] = field(default_factory=dict)
    values: dict[str, list[Value]] = field(default_factory=dict)


@dataclass
class Recording:
    """What `pccompile.record` saw.

    Attributes:
        frames: one a training step, in order.
        gradients, values: whether these were asked for.
    """

    gradients: bool = False
    values: bool = False
    frames: list[Frame] = field(default_factory=list)
    _functions: dict[int, tuple[Compiled, Mapping[str, LocalFunction]]] = field(default_factory=dict, repr=False)

    def plot(self, frame: int = -1) -> Figure:
        """Energy against step by layer, errors by vertex and step, and divergence by layer, of one training step.

        Raises:
            MissingPackageError: matplotlib is not installed.
            UsageError: nothing has been recorded.
        """
        from pccompile.inspection.recording_views import plot

        return plot(self, frame)

    def to_pandas(self) -> DataFrame:
        """One row for each training step, step and vertex: error norm and energy.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        from pccompile.inspection.recording_views import to_pandas

        return to_pandas(self)

    def to_tensorboard(self, writer: Any) -> None:
        """Write energies, error norms and divergences as scalars, a global step for every training step.

        Args:
            writer: a `torch.utils.tensorboard.SummaryWriter`, or a folder to make one for.
        """
        from pccompile.inspection.recording_views import to_tensorboard

        to_tensorboard(self, writer)

    def watched(self, execution: Execution, call: Call) -> WatchedExecution:
        """An execution that does the same on the same inputs and is written down here."""
        compiled, run, model, loss_fn = execution.compiled, execution.run, execution.model, execution.loss_fn

        def reference() -> list[Any]:
            found = call.run()
            return [found] if loss_fn is not None else pytree.tree_leaves(found)

        key = id(compiled)
        if key not in self._functions:
            self._functions[key] = compiled, local_functions(compiled.program, compiled.captured)
        frame = Frame(compiled.program, run.rule.steps)
        backend = WatchedBackend(compiled.program, self._functions[key][1], frame, self.values)
        watched = replace(compiled, backend=backend)
        given = execution.flat_inputs, execution.held
        return WatchedExecution(watched, run, model, loss_fn, *given, recording=self, frame=frame, reference=reference)


@contextmanager
def record(pc: PCModule, gradients: bool = False, values: bool = False) -> Iterator[Recording]:
    """Record the training steps of a compiled module: `with pccompile.record(pc) as rec: ...`.

    Args:
        pc: the compiled module.
        gradients: also compare every gradient with autograd's, which runs the plain model once more a training step.
        values: also keep every value of every step; large.

    Raises:
        UsageError: the module is being recorded already.
    """
    if pc.recorder is not None:
        raise UsageError("this module is being recorded already", cure="leave the other `with` block first")
    recording = Recording(gradients and pc.rule.name != "Incremental", values)
    before, pc.record_energies, pc.recorder = pc.record_energies, True, recording
    try:
        yield recording
    finally:
        pc.record_energies, pc.recorder = before, None
        recording._functions.clear()


@dataclass
class WatchedExecution(Execution):
    """An execution whose inference is written into a frame."""

    recording: Recording = field(kw_only=True)
    frame: Frame = field(kw_only=True)
    reference: Callable[[], list[Any]] = field(kw_only=True)
    random_states: tuple[torch.Tensor, dict[int, torch.Tensor]] | None = None
    buffers: dict[str, torch.Tensor] = field(default_factory=dict)

    def feed_forward(self) -> list[Any]:
        """As `Execution.feed_forward`; notes what the plain model needs to do the same again."""
        if self.recording.gradients:
            devices = {p.device.index for p in self.model.parameters() if p.is_cuda}
            self.random_states = torch.get_rng_state(), {d: torch.cuda.get_rng_state(d) for d in devices}
            self.buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        return super().feed_forward()

    def infer(self, gradients: Any, keep: bool) -> dict[str, torch.Tensor]:
        """As `Execution.infer`; the frame is added to the recording."""
        found = super().infer(gradients, keep)
        if self.recording.gradients:
            self.frame.divergence = self._divergence(gradients, found)
        self.recording.frames.append(self.frame)
        return found

    def _divergence(self, gradients: Any, found: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Relative errors of the parameters' gradients against autograd's, from the same draws and buffers."""
        now = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(self.buffers[name])
        try:
            assert self.random_states is not None
            on_cpu, on_cuda = self.random_states
            with torch.random.fork_rng(devices=sorted(on_cuda)), torch.enable_grad():
                torch.set_rng_state(on_cpu)
                for device, state in on_cuda.items():
                    torch.cuda.set_rng_state(state, device)
                pairs = [(o, g) for o, g in zip(self.reference(), gradients, strict=True) if g is not None]
                reference = torch.autograd.grad(
                    [o for o, _ in pairs], list(parameters.values()), [g for _, g in pairs], allow_unused=True
                )
        finally:
            with torch.no_grad():
                for name, buffer in self.model.named_buffers():
                    buffer.copy_(now[name])
        return {
            name: _relative_error(found.get(name), expected)
            for name, expected in zip(parameters, reference, strict=True)
            if expected is not None
        }


class WatchedBackend(LiteralBackend):
    """The reference evaluator with a `Watcher` for its tensors."""

    def __init__(
        self, program: Program, functions: Mapping[str, LocalFunction], frame: Frame, keep_values: bool
    ) -> None:
        super().__init__(program, functions)
        self.frame, self.keep_values = frame, keep_values

    def _evaluator(self, run: Run) -> Evaluator:
        self.frame.energy.clear()
        self.frame.errors.clear()
        watcher = Watcher(self.program, self.functions, run, self.frame, self.keep_values)
        return Evaluator(self.program, watcher, run.rule.steps, run.rule.step_size)


class Watcher(TorchSemantics):
    """Writes the state after each step into a frame."""

    def __init__(
        self, program: Program, functions: Mapping[str, LocalFunction], run: Run, frame: Frame, keep_values: bool
    ) -> None:
        super().__init__(program, functions, run)
        self.frame, self.keep_values, self.step = frame, keep_values, 0
        self.windows = timeline(program, run.rule.steps).errors
        self.relaxed = {name for action, name in program.updates if action is Action.RELAX}
        self.before: dict[str, Value | None] = {}

    def end_step(self, evaluator: Evaluator, compared: bool) -> bool:
        """Errors that Compare wrote are read in this step; those that Relax wrote, in the next."""
        current = {**evaluator.error, **{name: self.before.get(name) for name in self.relaxed}}
        norms = {name: _norm(current.get(name)) for name in self.windows}
        for name, norm in norms.items():
            first, until = self.windows[name]
            series = self.frame.errors.setdefault(name, [])
            series.append(0.0 if self.step < first else norm if self.step < until else math.nan)
        self.frame.energy.append(self._energy(evaluator))
        if self.keep_values:
            for name, value in evaluator.value.items():
                self.frame.values.setdefault(name, []).append(tuple(map(_copy, value)))
        self.before = dict(evaluator.error)
        self.step += 1
        return super().end_step(evaluator, compared)

    def _energy(self, evaluator: Evaluator) -> float:
        norms = [series[-1] for name, series in self.frame.errors.items() if self.program.vertex(name).moves]
        energy = sum(norm * norm / 2 for norm in norms if not math.isnan(norm))
        for vertex in self.program.vertices:
            if vertex.kind is Kind.LOSS and vertex.nodes:
                energy += self.run.loss_scale * float(evaluator.value[vertex.name][0])
        return energy


def _norm(error: Value | None) -> float:
    return math.sqrt(float(squared_norm(error)))


def _copy(part: Any) -> Any:
    return part.detach().to("cpu", copy=True) if isinstance(part, torch.Tensor) else part


def _relative_error(found: torch.Tensor | None, expected: torch.Tensor) -> float:
    scale = float(expected.double().norm())
    difference = scale if found is None else float((found.double() - expected.double()).norm())
    return difference / scale if scale else difference
