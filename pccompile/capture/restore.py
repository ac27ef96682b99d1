"""Put back what eager execution runs where torch.export's decompositions say something else."""

from __future__ import annotations

import torch
from torch import fx

from pccompile.capture.symbolic import OutOfPlace

__all__ = ["overwritten", "restore_eager_operators"]


def restore_eager_operators(graph: fx.Graph) -> None:
    """Replace, in place, the operators of an exported graph that are not what eager mode runs."""
    _restore_composites(graph)
    _restore_in_place(graph)
    for node in graph.nodes:
        if node.op == "call_function" and node.target in _REPLACED:
            node.target = _REPLACED[node.target]


def overwritten(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """What `target.copy_(source)` leaves in the target. `aten.copy`, its functional form, has no derivative."""
    return target.clone().copy_(source, non_blocking)


aten = torch.ops.aten
_REPLACED = {
    aten.copy.default: overwritten,
    # Whether a reshape is a view was decided on the strides of fake tensors; some kernels' outputs have others.
    aten.view.default: aten.reshape.default,
    aten._unsafe_view.default: aten.reshape.default,
}


def _restore_composites(graph: fx.Graph) -> None:
    """Undo decompositions that eager execution does not go through, where nobody reads what they add to the result.

    Eager runs aten.dropout, which rounds differently in low precision; and the functional form of aten.rrelu
    differentiates by its noise as it was before it was drawn.
    """
    for functional, arguments, composite in _DECOMPOSED:
        for node in graph.find_nodes(op="call_function", target=functional):
            getters = list(node.users)
            if any(getter.args[1] != 0 for getter in getters):
                continue
            with graph.inserting_before(node):
                whole = graph.call_function(composite, tuple(node.args[i] for i in arguments if i < len(node.args)))
            whole.meta = dict(node.meta)
            for getter in getters:
                getter.replace_all_uses_with(whole)
                graph.erase_node(getter)
            graph.erase_node(node)


_DECOMPOSED = (
    (aten.native_dropout.default, (0, 1, 2), aten.dropout.default),
    (aten.rrelu_with_noise_functional.default, (0, 2, 3, 4), aten.rrelu.default),
)


def _restore_in_place(graph: fx.Graph) -> None:
    """Differentiate what the user called in place as eager does: by the result, which rounds differently."""
    for functional, in_place in _BY_RESULT:
        for node in graph.find_nodes(op="call_function", target=functional):
            if _first_form(node).endswith("_.default"):
                node.target = OutOfPlace(in_place, functional.__name__)


_BY_RESULT = (
    (aten.elu.default, aten.elu_.default),
    (aten.celu.default, aten.celu_.default),
)


def _first_form(node: fx.Node) -> str:
    """The operator as the user's forward called it, before decomposition: "aten.elu_.default"."""
    target, sources = str(node.target), node.meta.get("from_node")
    while sources:
        target, sources = str(sources[0].target), sources[0].from_node
    return target
