"""The Triton back end: flat graphs with kernels; and where a program is a chain, all steps of inference in one launch.

Whether a chain's inference is one launch is decided once for each kind of inputs. On a GPU both are timed on the first
step's tensors, in every form of launch, and the fastest is taken.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from pccompile import cache
from pccompile.backends.aten import AtenBackend
from pccompile.backends.choice import is_measured
from pccompile.backends.networks import Joined
from pccompile.backends.opened import Apart
from pccompile.backends.plan import FlatState
from pccompile.backends.report import Row
from pccompile.backends.run import Run, State
from pccompile.backends.straight import StraightPlan
from pccompile.backends.timing import measure
from pccompile.backends.triton import (
    is_installed,
    joined_networks,
    with_groups,
    with_joined,
    with_kernels,
    with_recurrences,
)
from pccompile.derivatives import LocalFunction, Value
from pccompile.errors import NonFiniteError
from pccompile.ir.grammar import Program
from pccompile.lowering import Lowered, lower
from pccompile.lowering.expand import Expansion
from pccompile.lowering.fragments import Fragment, Leaf, Substitution, Unsupported, fake_of
from pccompile.lowering.regions import signature
from pccompile.rules import Strict

if TYPE_CHECKING:
    from pccompile.backends.sweep import Sweep, Values
    from pccompile.kernels.strict_sweep.launch import Form

__all__ = ["TritonBackend"]

logger = logging.getLogger("pccompile")


@dataclass(frozen=True)
class _Verdict:
    """Which form of launch runs a chain's inference (None: the flat graphs do), and why."""

    form: Form | None
    reason: str


class TritonBackend(AtenBackend):
    """Executes a program as flat graphs with kernels; see `AtenBackend`.

    Args:
        program, functions, fragments: as for `AtenBackend`.
    """

    def __init__(
        self,
        program: Program,
        functions: Mapping[str, LocalFunction],
        fragments: dict[Hashable, Fragment] | None = None,
    ) -> None:
        super().__init__(program, functions, with_kernels, fragments, with_groups, sums_errors=False)
        self.sweep, problem = _sweep_of(program, functions)
        self.verdicts: dict[Hashable, _Verdict] = {}
        self.verdict = _Verdict(None, problem)
        self.joined: dict[str, Joined] = {}
        self.apart: dict[str, str] = {}
        self._rows: dict[Hashable, list[Row]] = {}
        self._seen: Hashable = None

    def consumed(self, run: Run) -> frozenset[str]:
        """See `AtenBackend.consumed`."""
        return super().consumed(run) if self.sweep is None else frozenset()

    def straight(self, run: Run) -> StraightPlan | None:
        """See `AtenBackend.straight`."""
        return super().straight(run) if self.sweep is None else None

    def substitution(self, function: LocalFunction, kinds: Mapping[Leaf, Any]) -> Substitution:
        """What a vertex is traced with; see `AtenBackend.substitution`.

        Raises:
            Apart: a network that was joined has no kernels.
        """
        joined = self.joined.get(function.vertex.name)
        if joined is not None:
            return with_joined(joined, function, kinds, self.fragments)
        return with_recurrences(function, kinds, self.fragments)

    def expansion(
        self, lowered: Lowered, functions: Mapping[str, LocalFunction], fakes: Mapping[str, Any], run: Run
    ) -> Expansion:
        """See `AtenBackend.expansion`; networks that were opened are joined again where their kernels are taken."""
        self.apart, tensors = {}, [fake for fake in fakes.values() if isinstance(fake, torch.Tensor)]
        while found := joined_networks(self.program, self.functions, tensors, self.apart):
            self.joined = {joined.vertex: joined for joined in found}
            last = found[-1]
            scalars = {
                name: ("gains", levels, _device_of(last.program, joined.vertex, fakes))
                for joined in found
                for name, levels in joined.gains.items()
            }
            gains = {name: fake_of(run.gains(*how)) for name, (_, *how) in scalars.items()}
            try:
                expansion = super().expansion(lower(last.program), last.functions, {**fakes, **gains}, run)
            except Apart as reason:
                self.apart[reason.name] = str(reason)
                continue
            except Unsupported as reason:  # the program may be written without joining anything
                self.apart |= {joined.name: str(reason) for joined in found}
                continue
            expansion.scalars |= {expansion.keys.pop(name): how for name, how in scalars.items()}
            return expansion
        self.joined = {}
        return super().expansion(lowered, functions, fakes, run)

    def feed_forward(self, run: Run, clamped: Mapping[str, Value]) -> State:
        """Predict every vertex once; see `EagerBackend.feed_forward`."""
        state = super().feed_forward(run, clamped)
        if self.sweep is not None:
            state["clamped", ""] = clamped
        return state

    def infer(self, run: Run, state: State, outputs: Mapping[str, Value], keep: bool = False) -> dict[str, Value]:
        """Run the error sweep; see `EagerBackend.infer`."""
        if self.sweep is None:
            return super().infer(run, state, outputs, keep)
        values = self.sweep.values(state, state["clamped", ""])
        key = self.kind_of(run), getattr(run.rule, "tolerance", 0.0) > 0
        if key not in self.verdicts:
            self.verdicts[key] = self._decide(self.sweep, run, values, state, outputs)
        self.verdict = self.verdicts[key]
        form = self.verdict.form
        if form is None:
            return super().infer(run, state, outputs, keep)
        found: dict[str, Value] = self.sweep.run(run, values, form)
        seen = key, run.rule.steps
        if seen not in self._rows:
            self._rows[seen] = self.sweep.rows(run, values, form, self.verdict.reason)
        self._seen = seen
        if isinstance(state, FlatState) and not keep:
            state.plan.finish(state)
        return found

    @property
    def code(self) -> str:
        """What runs, as Python, for the inputs seen last."""
        if self.verdict.form is None or self.latest is None or self.sweep is None:
            return super().code
        steps, gradients = self.sweep.kernels
        return f"{self.latest.prediction.executable.code}\n\n# all steps: {steps}; all gradients: {gradients}\n"

    def report(self) -> list[Row]:
        """What runs each vertex, for the inputs seen last; see `AtenBackend.report`."""
        rows = super().report()
        if self.verdict.form is None:
            return rows
        return [row for row in rows if row.phase == "prediction"] + self._rows[self._seen]

    @property
    def inside(self) -> dict[str, str]:
        """The vertices that run as part of another: those of a network that was joined."""
        return {name: joined.vertex for joined in self.joined.values() for name in joined.inside}

    @property
    def notes(self) -> list[str]:
        """Why what might have been one launch is not."""
        found = [f"{name}: its time steps run one by one: {reason}" for name, reason in self.apart.items()]
        if self.program.rule == Strict.name and self.verdict.form is None:
            found.append(f"not all steps in one launch: {self.verdict.reason}")
        return found

    # Choosing ---------------------------------------------------------------------------------------------------------

    def _decide(self, sweep: Sweep, run: Run, values: Values, state: State, outputs: Mapping[str, Value]) -> _Verdict:
        problem = sweep.objection(run, values)
        if problem:
            return _Verdict(None, problem)
        if not is_measured() or not on_gpu(values):
            return _Verdict(sweep.likely_form(values), "not measured")
        alone = replace(run, energies=[])
        flat = super().infer
        calls: dict[str, Callable[[], Any]] = {"operators": lambda: flat(alone, state, outputs, True)}
        calls |= {form: partial(sweep.run, alone, values, form) for form in sweep.forms()}
        seconds = self._seconds(run, calls)
        fastest = min(seconds, key=seconds.__getitem__)
        told = ", ".join(f"{name} {1e6 * value:.3g} us" for name, value in seconds.items())
        return _Verdict(None if fastest == "operators" else fastest, told)  # type: ignore[arg-type]

    def _seconds(self, run: Run, calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
        """What the whole inference takes, each way that works."""
        from pccompile.kernels.fingerprint import fingerprint

        stages = () if self.latest is None else self.latest.stages
        graphs = [signature(stage.piece.graph) for stage in stages]
        key = cache.digest("strict sweep", run.rule.steps, run.cuda_graph, fingerprint(), *graphs)
        seconds = cache.load(key)
        if isinstance(seconds, dict) and {"operators"} < set(seconds) <= set(calls):
            return seconds
        able = {name: call for name, call in calls.items() if name == "operators" or _works(name, call)}
        measured = measure(able, True)
        seconds = {name: statistics.median(found) for name, found in measured.items()}
        cache.store(key, seconds)
        return seconds


def on_gpu(values: Mapping[str, Value]) -> bool:
    """Whether any of the values is there."""
    return any(isinstance(part, torch.Tensor) and part.is_cuda for value in values.values() for part in value)


def _works(form: str, call: Callable[[], Any]) -> bool:
    """Whether a form of launch runs; whatever goes wrong inside Triton or its compiler, others can run."""
    try:
        call()
    except (NonFiniteError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        logger.warning("a sweep as %s cannot run: %s: %s", form, type(error).__name__, error)
        return False
    return True


def _device_of(program: Program, vertex: str, clamped: Mapping[str, Any]) -> torch.device:
    """Where the parameters of a vertex are."""
    read = (clamped.get(parent.name) for parent in program.parents(vertex))
    return next(value.device for value in read if isinstance(value, torch.Tensor))


def _sweep_of(program: Program, functions: Mapping[str, LocalFunction]) -> tuple[Sweep | None, str]:
    """What runs the program's inference in one launch, or why nothing does."""
    if program.rule != Strict.name:
        return None, f"the rule is {program.rule}"
    if not is_installed():
        return None, "Triton is not installed"
    from pccompile.backends.chain import NoChain, chain_of
    from pccompile.backends.network import NetworkSweep
    from pccompile.backends.sweep import ChainSweep

    try:
        chain = chain_of(program, functions)
    except NoChain as reason:
        return None, str(reason)
    kind = ChainSweep if chain.linear else NetworkSweep
    return kind(program, chain), ""
