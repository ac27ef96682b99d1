"""rnn, lstm and gru: the recurrence of a layer, and its error, all time steps in one launch each.

The operators are in the graph already where these kernels were chosen (`backends/recurrences.py`): they are called
without their checks and their dispatch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx

from pccompile.backends.patterns.calls import At, call, item
from pccompile.backends.patterns.match import Match, Pattern, distinct, items_of
from pccompile.kernels.gru.operator import predict_gru, sweep_gru, sweep_learned_gru
from pccompile.kernels.lstm.operator import predict_lstm, sweep_learned_lstm, sweep_lstm
from pccompile.kernels.rnn.operator import predict_rnn, sweep_learned_rnn, sweep_rnn

__all__ = ["PATTERNS"]

_own = torch.ops.pccompile


def _calls(kernel: str, function: Callable[..., Any]) -> Callable[[fx.Node], Iterator[Match]]:
    """The match that calls a function in the place of an operator of the same arguments and results."""

    def candidates(node: fx.Node) -> Iterator[Match]:
        kind = node.meta["val"]
        items = items_of(node) if isinstance(kind, tuple | list) else {}
        if items is None or not node.users:
            return
        results = tuple(items.values()) or (node,)

        def write(graph: fx.Graph, at: At) -> Sequence[fx.Node]:
            found = call(graph, function, fx.node.map_arg(node.args, at), kernel)
            found.meta["val"] = kind
            return [item(graph, found, place, result.meta["val"]) for place, result in items.items()] or [found]

        inputs = distinct(*node.all_input_nodes)
        replaced = (node, *items.values())
        yield Match(kernel, replaced, results, inputs, write, decided=node.meta["origin"].taken)

    return candidates


PATTERNS = (
    Pattern("rnn", "prediction", frozenset([_own.rnn_recurrence.default]), _calls("rnn", predict_rnn)),
    Pattern("rnn", "error", frozenset([_own.rnn_recurrence_error.default]), _calls("rnn", sweep_rnn)),
    Pattern("rnn", "error", frozenset([_own.rnn_recurrence_learned_error.default]), _calls("rnn", sweep_learned_rnn)),
    Pattern("lstm", "prediction", frozenset([_own.lstm_recurrence.default]), _calls("lstm", predict_lstm)),
    Pattern("lstm", "error", frozenset([_own.lstm_recurrence_error.default]), _calls("lstm", sweep_lstm)),
    Pattern(
        "lstm", "error", frozenset([_own.lstm_recurrence_learned_error.default]), _calls("lstm", sweep_learned_lstm)
    ),
    Pattern("gru", "prediction", frozenset([_own.gru_recurrence.default]), _calls("gru", predict_gru)),
    Pattern("gru", "error", frozenset([_own.gru_recurrence_error.default]), _calls("gru", sweep_gru)),
    Pattern("gru", "error", frozenset([_own.gru_recurrence_learned_error.default]), _calls("gru", sweep_learned_gru)),
)
