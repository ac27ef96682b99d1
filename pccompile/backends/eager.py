"""The eager back end: runs a lowered program, with local derivatives from the autograd engine."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pccompile.backends.run import Run, State, energy
from pccompile.derivatives import Linearisation, LocalFunction, Value
from pccompile.ir.grammar import Action, Kind, Program
from pccompile.lowering import Lowered, Piece, lower
from pccompile.updates import negative

__all__ = ["EagerBackend"]


class EagerBackend:
    """Executes a program through its lowered graphs.

    Args:
        program: the (optimised) program.
        functions: the local function of every predicted vertex.
    """

    def __init__(self, program: Program, functions: Mapping[str, LocalFunction]) -> None:
        self.program = program
        self.lowered: Lowered = lower(program)
        self.prediction_sweep = self.lowered.prediction_sweep.bind(functions)
        self.error_sweep = [(piece, piece.bind(functions)) for piece in self.lowered.error_sweep]
        self.infers = any(action is Action.INFER for action, _ in program.updates)

    def consumed(self, run: Run) -> frozenset[str]:
        """None: local graphs keep what they read. See `AtenBackend.consumed`."""
        return frozenset()

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def feed_forward(self, run: Run, clamped: Mapping[str, Value]) -> State:
        """Predict every vertex once.

        Args:
            clamped: the value of every clamped leaf, by vertex name.

        Returns:
            The state after the pass: values and predictions by quantity.
        """
        state: State = {("value", name): value for name, value in clamped.items()}
        self._execute(self.lowered.prediction_sweep, self.prediction_sweep, run, state)
        return state

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def infer(self, run: Run, state: State, outputs: Mapping[str, Value], keep: bool = False) -> dict[str, Value]:
        """Run the error sweep; returns dF/dtheta by clamped vertex.

        Args:
            state: what `feed_forward` returned; left as it was.
            outputs: dL/dmu of the output vertices where the loss is outside the program; else the derivative of the
                energy by the loss, as the loss vertex's.
            keep: keep the local graphs, for another error sweep from the same state.

        Raises:
            NonFiniteError: inference that moves values ended with an energy that is not finite.
        """
        state = dict(state)
        if keep:
            for quantity in state.values():
                if isinstance(quantity, Linearisation):
                    quantity.keep = True
        for name, derivative in outputs.items():
            error = derivative if self.lowered.negated else negative(derivative)
            if self.program.vertex(name).kind is Kind.LOSS:
                run.loss_error = error
            else:
                state["error", name] = error
        steps = run.rule.steps
        for piece, module in self.error_sweep:
            if not piece.loop:
                self._execute(piece, module, run, state)
                self._after_step(run, state, piece)
                continue
            for _ in range(piece.span.start.at(steps), piece.span.stop.at(steps)):
                if run.settled():
                    break
                self._execute(piece, module, run, state)
                self._after_step(run, state, piece)
        if self.infers:
            run.check_finite(self.program, state)
        return {name: value for (kind, name), value in state.items() if kind == "gradient" and value is not None}

    def _execute(self, piece: Piece, module: torch.nn.Module, run: Run, state: State) -> None:
        results = module(run, *(state.get(quantity) for quantity in piece.reads))
        state.update(zip(piece.writes, results, strict=True))

    def _after_step(self, run: Run, state: State, piece: Piece) -> None:
        run.end_step()
        if self.infers and run.records and piece.compares:
            run.energies.append(energy(self.program, run, state))
