"""Local derivatives as ATen: f_i and its products with the transposed Jacobian, traced once per distinct vertex.

A fragment is the trace of one vertex's prediction followed by autograd's own derivative of it: nodes that depend on an
error belong to the error sweep, all others to the prediction. Nothing is bound yet to a place in the model, so vertices
that compute the same function of inputs of the same kind share one fragment, however many layers repeat it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from pccompile.call import kind_of
from pccompile.derivatives import LocalFunction
from pccompile.nodes import call_node

__all__ = [
    "Fragment",
    "Leaf",
    "Substitution",
    "Unsupported",
    "fake_of",
    "fakes",
    "fragment_of",
    "is_random",
    "is_write",
    "may_be_alias",
]

Leaf = tuple[str, int]  # a parent and one of its components


class Unsupported(Exception):
    """The program cannot be written in ATen; the eager back end runs it."""


@dataclass(frozen=True)
class Fragment:
    """One vertex's function and derivative as a graph of ATen operators.

    Attributes:
        graph: from the leaves and the errors to the components and the contributions.
        leaves: the placeholder of each tensor the function reads.
        errors: for each component its error's placeholder; None where no derivative flows through it.
        components: the node, or the constant, of each component.
        contributions: the node of J^T e for each leaf whose gradient may be asked for and that the errors reach.
    """

    graph: fx.Graph
    leaves: dict[Leaf, fx.Node]
    errors: tuple[fx.Node | None, ...]
    components: tuple[Any, ...]
    contributions: dict[Leaf, fx.Node]

    @cached_property
    def predicted(self) -> list[fx.Node]:
        """The nodes that depend on no error, in order."""
        return [node for node in self.graph.nodes if node.op == "call_function" and node not in self.behind]

    @cached_property
    def behind(self) -> set[fx.Node]:
        """The errors, and the nodes that depend on one."""
        found: set[fx.Node] = {node for node in self.errors if node is not None}
        for node in self.graph.nodes:
            if node.op == "call_function" and found.intersection(node.all_input_nodes):
                found.add(node)
        return found

    @cached_property
    def writes(self) -> bool:
        """Whether some node writes into its input: then the order of nodes matters beyond who reads whom."""
        return any(map(is_write, self.graph.nodes))

    @cached_property
    def independent(self) -> set[fx.Node]:
        """The nodes of the prediction that depend on the shapes of what it reads, and on nothing else of it."""
        found: set[fx.Node] = set()
        for node in self.predicted:
            if node.target in _READ_SHAPES_ONLY or found.issuperset(node.all_input_nodes):
                found.add(node)
        return found


@dataclass(frozen=True)
class Substitution:
    """What a fragment is traced with in the place of some operators.

    Attributes:
        functions: by operator; each computes what the operator does.
        reason: why; or, where there are none, why the operators stay; "" where nothing was to be decided.
    """

    functions: Mapping[Any, Callable[..., Any]] = field(default_factory=dict)
    reason: str = ""


_READ_SHAPES_ONLY = (
    torch.ops.aten.empty_like.default,
    torch.ops.aten.full_like.default,
    torch.ops.aten.ones_like.default,
    torch.ops.aten.rand_like.default,
    torch.ops.aten.randn_like.default,
    torch.ops.aten.zeros_like.default,
)


def is_random(node: fx.Node) -> bool:
    """Whether a node draws random numbers."""
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


_AS_IT_IS = Substitution()


@cache
def _mode() -> FakeTensorMode:
    return FakeTensorMode(allow_non_fake_inputs=True)


def fakes() -> AbstractContextManager[Any]:
    """The mode in which all stand-ins live."""
    mode: AbstractContextManager[Any] = _mode()
    return mode


def fake_of(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's stand-in: its shape, strides, dtype and device without its data."""
    if tensor.layout is not torch.strided:
        raise Unsupported(f"a tensor is {tensor.layout}")
    detached = tensor.detach()
    with _mode():
        return torch.empty_strided(detached.shape, detached.stride(), dtype=detached.dtype, device=detached.device)


def fragment_of(
    function: LocalFunction,
    leaves: Mapping[Leaf, Any],
    errors: Sequence[torch.Tensor] | None,
    known: dict[Hashable, Fragment],
    instead: Substitution = _AS_IT_IS,
) -> Fragment:
    """The fragment of a local function at inputs of these kinds, from `known` or traced now and added to it.

    Args:
        leaves: a stand-in for each tensor the function reads, by parent and component; other values themselves.
        errors: a stand-in for the error of each differentiable component; None for contiguous ones.
        instead: what is traced in the place of operators.

    Raises:
        Unsupported: an operator cannot run on stand-ins, or the trace writes into a tensor it also reads.
    """
    positions = {leaf: position for position, leaf in enumerate(leaves)}
    key = (
        _signature(function, positions, instead),
        tuple(kind_of(value) for value in leaves.values()),
        None if errors is None else tuple(kind_of(error) for error in errors),
    )
    if key not in known:
        try:
            known[key] = _trace(function, leaves, errors, instead)
        except Unsupported:
            raise
        except Exception as error:
            raise Unsupported(f"{function.vertex.name}: {type(error).__name__}: {error}") from error
    found = known[key]
    tensors = [leaf for leaf, value in leaves.items() if isinstance(value, torch.Tensor)]
    if list(found.leaves) == tensors:
        return found
    renamed = dict(zip(found.leaves, tensors, strict=True))
    return Fragment(
        found.graph,
        {renamed[leaf]: node for leaf, node in found.leaves.items()},
        found.errors,
        found.components,
        {renamed[leaf]: node for leaf, node in found.contributions.items()},
    )


def _signature(function: LocalFunction, positions: Mapping[Leaf, int], instead: Substitution) -> Hashable:
    """What a local function computes, with its own nodes and leaves numbered."""
    number: dict[str, str] = {}
    for name, read in function.reads.items():
        for index, node, tracked in read:
            asked = tracked and name in function.targets
            number[node] = f"leaf {positions[name, index]}{' asked' if asked else ''}"
    rows: list[str] = []
    for node in function.fx_nodes:
        number[node.name] = f"node {len(rows)}"
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: _Numbered(number[n.name]))
        rows.append(f"{id(instead.functions.get(node.target, node.target))} {args!r} {kwargs!r}")
    free = tuple(component.free for component in function.vertex.components)
    return tuple(rows), tuple(number[node] for node in function.outputs), free, tuple(number.values())


class _Numbered(str):
    __slots__ = ()


def _trace(
    function: LocalFunction,
    leaves: Mapping[Leaf, Any],
    errors: Sequence[torch.Tensor] | None,
    instead: Substitution,
) -> Fragment:
    # a stand-in of its own for each leaf: the tracer tells tensors apart by identity
    tensors = {leaf: fake_of(value) for leaf, value in leaves.items() if isinstance(value, torch.Tensor)}
    asked = [
        (name, index)
        for name, read in function.reads.items()
        for index, _, tracked in read
        if tracked and name in function.targets and (name, index) in tensors
    ]

    def predict(given: Mapping[Leaf, Any]) -> list[Any]:
        values = {node: given[name, index] for name, read in function.reads.items() for index, node, _ in read}
        for node in function.fx_nodes:
            values[node.name] = call_node(node, values, instead.functions)
        return [values[node] for node in function.outputs]

    def joint(inputs: list[torch.Tensor], cotangents: list[torch.Tensor]) -> tuple[list[Any], list[Any]]:
        alone = {leaf: value.detach() for leaf, value in zip(tensors, inputs, strict=True)}
        for leaf in asked:
            alone[leaf].requires_grad_()
        with torch.enable_grad():
            outputs = predict({**leaves, **alone})
        if not asked or not differentiable:
            return outputs, []
        flowing = [outputs[position] for position in differentiable]
        found = torch.autograd.grad(flowing, [alone[leaf] for leaf in asked], cotangents, allow_unused=True)
        return outputs, list(found)

    with _mode(), torch.random.fork_rng(devices=[]):
        probe = {leaf: value.detach().requires_grad_(leaf in asked) for leaf, value in tensors.items()}
        with torch.enable_grad():
            outputs = predict({**leaves, **probe})
        differentiable = [
            position
            for position, (output, component) in enumerate(zip(outputs, function.vertex.components, strict=True))
            if component.free and isinstance(output, torch.Tensor) and output.requires_grad
        ]
        cotangents = [fake_of(e) for e in errors or ()] or [torch.empty_like(outputs[p]) for p in differentiable]
        traced = make_fx(joint)(list(tensors.values()), cotangents)
    return _read(traced.graph, tensors, differentiable, len(function.outputs), asked)


def _read(
    graph: fx.Graph, leaves: Mapping[Leaf, Any], differentiable: list[int], width: int, asked: list[Leaf]
) -> Fragment:
    for node in list(graph.nodes):
        if node.target in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            node.replace_all_uses_with(node.args[0])
    _read_outputs(graph)
    _read_no_running_statistics(graph)
    graph.eliminate_dead_code()
    _refuse_writes(graph)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    result: Any = next(iter(reversed(graph.nodes))).args[0]
    flat = list(result) if not isinstance(result[0], list | tuple) else [*result[0], *result[1]]
    errors: list[fx.Node | None] = [None] * width
    for position, node in zip(differentiable, placeholders[len(leaves) :], strict=True):
        errors[position] = node
    contributions = zip(asked, flat[width:] or [None] * len(asked), strict=True)
    return Fragment(
        graph,
        dict(zip(leaves, placeholders, strict=False)),
        tuple(errors),
        tuple(flat[:width]),
        {leaf: node for leaf, node in contributions if isinstance(node, fx.Node)},
    )


def _read_outputs(graph: fx.Graph) -> None:
    """leaky_relu's derivative is read from its output, which has z's sign and is kept anyway."""
    outputs = {
        node.args[0]: node
        for node in graph.find_nodes(op="call_function", target=torch.ops.aten.leaky_relu.default)
        if len(node.args) < 2 or node.args[1] >= 0
    }
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.leaky_relu_backward.default):
        error, z, slope, _ = node.args
        output = outputs.get(z)
        if output is not None and (*output.args[1:], 0.01)[0] == slope:
            node.args = (error, output, slope, True)


def _read_no_running_statistics(graph: fx.Graph) -> None:
    """The derivative of a normalisation in training mode takes them, and looks at the batch's alone."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.native_batch_norm_backward.default):
        if node.args[7] is True:
            node.args = (*node.args[:3], None, None, *node.args[5:])


def _refuse_writes(graph: fx.Graph) -> None:
    """A write is fine where afterwards only its result is read, of all that lies in the memory it writes into."""
    position = {node: number for number, node in enumerate(graph.nodes)}
    memory: dict[fx.Node, fx.Node] = {}  # what allocated a node's value; the parts of a split are apart
    whole: dict[fx.Node, fx.Node] = {}  # what was split into a part
    lying: dict[fx.Node, list[fx.Node]] = {}  # what lies in a memory, in order
    for node in graph.nodes:
        source = node.all_input_nodes[0] if node.all_input_nodes and may_be_alias(node) else None
        memory[node] = node if source is None else memory[source]
        if source is not None and source.target in _SPLITS:
            memory[node], whole[node] = node, memory[source]
        lying.setdefault(memory[node], []).append(node)
    for node in filter(is_write, graph.nodes):
        written = memory[node.args[0]]
        results = {node}  # what the write gave, and what is seen through it
        results.update(other for other in lying[written] if results & {*other.all_input_nodes[:1]})
        for other in [*lying[written], *lying.get(whole.get(written, written), ())]:
            if other not in results and any(position[user] > position[node] for user in other.users):
                raise Unsupported(f"{node.target} writes into a tensor that is read again")
        if whole.get(written, written).op == "placeholder":
            raise Unsupported(f"{node.target} writes into an input")


_SPLITS = (
    torch.ops.aten.unsafe_chunk.default,
    torch.ops.aten.unsafe_split.Tensor,
    torch.ops.aten.unsafe_split_with_sizes.default,
)
_MAY_BE_ALIAS = frozenset(
    [
        torch.ops.aten._reshape_alias.default,
        torch.ops.aten._to_copy.default,
        torch.ops.aten._unsafe_view.default,
        torch.ops.aten.contiguous.default,
        torch.ops.aten.lift_fresh_copy.default,
        torch.ops.aten.reshape.default,
        *_SPLITS,
    ]
)


def may_be_alias(node: fx.Node) -> bool:
    """Whether a node's value may lie in the memory of its first input."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        return may_be_alias(node.args[0])  # one of several results
    schema = getattr(node.target, "_schema", None)
    annotated = schema is not None and any(result.alias_info is not None for result in schema.returns)
    return annotated or is_write(node) or node.target in _MAY_BE_ALIAS


def is_write(node: fx.Node) -> bool:
    """Whether a node writes into its first input."""
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        return bool(schema.is_mutable)
    return node.op == "call_function" and getattr(node.target, "__name__", "").endswith("_")
