"""Capture with torch.fx.symbolic_trace, or take a torch.fx.GraphModule as it is.

Such graphs call modules and write in place. Both are made explicit, so that the graph means what an exported one does:
every tensor a node reads is an argument, every tensor it changes is a result.
"""

from __future__ import annotations

import inspect
import operator
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from pccompile.call import Call
from pccompile.capture.captured import Captured, Effect, Leaf
from pccompile.capture.hooks import refuse_hooks_of_root
from pccompile.capture.shapes import ShapeDomain
from pccompile.capture.source import source_of_exception, source_of_stack
from pccompile.capture.state import TRACERS_OWN, refuse_changes
from pccompile.capture.watch import REFUSED_METHODS
from pccompile.errors import CaptureError, DataDependentError, Place, PythonStateError
from pccompile.ir.grammar import Kind

__all__ = ["ModuleCall", "OutOfPlace", "capture_symbolic"]


class ModuleCall:
    """A module as a function of its inputs and its state; in training it returns its changed buffers as well."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.__name__ = type(module).__name__
        self.buffers = tuple(name for name, _ in module.named_buffers()) if module.training else ()

    def __call__(self, *args: Any, state: dict[str, torch.Tensor], **kwargs: Any) -> Any:
        """The module's output, followed by its buffers after the call if it is in training and has any."""
        own = {**state, **{name: state[name].detach().clone() for name in self.buffers}}
        output = torch.func.functional_call(self.module, own, args, kwargs)
        return (output, *(own[name] for name in self.buffers)) if self.buffers else output


class OutOfPlace:
    """An in-place operator that leaves its first argument alone and returns what would have become of it."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function = function
        self.__name__ = name

    def __call__(self, target: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The changed copy."""
        copy = target.clone()
        result = self.function(copy, *args, **kwargs)
        return result if isinstance(result, torch.Tensor) else copy


def capture_symbolic(call: Call) -> Captured:
    """Capture by `torch.fx.symbolic_trace`; a `torch.fx.GraphModule` is taken as it is.

    Raises:
        DataDependentError: the forward branches on a tensor's values.
        CaptureError: symbolic tracing failed, or an argument is a container of tensors.
    """
    model, loss_fn = call.model, call.loss_fn
    bound = _bind(model, call.args, call.kwargs)
    refuse_hooks_of_root(model)
    traced = model if isinstance(model, fx.GraphModule) else _trace(model, bound)
    _refuse_methods(traced.graph)
    graph = fx.Graph()
    outputs = graph.graph_copy(traced.graph, {})
    graph.output(outputs)
    for old, new in zip(traced.graph.nodes, graph.nodes, strict=True):
        new.meta = dict(old.meta)
    positions = _positions(bound, call.args, call.kwargs)
    loss_nodes = _append_loss(graph, loss_fn, call.targets) if loss_fn is not None else frozenset()
    leaves = _input_leaves(graph, bound, positions)
    effects = _make_state_explicit(graph, traced, leaves)
    _make_writes_explicit(graph, leaves, effects)
    changed = {effect.node for effect in effects}
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output") or node.name in changed)
    return _captured(graph, traced, leaves, effects, loss_nodes, has_loss=loss_fn is not None)


_TARGETS = "(targets)"  # no argument of a forward can have this name


class _SourceTracer(fx.Tracer):
    record_stack_traces = True
    proxy_buffer_attributes = True  # else writing to a buffer would happen now, and never again

    def create_proxy(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Proxy:
        """A proxy, refused where its node would lose the state it is made under, or its effect."""
        if kind == "call_method" and target in REFUSED_METHODS:
            cause, cure = REFUSED_METHODS[target]
            raise CaptureError(cause, Place(node=target), cure)
        if not torch.is_grad_enabled():
            raise CaptureError("torch.fx does not trace torch.no_grad", Place(node=str(target)), _EXPORT)
        return super().create_proxy(kind, target, *args, **kwargs)


_EXPORT = 'use capture="export", which traces it'


def _refuse_methods(graph: fx.Graph) -> None:
    """Refuse hooks and derivatives inside the forward: on the program's values they would do nothing."""
    for node in graph.nodes:
        if node.op == "call_method" and node.target in REFUSED_METHODS:
            place = Place(
                _module_of(node)[0] or "(top level)", node.name, source_of_stack(node.meta.get("stack_trace")) or None
            )
            raise CaptureError(REFUSED_METHODS[node.target][0], place, REFUSED_METHODS[node.target][1])


def _bind(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _trace(model: nn.Module, bound: dict[str, Any]) -> fx.GraphModule:
    constants = {name: value for name, value in bound.items() if not isinstance(value, torch.Tensor)}
    tracer = _SourceTracer()
    try:
        with refuse_changes(model):
            graph = tracer.trace(model, concrete_args=constants or None)
            return _with_constants(fx.GraphModule(model, graph))
    except Exception as error:
        place = Place(type(model).__name__, _last_node(error), source_of_exception(error.__traceback__) or None)
        if isinstance(error, CaptureError):
            source = None if isinstance(error, PythonStateError) else place.source
            known = Place(error.place.module or place.module, error.place.node, source)
            raise type(error)(error.cause, known, error.cure) from error
        branch = "control flow" in str(error)
        kind = DataDependentError if branch else CaptureError
        cure = 'use capture="export", which follows branches on shapes' if branch else None
        raise kind(f"{type(error).__name__}: {error}", place, cure) from error


def _with_constants(traced: fx.GraphModule) -> fx.GraphModule:
    """The tensors that the tracer met and noted are constants of the graph; the model has no buffers of these names."""
    for name in [name for name in traced._buffers if name.startswith(TRACERS_OWN)]:
        traced.__dict__[name] = traced._buffers.pop(name)
    return traced


def _last_node(error: Exception) -> str | None:
    """The node whose value Python asked for, from the frames of the tracer."""
    proxies = [v for frame, _ in traceback.walk_tb(error.__traceback__) for v in frame.f_locals.values()]
    nodes = [proxy.node.name for proxy in proxies if isinstance(proxy, fx.Proxy)]
    return nodes[-1] if nodes else None


def _positions(bound: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, int]:
    """Position of each argument, and of the first target, among the flattened (args, kwargs, targets)."""
    for name, value in bound.items():
        if not isinstance(value, torch.Tensor) and any(isinstance(v, torch.Tensor) for v in pytree.tree_leaves(value)):
            raise CaptureError(
                f"the argument {name!r} is a container of tensors", cure='use capture="export", which flattens it'
            )
    names = [name for name in bound if name not in kwargs][: len(args)] + list(kwargs)
    positions: dict[str, int] = {}
    position = 0
    for name in names:
        positions[name] = position
        position += len(pytree.tree_leaves(bound[name]))
    return {**positions, _TARGETS: position}


def _append_loss(graph: fx.Graph, loss_fn: Callable[..., torch.Tensor], targets: tuple[Any, ...]) -> frozenset[str]:
    output = next(iter(reversed(graph.nodes)))
    outputs = output.args[0]
    before = {node.name for node in graph.nodes}
    first = next(iter(graph.nodes))
    with graph.inserting_before(first):
        holders = [graph.placeholder(f"target_{position}") for position in range(len(targets))]
    for position, holder in enumerate(holders):
        holder.meta["target"] = position
    graph.erase_node(output)
    tracer = fx.proxy.GraphAppendingTracer(graph)
    try:
        proxies = fx.node.map_arg(outputs, lambda node: fx.Proxy(node, tracer))
        loss = loss_fn(proxies, *(fx.Proxy(node, tracer) for node in holders))
    except Exception as error:
        raise CaptureError(
            f"the loss function: {type(error).__name__}: {error}", cure='use capture="export"'
        ) from error
    graph.output((loss.node, outputs))
    return frozenset(n.name for n in graph.nodes if n.name not in before and n.op not in ("placeholder", "output"))


def _input_leaves(graph: fx.Graph, bound: dict[str, Any], positions: dict[str, int]) -> dict[str, Leaf]:
    leaves: dict[str, Leaf] = {}
    for node in [node for node in graph.nodes if node.op == "placeholder"]:
        argument = str(node.target).removeprefix("*")
        if "target" in node.meta:
            leaves[node.name] = Leaf(Kind.INPUT, "", positions[_TARGETS] + node.meta["target"])
        elif argument in positions and isinstance(bound[argument], torch.Tensor):
            leaves[node.name] = Leaf(Kind.INPUT, "", positions[argument])
        else:
            _inline_constant(graph, node, bound.get(argument))
    return leaves


def _inline_constant(graph: fx.Graph, node: fx.Node, value: Any) -> None:
    for user in list(node.users):
        user.args = fx.node.map_arg(user.args, lambda n: value if n is node else n)
        user.kwargs = fx.node.map_arg(user.kwargs, lambda n: value if n is node else n)
    graph.erase_node(node)


def _make_state_explicit(graph: fx.Graph, root: fx.GraphModule, leaves: dict[str, Leaf]) -> list[Effect]:
    """Give every called module its parameters and buffers as arguments; its changed buffers become results."""
    kinds = {name: Kind.PARAMETER for name, _ in root.named_parameters(remove_duplicate=False)}
    kinds |= {name: Kind.BUFFER for name, _ in root.named_buffers(remove_duplicate=False)}
    first_name: dict[int, str] = {}
    for name, tensor in [*root.named_parameters(remove_duplicate=False), *root.named_buffers(remove_duplicate=False)]:
        first_name.setdefault(id(tensor), name)
    state: dict[str, fx.Node] = {}
    effects: dict[str, Effect] = {}

    def get(path: str) -> fx.Node:
        if path in kinds:
            path = first_name[id(operator.attrgetter(path)(root))]
        if path not in state:
            with graph.inserting_before(next(iter(graph.nodes))):
                node = graph.get_attr(path)
            constant = None if path in kinds else operator.attrgetter(path)(root)
            leaves[node.name] = Leaf(kinds.get(path, Kind.CONSTANT), path, constant=constant)
            state[path] = node
        return state[path]

    for node in list(graph.nodes):
        if node.op == "get_attr" and node.name not in leaves:
            if isinstance(operator.attrgetter(str(node.target))(root), nn.Module):
                raise CaptureError(f"the graph reads the module {node.target} as a value", Place(node=node.name))
            node.replace_all_uses_with(get(str(node.target)))
            graph.erase_node(node)
        elif node.op == "call_module":
            call = ModuleCall(root.get_submodule(str(node.target)))
            paths = [name for name, _ in [*call.module.named_parameters(), *call.module.named_buffers()]]
            node.meta["module"] = (str(node.target), call.__name__)
            kwargs = {**node.kwargs, "state": {path: get(f"{node.target}.{path}") for path in paths}}
            inplace = bool(getattr(call.module, "inplace", False))
            node.meta["writes"] = inplace
            node.op, node.target, node.kwargs = "call_function", call, kwargs
            for position, buffer in enumerate(call.buffers):
                _return_buffer(graph, node, position, f"{node.meta['module'][0]}.{buffer}", state, effects, leaves)
            if call.buffers:
                _read_output_from_tuple(graph, node)
    return list(effects.values())


def _return_buffer(
    graph: fx.Graph,
    node: fx.Node,
    position: int,
    path: str,
    state: dict[str, fx.Node],
    effects: dict[str, Effect],
    leaves: dict[str, Leaf],
) -> None:
    with graph.inserting_after(node):
        changed = graph.call_function(operator.getitem, (node, position + 1))
    changed.meta = dict(node.meta)
    leaf = effects[path].leaf if path in effects else leaves[state[path].name]
    effects[path] = Effect(leaf, changed.name)
    state[path] = changed


def _read_output_from_tuple(graph: fx.Graph, node: fx.Node) -> None:
    readers = [user for user in node.users if user.target is not operator.getitem or user.args[0] is not node]
    readers += [user for user in node.users if user.target is operator.getitem and user.meta.get("module") is None]
    with graph.inserting_after(node):
        output = graph.call_function(operator.getitem, (node, 0))
    output.meta = dict(node.meta)
    for reader in readers:
        reader.replace_input_with(node, output)


def _make_writes_explicit(graph: fx.Graph, leaves: dict[str, Leaf], effects: list[Effect]) -> None:
    """Turn every in-place operator into one that returns the changed tensor, which later readers read instead."""
    position = {node: index for index, node in enumerate(graph.nodes)}
    written = {node: leaves[node.name] for node in graph.nodes if node.name in leaves}  # what a node is the value of
    for node in list(graph.nodes):
        if node.op not in ("call_function", "call_method") or not _writes(node):
            continue
        target = node.args[0]
        assert isinstance(target, fx.Node)
        _refuse_aliases(node, target, position)
        name = getattr(node.target, "__name__", str(node.target))
        node.target = OutOfPlace(_function(node), name.rstrip("_"))
        node.op = "call_function"
        for user in list(target.users):
            if user is not node and position.get(user, len(position)) > position[node]:
                user.replace_input_with(target, node)
        if target in written and written[target].kind in (Kind.BUFFER, Kind.INPUT):
            written[node] = written[target]
            effects.append(Effect(written[node], node.name))


def _writes(node: fx.Node) -> bool:
    name = getattr(node.target, "__name__", str(node.target))
    by_name = (name.endswith("_") and not name.endswith("__")) or name in _IN_PLACE_OPERATORS
    flag = node.kwargs.get("inplace") is True or node.meta.get("writes", False)
    reads_tensor = bool(node.args) and isinstance(node.args[0], fx.Node)
    return reads_tensor and (by_name or flag)


def _function(node: fx.Node) -> Callable[..., Any]:
    if node.op == "call_method":
        method = str(node.target)
        return lambda value, *args, **kwargs: getattr(value, method)(*args, **kwargs)
    function: Callable[..., Any] = node.target  # type: ignore[assignment]
    return function


_VIEWS = frozenset(
    [
        "view",
        "reshape",
        "transpose",
        "permute",
        "t",
        "select",
        "narrow",
        "squeeze",
        "unsqueeze",
        "flatten",
        "expand",
        "chunk",
        "split",
        "unbind",
        "getitem",
        "view_as",
        "unflatten",
        "movedim",
        "swapaxes",
        "diagonal",
        "getattr",
    ]
)

_IN_PLACE_OPERATORS = frozenset(
    [
        "iadd",
        "isub",
        "imul",
        "imatmul",
        "itruediv",
        "ifloordiv",
        "imod",
        "ipow",
        "iand",
        "ior",
        "ixor",
        "ilshift",
        "irshift",
        "setitem",
    ]
)


def _refuse_aliases(node: fx.Node, target: fx.Node, position: dict[fx.Node, int]) -> None:
    """A write into a view changes its base too; that is refused if the base, or another view of it, is read later."""
    base = target
    while (
        getattr(base.target, "__name__", str(base.target)) in _VIEWS and base.args and isinstance(base.args[0], fx.Node)
    ):
        base = base.args[0]
    family, queue = {base}, [base]
    while queue:
        for user in queue.pop().users:
            if getattr(user.target, "__name__", str(user.target)) in _VIEWS and user not in family:
                family.add(user)
                queue.append(user)
    later = [user for alias in family - {target} for user in alias.users if position[user] > position[node]]
    if later:
        place = Place(node.meta.get("module", ("", ""))[0], node.name, source_of_stack(node.meta.get("stack_trace")))
        raise CaptureError(
            f"{node.name} writes into {target.name}, whose memory {later[0].name} reads later through another name",
            place,
            'use capture="export", which follows views, or write out of place',
        )


def _captured(
    graph: fx.Graph,
    root: fx.GraphModule,
    leaves: dict[str, Leaf],
    effects: list[Effect],
    loss_nodes: frozenset[str],
    has_loss: bool,
) -> Captured:
    output = next(iter(reversed(graph.nodes)))
    flat, spec = pytree.tree_flatten(output.args[0])
    outputs = [value.name if isinstance(value, fx.Node) else None for value in flat]
    codegen = getattr(root.graph, "_codegen", None)
    if isinstance(codegen, fx.graph._PyTreeCodeGen) and not has_loss:
        spec = codegen.pytree_info.out_spec or spec
    return Captured(
        graph=graph,
        leaves=leaves,
        outputs=outputs,
        constants=[None if isinstance(value, fx.Node) else value for value in flat],
        rebuild=spec.unflatten,
        domain=ShapeDomain(),
        effects=effects,
        modules={node.name: _module_of(node) for node in graph.nodes},
        sources={node.name: source_of_stack(node.meta.get("stack_trace")) for node in graph.nodes},
        loss=outputs[0] if has_loss else None,
        loss_nodes=loss_nodes,
        autocast=True,
    )


def _module_of(node: fx.Node) -> tuple[str, str]:
    if "module" in node.meta:
        return node.meta["module"]  # type: ignore[no-any-return]
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return "", ""
    path, kind = stack[-1]
    return str(path).removeprefix("L['self'].").removeprefix("L['self']"), getattr(kind, "__name__", str(kind))
