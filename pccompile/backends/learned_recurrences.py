"""Networks by kernels whose parameters learn with a gain for each time step and gate; see `backends/networks.py`.

Errors go back through a layer as they do without gains: one launch for all time steps, which writes beside them what
the products for the parameters read, times the gains.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pccompile.backends.choice import is_faster, is_measured, is_on_gpu
from pccompile.backends.networks import Joined
from pccompile.backends.opened import Apart
from pccompile.backends.recurrence_kinds import KINDS, Kind, Layer, gradients_of
from pccompile.backends.recurrences import joint_graph, network_of, objection_to_network
from pccompile.derivatives import LocalFunction
from pccompile.kernels.devices import recurrence_precision
from pccompile.lowering.fragments import Fragment, Leaf, Substitution, fragment_of

if TYPE_CHECKING:
    from pccompile.backends.executables import Compile

__all__ = ["learned_network", "substitution_for_joined"]


def substitution_for_joined(
    function: LocalFunction,
    joined: Joined,
    kinds: Mapping[Leaf, Any],
    known: dict[Hashable, Fragment],
    rest: Compile,
) -> Substitution:
    """The kernels for a network that was joined.

    Args:
        function: of the network's vertex; it calls `learned_network`.
        joined: the network.
        kinds: a stand-in for each tensor that the function reads.
        known: fragments traced before, to which new ones are added.
        rest: what runs the other operators, where prediction and error are timed both ways.

    Raises:
        Apart: it has no kernels, or they take longer than the operators.
    """
    read = {leaf: kind for leaf, kind in kinds.items() if leaf[0] in joined.apart.reads}
    problem = objection_to_network(joined.network.arguments, list(read.values()))
    if problem:
        raise Apart(problem, joined.name)
    ours = Substitution({learned_network: learned_network}, "not measured")
    if not is_measured() or not is_on_gpu(read.values()):
        return ours
    kernel = joint_graph(fragment_of(function, kinds, None, known, ours))
    taken, reason = is_faster("recurrence", kernel, joint_graph(fragment_of(joined.apart, read, None, known)), rest)
    if not taken:
        raise Apart(reason, joined.name)
    return Substitution(ours.functions, reason)


def learned_network(
    kind: str, gains: Tensor, first_gains: Tensor | None, x: Tensor, hx: Any, *arguments: Any
) -> tuple[Tensor, ...]:
    """A recurrent network whose parameters' gradients have gains; the error of its inputs has none.

    Args:
        kind: "lstm", "gru", "rnn_tanh" or "rnn_relu".
        gains: (layers and directions, 2, steps, gates), float32: of what inputs, and what hidden states contribute; a
            layer that runs backwards has its last time step first.
        first_gains: (states, layers and directions), float32: of the first states, where these are learned.
        x, hx, arguments: those of ATen's operator.

    Returns:
        What that returns.
    """
    places = iter(gains.unbind(0))

    def layer_of(x: Tensor, layer: Layer, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = _LearnedLayer.apply(KINDS[kind], next(places), x, *layer, *states)  # type: ignore[no-untyped-call]
        return found

    if first_gains is not None:
        states = hx if isinstance(hx, list | tuple) else (hx,)
        hx = [_scaled_error(state, gain) for state, gain in zip(states, first_gains.unbind(0), strict=True)]
    return network_of(layer_of, x, hx, *arguments)


class _ScaledError(torch.autograd.Function):
    """States (layers and directions, batch, units) as they are; their errors times gains (layers and directions,)."""

    @staticmethod
    def forward(ctx: Any, state: Tensor, gains: Tensor) -> Tensor:
        ctx.save_for_backward(gains)
        return state.view_as(state)

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor, None]:
        (gains,) = ctx.saved_tensors
        return error * gains.to(error.dtype).view(-1, 1, 1), None


def _scaled_error(state: Tensor, gains: Tensor) -> Tensor:
    scaled: Tensor = _ScaledError.apply(state, gains)  # type: ignore[no-untyped-call]
    return scaled


class _LearnedLayer(torch.autograd.Function):
    """A layer in a direction: its outputs (steps, batch, units) and last states."""

    @staticmethod
    def forward(
        ctx: Any,
        kind: Kind,
        gains: Tensor,
        x: Tensor,
        weight: Tensor,
        recurrent: Tensor,
        bias: Tensor | None,
        recurrent_bias: Tensor | None,
        *states: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.kind, ctx.precision = kind, recurrence_precision()
        drive = kind.drive(x, Layer(weight, recurrent, bias, recurrent_bias))
        found = kind.predict(drive, recurrent, recurrent_bias, states, ctx.precision)
        ctx.save_for_backward(gains, x, weight, recurrent, *found)
        ctx.set_materialize_grads(False)
        return found[0][1:], *kind.last(found)

    @staticmethod
    def backward(ctx: Any, *errors: Tensor | None) -> tuple[Tensor | None, ...]:
        gains, x, weight, recurrent, *found = ctx.saved_tensors
        _, _, wants_x, wants_weight, wants_recurrent, wants_bias, wants_recurrent_bias, *_ = ctx.needs_input_grad
        drive_error, inputs, states, *first = ctx.kind.error(errors, recurrent, found, ctx.precision, gains)
        d_weight, d_bias = gradients_of(inputs, x, wants_weight, wants_bias)
        d_recurrent, d_recurrent_bias = gradients_of(states, found[0][:-1], wants_recurrent, wants_recurrent_bias)
        d_x = None
        if wants_x:
            d_x = (drive_error.view(-1, weight.shape[0]) @ weight).view(x.shape)
        return None, None, d_x, d_weight, d_recurrent, d_bias, d_recurrent_bias, *first
