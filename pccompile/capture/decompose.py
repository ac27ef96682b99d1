"""Open fused operators: recurrent networks, cells and attention become their elementary operators, step by step.

PyTorch's own decompositions will not do: those of `aten.lstm` and its like leave out the dropout between layers, and
for some inputs hand over to another fused kernel. Here every operator has the name that its equation gives it, and
layers are named as PyTorch names their weights: "l0.forget_gate@3" is the forget gate of layer 0 (`weight_ih_l0`) at
time step 3, "l0_reverse.cell@3" the cell of the same layer running backwards.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch
from torch import fx, nn

from pccompile.capture.source import source_of_stack
from pccompile.errors import CaptureError, Place

__all__ = ["Opened", "OpenedNetwork", "decompose", "has_modules_to_open", "masked_softmax", "moves_only"]

_aten = torch.ops.aten
_MOVES = frozenset(
    [operator.getitem, _aten.clone.default, _aten._unsafe_view.default, _aten.cat.default, _aten.stack.default]
)


@dataclass
class Opened:
    """What opening the fused operators of a graph left behind.

    Attributes:
        labels: the name, inside its module, of each node that was written.
        elementary: the nodes that compute (in contrast to those that only move numbers); each is to be a vertex.
        guards: what has to hold of the open sizes for the graph to be right: the numbers of time steps.
    """

    labels: dict[str, str] = field(default_factory=dict)
    elementary: set[str] = field(default_factory=set)
    guards: list[sympy.Basic] = field(default_factory=list)


@dataclass(frozen=True)
class OpenedNetwork:
    """A recurrent network as it was, and where its parts are now; in the meta of its results as "opened".

    Attributes:
        operator: what it was, `aten.lstm.input`.
        arguments: of that, by name; nodes where they are tensors.
        results: the names of the nodes that stand for its results.
        inside: the names of all other nodes that were written for it.
        cells: of each layer and direction, in the order in which the steps run, the names of its operators by label.
    """

    operator: Any
    arguments: Mapping[str, Any]
    results: tuple[str, ...]
    inside: frozenset[str]
    cells: tuple[tuple[Mapping[str, str], ...], ...]


def decompose(graph: fx.Graph) -> Opened:
    """Open, in place, every recurrent network, recurrent cell and attention of an exported graph.

    Raises:
        CaptureError: a recurrent network's number of time steps depends on data.
    """
    opened = Opened()
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in _OPENINGS:
            results = _OPENINGS[node.target](_Writer(node, opened), _arguments(node))
            _replace(node, results)
            for result in results:
                _allow_copies(result)
    _erase_unread(graph, opened)
    opened.elementary |= {node.name for node in graph.nodes if _is_inside_attention(node) and not moves_only(node)}
    return opened


def has_modules_to_open(model: nn.Module) -> bool:
    """Whether the model has recurrent networks, recurrent cells or attention among its modules."""
    kinds = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
    return any(isinstance(module, kinds) for module in model.modules())


def moves_only(node: fx.Node) -> bool:
    """Whether the node moves numbers around and computes none."""
    view = isinstance(node.target, torch._ops.OpOverload) and node.target.is_view
    return view or node.target in _MOVES


def masked_softmax(scores: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Softmax over the last dimension, under a mask: boolean (True takes part) or added to the scores.

    One operator, so that no value is ever minus infinity. Rows that are masked entirely become zero.
    """
    if mask is None:
        return scores.softmax(-1)
    masked = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    weights: torch.Tensor = _aten._safe_softmax.default(masked, -1)
    return weights


@dataclass(frozen=True)
class _Writer:
    """Writes nodes in front of a fused one; they inherit its module and its source line.

    `at` gives them a place in the names: a layer and a time step. `computed` are the names by label, of one place.
    """

    fused: fx.Node
    opened: Opened
    prefix: str = ""
    suffix: str = ""
    computed: dict[str, str] = field(default_factory=dict)

    def at(self, layer: str, step: int) -> _Writer:
        return replace(self, prefix=f"{layer}." if layer else "", suffix=f"@{step}", computed={})

    def compute(self, label: str, target: Callable[..., Any], *args: Any) -> fx.Node:
        node = self.move(label, target, *args)
        self.opened.elementary.add(node.name)
        self.computed[label] = node.name
        return node

    def move(self, label: str, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        with self.fused.graph.inserting_before(self.fused):
            node = self.fused.graph.call_function(target, args, kwargs)
        node.meta = {key: self.fused.meta[key] for key in ("nn_module_stack", "stack_trace") if key in self.fused.meta}
        self.opened.labels[node.name] = f"{self.prefix}{label}{self.suffix}"
        return node

    def parts(self, label: str, node: fx.Node, number: int) -> list[fx.Node]:
        """Equal parts along the last dimension."""
        chunks = self.move(label, _aten.chunk.default, node, number, -1)
        return [self.move(label, operator.getitem, chunks, index) for index in range(number)]

    def size(self, node: fx.Node, dimension: int) -> Any:
        """A size of a tensor: the number, or a node where it changes from batch to batch."""
        size = node.meta["val"].shape[dimension]
        return size if isinstance(size, int) else self.move("size", _aten.sym_size.int, node, dimension)

    def fixed_size(self, node: fx.Node, dimension: int) -> int:
        """A size that what is written depends on; where the graph leaves it open, the present one becomes a guard."""
        size = node.meta["val"].shape[dimension]
        if isinstance(size, int):
            return size
        if size.node.hint is None:
            raise CaptureError(
                "the number of time steps of a recurrent network that is to be opened depends on data",
                Place(node=self.fused.name, source=source_of_stack(self.fused.meta.get("stack_trace"))),
                "pad the sequences to a fixed length, or compile with decompose=False",
            )
        self.opened.guards.append(sympy.Eq(size.node.expr, size.node.hint))
        return int(size.node.hint)

    def number(self, label: str, function: Callable[..., Any], *sizes: Any) -> Any:
        """A function of sizes, likewise."""
        if any(isinstance(size, fx.Node) for size in sizes):
            return self.move(label, function, *sizes)
        return function(*sizes)


State = tuple[fx.Node, ...]


Cell = Callable[[_Writer, fx.Node, State, "_Weights"], State]


@dataclass(frozen=True)
class _Weights:
    """Of one layer and direction; all nodes, the last three None where the layer has none."""

    input: fx.Node
    recurrent: fx.Node
    input_bias: fx.Node | None = None
    recurrent_bias: fx.Node | None = None
    projection: fx.Node | None = None


def _sums(write: _Writer, x: fx.Node, hidden: fx.Node, weights: _Weights) -> tuple[fx.Node, fx.Node]:
    """W_ih x + b_ih, and W_hh h + b_hh."""
    from_input = write.compute("input", _aten.linear.default, x, weights.input, weights.input_bias)
    recurrent = write.compute("recurrent", _aten.linear.default, hidden, weights.recurrent, weights.recurrent_bias)
    return from_input, recurrent


def _lstm_step(write: _Writer, x: fx.Node, state: State, weights: _Weights) -> State:
    """c' = f c + i g and h' = o tanh(c'), with the gates i, f, o and the candidate g."""
    hidden, cell = state
    from_input, recurrent = _sums(write, x, hidden, weights)
    gates = write.compute("gates", _aten.add.Tensor, recurrent, from_input)
    i, f, g, o = write.parts("split", gates, 4)
    input_gate = write.compute("input_gate", _aten.sigmoid.default, i)
    forget_gate = write.compute("forget_gate", _aten.sigmoid.default, f)
    candidate = write.compute("candidate", _aten.tanh.default, g)
    output_gate = write.compute("output_gate", _aten.sigmoid.default, o)
    kept = write.compute("kept", _aten.mul.Tensor, forget_gate, cell)
    written = write.compute("written", _aten.mul.Tensor, input_gate, candidate)
    cell = write.compute("cell", _aten.add.Tensor, kept, written)
    squashed = write.compute("squashed", _aten.tanh.default, cell)
    if weights.projection is None:
        return write.compute("hidden", _aten.mul.Tensor, output_gate, squashed), cell
    read = write.compute("read", _aten.mul.Tensor, output_gate, squashed)
    return write.compute("hidden", _aten.linear.default, read, weights.projection), cell


def _gru_step(write: _Writer, x: fx.Node, state: State, weights: _Weights) -> State:
    """h' = (h - n) z + n with the gates r, z and the candidate n = tanh(x_n + r h_n)."""
    (hidden,) = state
    from_input, recurrent = _sums(write, x, hidden, weights)
    x_r, x_z, x_n = write.parts("input_split", from_input, 3)
    h_r, h_z, h_n = write.parts("recurrent_split", recurrent, 3)
    reset_gate = write.compute("reset_gate", _aten.sigmoid.default, write.compute("reset", _aten.add.Tensor, h_r, x_r))
    update = write.compute("update", _aten.add.Tensor, h_z, x_z)
    update_gate = write.compute("update_gate", _aten.sigmoid.default, update)
    gated = write.compute("gated", _aten.mul.Tensor, h_n, reset_gate)
    candidate_sum = write.compute("candidate_sum", _aten.add.Tensor, x_n, gated)
    candidate = write.compute("candidate", _aten.tanh.default, candidate_sum)
    difference = write.compute("difference", _aten.sub.Tensor, hidden, candidate)
    kept = write.compute("kept", _aten.mul.Tensor, difference, update_gate)
    return (write.compute("hidden", _aten.add.Tensor, kept, candidate),)


def _rnn_step(nonlinearity: Callable[..., Any]) -> Cell:
    def step(write: _Writer, x: fx.Node, state: State, weights: _Weights) -> State:
        """h' = nonlinearity(W_hh h + b_hh + W_ih x + b_ih)."""
        from_input, recurrent = _sums(write, x, state[0], weights)
        total = write.compute("sum", _aten.add.Tensor, recurrent, from_input)
        return (write.compute("hidden", nonlinearity, total),)

    return step


Opening = Callable[[_Writer, dict[str, Any]], Sequence[fx.Node]]


def _one_step(cell: Cell) -> Opening:
    """A cell module: one step."""

    def write_cell(write: _Writer, given: dict[str, Any]) -> State:
        state = given["hx"] if isinstance(given["hx"], list | tuple) else [given["hx"]]
        weights = _Weights(given["w_ih"], given["w_hh"], given["b_ih"], given["b_hh"])
        return cell(write, given["input"], tuple(state), weights)

    return write_cell


def _network(cell: Cell) -> Opening:
    """A recurrent network: layers, directions and time steps of its cell; returns the outputs and the last states."""

    def write_network(write: _Writer, given: dict[str, Any]) -> Sequence[fx.Node]:
        known = set(write.opened.labels)
        source, time = given["input"], 1 if given["batch_first"] else 0
        length = write.fixed_size(source, time)
        initial = given["hx"] if isinstance(given["hx"], list | tuple) else [given["hx"]]
        directions = ("", "_reverse") if given["bidirectional"] else ("",)
        sequence = [write.at("", t).move("x", _aten.select.int, source, time, t) for t in range(length)]
        last: list[State] = []
        cells: list[list[dict[str, str]]] = []
        for layer in range(given["num_layers"]):
            outputs: list[list[fx.Node]] = []
            for direction in directions:
                weights = _weights_of(given, len(last), len(directions))
                state = tuple(write.move("initial", _aten.select.int, part, 0, len(last)) for part in initial)
                steps = range(length) if not direction else reversed(range(length))
                hidden: dict[int, fx.Node] = {}
                cells.append([])
                for t in steps:
                    at = write.at(f"l{layer}{direction}", t)
                    state = cell(at, sequence[t], state, weights)
                    hidden[t] = state[0]
                    cells[-1].append(at.computed)
                outputs.append([hidden[t] for t in range(length)])
                last.append(state)
            sequence = outputs[0] if len(outputs) == 1 else _joined(write, layer, outputs)
            if given["train"] and given["dropout"] and layer < given["num_layers"] - 1:
                sequence = _dropped(write, layer, sequence, given)
        states = [write.move("last", _aten.stack.default, list(parts)) for parts in zip(*last, strict=True)]
        results = [write.move("stack", _aten.stack.default, sequence, time), *states]
        names = tuple(result.name for result in results)
        inside = frozenset(write.opened.labels) - known - set(names)
        network = OpenedNetwork(write.fused.target, given, names, inside, tuple(map(tuple, cells)))
        for result in results:
            result.meta["opened"] = network
        return results

    return write_network


def _weights_of(given: dict[str, Any], index: int, directions: int) -> _Weights:
    """The weights of the index-th layer and direction, from PyTorch's flat list."""
    size = len(given["params"]) // (given["num_layers"] * directions)
    matrix, recurrent, *rest = given["params"][index * size : (index + 1) * size]
    input_bias, recurrent_bias, *rest = rest if given["has_biases"] else (None, None, *rest)
    return _Weights(matrix, recurrent, input_bias, recurrent_bias, rest[0] if rest else None)


def _joined(write: _Writer, layer: int, outputs: list[list[fx.Node]]) -> list[fx.Node]:
    """Both directions side by side, at every step."""
    pairs = enumerate(zip(*outputs, strict=True))
    return [write.at(f"l{layer}", t).move("both", _aten.cat.default, list(pair), -1) for t, pair in pairs]


def _dropped(write: _Writer, layer: int, sequence: list[fx.Node], given: dict[str, Any]) -> list[fx.Node]:
    """Dropout between layers: one mask for all steps, drawn as eager mode draws it, and a product at every step."""
    like = write.fused.meta["val"][0]
    batch = write.size(given["input"], 0 if given["batch_first"] else 1)
    shape = [len(sequence), batch, like.shape[-1]]
    ones = write.move("ones", _aten.ones.default, shape, dtype=like.dtype, device=like.device)
    masks = write.move(f"l{layer}.dropout", _aten.dropout.default, ones, given["dropout"], True)
    dropped = []
    for t, hidden in enumerate(sequence):
        at = write.at(f"l{layer}", t)
        dropped.append(at.compute("dropped", _aten.mul.Tensor, hidden, at.move("mask", _aten.select.int, masks, 0, t)))
    return dropped


def _attention(write: _Writer, given: dict[str, Any]) -> Sequence[fx.Node]:
    """softmax(scale q k^T, masked) v, with dropout on the weights."""
    query, key, value, mask = given["query"], given["key"], given["value"], given["attn_mask"]
    scale = given["scale"]
    if scale is None:
        scale = write.number("scale", operator.pow, write.size(query, -1), -0.5)
    if given["enable_gqa"]:
        groups = write.number("groups", operator.floordiv, write.size(query, -3), write.size(key, -3))
        key = write.move("key_groups", _aten.repeat_interleave.self_int, key, groups, -3)
        value = write.move("value_groups", _aten.repeat_interleave.self_int, value, groups, -3)
    if given["is_causal"]:
        shape = [write.size(query, -2), write.size(key, -2)]
        ones = write.move("ones", _aten.ones.default, shape, dtype=torch.bool, device=query.meta["val"].device)
        mask = write.move("causal_mask", _aten.tril.default, ones)
    scaled = write.compute("query", _aten.mul.Scalar, query, scale)
    transposed = write.move("transposed_key", _aten.transpose.int, key, -2, -1)
    scores = write.compute("scores", _aten.matmul.default, scaled, transposed)
    weights = write.compute("weights", masked_softmax, scores, mask)
    if given["dropout_p"] > 0:
        weights = write.compute("dropped", _aten.dropout.default, weights, given["dropout_p"], True)
    return (write.compute("attended", _aten.matmul.default, weights, value),)


_OPENINGS: dict[Any, Opening] = {
    _aten.lstm.input: _network(_lstm_step),
    _aten.gru.input: _network(_gru_step),
    _aten.rnn_tanh.input: _network(_rnn_step(_aten.tanh.default)),
    _aten.rnn_relu.input: _network(_rnn_step(_aten.relu.default)),
    _aten.lstm_cell.default: _one_step(_lstm_step),
    _aten.gru_cell.default: _one_step(_gru_step),
    _aten.rnn_tanh_cell.default: _one_step(_rnn_step(_aten.tanh.default)),
    _aten.rnn_relu_cell.default: _one_step(_rnn_step(_aten.relu.default)),
    _aten.scaled_dot_product_attention.default: _attention,
}


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The operator's arguments by name, defaults filled in."""
    declared = node.target._schema.arguments  # type: ignore[union-attr]
    given = {argument.name: value for argument, value in zip(declared, node.args, strict=False)}
    defaults = {argument.name: argument.default_value for argument in declared if argument.has_default_value()}
    return {**defaults, **given, **node.kwargs}


def _replace(fused: fx.Node, results: Sequence[fx.Node]) -> None:
    """Let everybody read the results instead of the fused operator's."""
    value = fused.meta["val"]
    for result, part in zip(results, [value] if isinstance(value, torch.Tensor) else value, strict=True):
        result.meta["val"] = part
    if isinstance(value, torch.Tensor):
        fused.replace_all_uses_with(results[0])
    else:
        for getter in list(fused.users):
            getter.replace_all_uses_with(results[int(getter.args[1])])  # type: ignore[call-overload]
            fused.graph.erase_node(getter)
    fused.graph.erase_node(fused)


def _allow_copies(node: fx.Node) -> None:
    """Views of a result were traced for the fused operator's strides, which the elementary one may not have."""
    for user in node.users:
        if moves_only(user):
            if user.target is _aten.view.default:
                user.target = _aten.reshape.default
            _allow_copies(user)


def _erase_unread(graph: fx.Graph, opened: Opened) -> None:
    for node in reversed(list(graph.nodes)):
        if node.name in opened.labels and not node.users:
            del opened.labels[node.name]
            opened.elementary.discard(node.name)
            graph.erase_node(node)


def _is_inside_attention(node: fx.Node) -> bool:
    """Whether the node belongs to an `nn.MultiheadAttention` itself."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return node.op == "call_function" and bool(stack) and str(stack[-1][1]).endswith(".MultiheadAttention")
