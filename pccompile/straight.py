"""The shortest way through a compiled model: one call predicts, one learns, and everything else is looked up before.

Between two training steps their own operators have pushed what Python needs out of the processor's caches, so what a
step costs beside its operators is how much Python it touches: here two lists, two selections from them, two calls.
`Execution` does the same for every program, with all that may happen in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch.autograd.function import Function, FunctionCtx

from pccompile.backends.plan import laid_out
from pccompile.backends.run import Run
from pccompile.compiled import Compiled, Held
from pccompile.errors import DoubleBackwardError
from pccompile.execution import second_backward, without_autocast

__all__ = ["Straight", "straight"]

_BelowAutograd = torch._C._AutoDispatchBelowAutograd
_Pick = Callable[[Sequence[Any]], Sequence[Any]]


class Straight:
    """A compiled model bound to the tensors that it holds, for calls with inputs of one kind; made by `straight`.

    Every selection is from one list: the flattened inputs, what is held, what was predicted, and the output's error.

    Args:
        rest: what is held: parameters, buffers, constants and run-time scalars.
        predict, learn: calls from the list of what they read, which they empty.
        predict_reads, learn_reads, sources: pick what the calls read, and whose gradients there are.
        output: the place of the output (or the loss) in what is predicted.
        is_read: the error sweep reads that output, or what lies in the same memory.
        error, strides: the place of its error in what the error sweep reads, and the strides that it must have.
        divisor: what the error is divided by first; None: nothing.
        gradients: picks the gradient of each source from what is learned.
    """

    __slots__ = (
        *("divisor", "error", "gradients", "is_read", "learn", "learn_reads", "output"),
        *("predict", "predict_reads", "rest", "sources", "strides"),
    )

    def __init__(
        self,
        rest: list[Any],
        predict: Callable[[list[Any]], Sequence[Any]],
        learn: Callable[[list[Any]], Sequence[Any]],
        predict_reads: _Pick,
        learn_reads: _Pick,
        sources: _Pick,
        output: int,
        is_read: bool,
        error: int,
        strides: tuple[int, ...],
        divisor: float | None,
        gradients: _Pick,
    ) -> None:
        self.rest, self.predict, self.learn = rest, predict, learn
        self.predict_reads, self.learn_reads, self.sources = predict_reads, learn_reads, sources
        self.output, self.is_read, self.gradients = output, is_read, gradients
        self.error, self.strides, self.divisor = error, strides, divisor

    def __call__(self, flat: list[Any]) -> torch.Tensor:
        """The output (or the loss); backward through it is the error sweep."""
        values = flat + self.rest
        with _BelowAutograd():
            found = self.predict(list(self.predict_reads(values)))
        output: torch.Tensor = found[self.output]
        if self.is_read:  # autograd hangs what is kept on what is returned: one tensor for both were a cycle
            output = output.detach()
        values += found
        values.append(None)
        linked: torch.Tensor = _apply(self, list(self.learn_reads(values)), output, *self.sources(values))
        return linked

    def gradients_of(self, kept: list[Any], error: torch.Tensor) -> Sequence[Any]:
        """The gradient of every source.

        Args:
            kept: what the error sweep reads, with room for the error; it is emptied.
        """
        if self.divisor is not None:
            error = error / self.divisor
        kept[self.error] = error if error.stride() == self.strides else laid_out(error, self.strides)
        torch._C._set_grad_enabled(True)  # some operators keep what their derivative needs only then
        try:
            with _BelowAutograd():
                return self.gradients(self.learn(kept))
        finally:
            torch._C._set_grad_enabled(False)


class _Learn(Function):
    """Links the output to the sources, as `execution.linked` does."""

    @staticmethod
    def forward(ctx: FunctionCtx, model: Straight, kept: list[Any], output: torch.Tensor, *sources: Any) -> Any:
        ctx.model, ctx.kept = model, kept  # type: ignore[attr-defined]
        return output

    @staticmethod
    def backward(ctx: FunctionCtx, error: torch.Tensor) -> Any:  # type: ignore[override]
        if torch.is_grad_enabled():
            raise DoubleBackwardError("backward was called with create_graph=True")
        model, kept = ctx.model, ctx.kept  # type: ignore[attr-defined]
        if kept is None:
            raise second_backward()
        if torch._C._autograd._get_current_graph_task_keep_graph():
            kept = list(kept)
        else:
            ctx.kept = None  # type: ignore[attr-defined]
        if not torch._C._is_any_autocast_enabled():
            return None, None, None, *model.gradients_of(kept, error)
        with without_autocast():
            return None, None, None, *model.gradients_of(kept, error)


_apply = super(Function, _Learn).apply  # without a look for functorch's transforms at every call


def straight(compiled: Compiled, held: Held, inputs: int, run: Run) -> Straight | None:
    """The shortest way, if there is one: two calls of flat graphs, and one output, with a gradient.

    Args:
        held: the tensors that it will use.
        inputs: how many flattened inputs there are.
        run: of the rule, for inputs of the kind: one that has gone the long way.
    """
    captured, find = compiled.captured, getattr(compiled.backend, "straight", None)
    outputs = [captured.loss] if captured.loss is not None else captured.outputs
    if find is None or compiled.changed or captured.effects or compiled.tracked_outputs != [True]:
        return None
    found, place_of_output = find(run), compiled.place_of_node.get(outputs[0] or "")
    if found is None or found.error is None or place_of_output is None:
        return None
    keys, predicts = found.plan.expansion.keys, found.plan.prediction.piece
    vertex, position = place_of_output
    output = (found.plan.prediction.places.get(("value", vertex)) or {position: None})[position]
    learned = [found.gradients.get(source) for source in compiled.sources]
    unreached = {source for source, place in zip(compiled.sources, learned, strict=True) if place is None}
    if output not in predicts.outputs or unreached & compiled.learned_vertices:
        return None
    rest = {keys[name]: value[0] for name, value in held.clamped.items() if name in keys}
    rest |= {key: value for key, value in found.held.items() if key != found.error}
    names = ["" for _ in range(inputs)]
    for name, index in compiled.inputs:
        names[index] = keys.get(name, "")
    names += [*rest, *predicts.outputs, found.error]
    place = {key: index for index, key in enumerate(names)}
    return Straight(
        list(rest.values()),
        found.predict,
        found.learn,
        _picker([place[key] for key in predicts.inputs]),
        _picker([place[key] for key in found.reads]),
        _picker([place[keys[source]] for source in compiled.sources]),
        predicts.outputs.index(output),
        output in found.reads,
        found.reads.index(found.error),
        found.strides,
        found.divisor,
        _picker(learned),
    )


def _picker(places: Sequence[int | None]) -> _Pick:
    """Picks these places of a sequence; None where there is none."""
    known = [place for place in places if place is not None]
    if len(known) == len(places) > 1:
        return itemgetter(*known)
    return lambda sequence: [None if place is None else sequence[place] for place in places]
