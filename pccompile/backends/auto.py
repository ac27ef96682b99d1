"""The back end that chooses: measures the others once for each kind of inputs, and remembers what was fastest."""

from __future__ import annotations

import logging
import operator
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from pccompile import cache
from pccompile.backends.aten import AtenBackend
from pccompile.backends.inductor import is_available, with_inductor
from pccompile.backends.kernels import TritonBackend
from pccompile.backends.report import Row
from pccompile.backends.run import Run, State
from pccompile.backends.straight import StraightPlan
from pccompile.backends.timing import measure
from pccompile.backends.triton import is_installed
from pccompile.derivatives import LocalFunction, Value
from pccompile.errors import NonFiniteError
from pccompile.ir.grammar import Kind, Program
from pccompile.lowering.regions import signature

__all__ = ["AutoBackend", "fastest"]

logger = logging.getLogger("pccompile")


class AutoBackend:
    """Executes a program by the fastest of the ATen, Inductor and, on a GPU, Triton back ends; all compute the same.

    The choice is made at the first call with inputs of a kind, by timing steps on those inputs, and kept in
    `pccompile.cache`: by the flat graphs, versions, devices and number of threads.

    Args:
        program, functions: as for `AtenBackend`.

    Attributes:
        seconds: what was measured (in this process or an earlier one), by kind of inputs and back end.
    """

    def __init__(self, program: Program, functions: Mapping[str, LocalFunction]) -> None:
        self.program, self.functions = program, functions
        self.backends: dict[str, AtenBackend] = {"aten": AtenBackend(program, functions)}
        self.latest = "aten"
        self.chosen: dict[Hashable, str] = {}
        self.seconds: dict[Hashable, dict[str, float]] = {}

    @property
    def code(self) -> str:
        """What the chosen back end runs for the inputs seen last."""
        return f"# backend {self.latest!r}\n{self.backends[self.latest].code}"

    def report(self) -> list[Row]:
        """What runs each vertex in the chosen back end; see `AtenBackend.report`."""
        return self.backends[self.latest].report()

    @property
    def notes(self) -> list[str]:
        """What the chosen back end has to say of its choices."""
        found: list[str] = getattr(self.backends[self.latest], "notes", [])
        return found

    def consumed(self, run: Run) -> frozenset[str]:
        """See `AtenBackend.consumed`."""
        name = self.chosen.get(self.backends["aten"].kind_of(run))
        return frozenset() if name is None else self.backends[name].consumed(run)

    def straight(self, run: Run) -> StraightPlan | None:
        """See `AtenBackend.straight`."""
        name = self.chosen.get(self.backends["aten"].kind_of(run))
        return None if name is None else self.backends[name].straight(run)

    def feed_forward(self, run: Run, clamped: Mapping[str, Value]) -> State:
        """Predict every vertex once; see `EagerBackend.feed_forward`."""
        self.latest = name = self._choice(run, clamped)
        state = self.backends[name].feed_forward(run, clamped)
        state["backend", ""] = name
        return state

    def infer(self, run: Run, state: State, outputs: Mapping[str, Value], keep: bool = False) -> dict[str, Value]:
        """Run the error sweep; see `EagerBackend.infer`."""
        name: str = state["backend", ""]
        return self.backends[name].infer(run, state, outputs, keep)

    def _choice(self, run: Run, clamped: Mapping[str, Value]) -> str:
        kind = self.backends["aten"].kind_of(run)
        if kind not in self.chosen:
            self.chosen[kind] = self._choose(kind, run, clamped)
        return self.chosen[kind]

    def _choose(self, kind: Hashable, run: Run, clamped: Mapping[str, Value]) -> str:
        pieces = self.backends["aten"].pieces(run, clamped)
        contestants = self._contestants(clamped)
        if pieces is None or len(contestants) == 1:
            return "aten"
        import pccompile

        graphs = [signature(piece.graph) for piece in pieces]
        key = cache.digest("turns of back ends", run.rule, pccompile.__version__, *map(_version, contestants), *graphs)
        measured = cache.load(key)
        if not isinstance(measured, dict) or not {"aten"} <= set(measured) <= set(contestants):
            try:
                measured = self._measured(run, clamped, contestants)
            except NonFiniteError:  # the step that follows says so, with the user's own loss
                return "aten"
            cache.store(key, measured)
        self.seconds[kind] = seconds = {name: statistics.median(found) for name, found in measured.items()}
        name = fastest(measured)
        logger.info(
            "backend 'auto' runs %s by %r: %s",
            self.program.rule,
            name,
            ", ".join(f"{name} {1e3 * value:.3g} ms" for name, value in seconds.items()),
        )
        return name

    def _contestants(self, clamped: Mapping[str, Value]) -> list[str]:
        """The back ends that have what they need: a compiler for Inductor; a GPU and Triton for the kernels."""
        devices = {v[0].device.type for v in clamped.values() if isinstance(v[0], torch.Tensor)}
        makers: dict[str, Callable[..., AtenBackend]] = {}
        if all(map(is_available, devices)):
            makers["inductor"] = partial(AtenBackend, compile_graph=with_inductor, reorders=True)
        if "cuda" in devices and is_installed():
            makers["triton"] = TritonBackend
        for name, make in makers.items():
            if name not in self.backends:
                self.backends[name] = make(self.program, self.functions, fragments=self.backends["aten"].fragments)
        return ["aten", *makers]

    def _measured(self, run: Run, clamped: Mapping[str, Value], contestants: Sequence[str]) -> dict[str, list[float]]:
        def step(backend: AtenBackend) -> Callable[[], Any]:
            parameters = {name: clamped[name][0].detach().clone() for name in self._descended()}

            def call() -> None:
                alone = Run(run.rule, run.kinds, parameters, cuda_graph=run.cuda_graph)
                state = backend.feed_forward(alone, clamped)
                backend.infer(alone, state, self._unit_errors(state))

            return call

        devices = {v[0].device for v in clamped.values() if isinstance(v[0], torch.Tensor) and v[0].is_cuda}
        with torch.random.fork_rng(devices=sorted(device.index for device in devices)):
            calls = {name: step(self.backends[name]) for name in contestants}
            return measure({name: call for name, call in calls.items() if _runs(name, call)}, bool(devices))

    def _descended(self) -> list[str]:
        return [v.name for v in self.program.vertices if v.kind is Kind.PARAMETER and v.requires_grad]

    def _unit_errors(self, state: State) -> dict[str, Value]:
        """A derivative of one for everything that can have one."""
        vertices = self.program.vertices
        loss = [v for v in vertices if v.kind is Kind.LOSS and v.nodes]
        return {
            vertex.name: tuple(
                torch.ones_like(part) if component.free and isinstance(part, torch.Tensor) else None
                for part, component in zip(state["value", vertex.name], vertex.components, strict=True)
            )
            for vertex in loss or [v for v in vertices if v.kind is Kind.OUTPUT]
        }


def fastest(measured: Mapping[str, Sequence[float]]) -> str:
    """The back end with the least median, if it was ahead of "aten" in three turns of four; else that.

    Of two that take as long, noise picks either: the one that repeats eager PyTorch's bits then stays.

    Args:
        measured: seconds of each, turn by turn.
    """
    aten = measured["aten"]
    ahead = {name: sum(map(operator.lt, found, aten)) / len(aten) for name, found in measured.items()}
    clear = [name for name in measured if name == "aten" or ahead[name] >= 0.75]
    return min(clear, key=lambda name: statistics.median(measured[name]))


def _version(name: str) -> str:
    """A back end's name, and what of it a release's number does not tell."""
    if name != "triton":
        return name
    from pccompile.kernels.fingerprint import fingerprint

    return f"{name} {fingerprint()}"


def _runs(name: str, call: Callable[[], Any]) -> bool:
    """Whether a back end can take a step; those with compilers may fail, when they compile or in what they made."""
    if name == "aten":
        return True
    try:
        call()
    except (NonFiniteError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever goes wrong inside Inductor or Triton, ATen can run
        logger.warning("backend %r cannot run this program: %s: %s", name, type(error).__name__, error)
        return False
    return True
