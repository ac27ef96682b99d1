"""Blocks that a model repeats are traced once: what torch.export records of the first is copied for the others.

While a model is traced, every call of an equal block after the first is one opaque operator; then the nodes of the
first call are copied into its place, reading the block's own arguments, parameters and buffers. Blocks are equal if
they have the same modules, kinds of tensors and Python values, and are called with arguments of the same kinds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.fx.node import has_side_effect
from torch.utils import _pytree as pytree

from pccompile.capture.reads import block_key, modules_of

__all__ = ["NotRepeatedError", "Repeats"]

_PLAIN = (int, float, complex, bool, str, type(None), torch.dtype, torch.device)


class NotRepeatedError(Exception):
    """A block does more than can be copied: the model has to be traced as a whole."""


@dataclass(frozen=True)
class _Record:
    """The first call of a block: what it returned, as a flat list of stand-ins and plain values, and its structure."""

    block: nn.Module
    returned: list[Any]
    structure: pytree.TreeSpec

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [value for value in self.returned if isinstance(value, torch.Tensor)]

    def around(self, tensors: Sequence[torch.Tensor]) -> Any:
        """The same with other tensors."""
        left = iter(tensors)
        flat = [next(left) if isinstance(value, torch.Tensor) else value for value in self.returned]
        return self.structure.unflatten(flat)


@dataclass(frozen=True)
class _Copy:
    """A later call, by which block and for the how manieth time, that is a copy of a record."""

    record: int
    block: nn.Module
    call: int


class Repeats:
    """The repeated blocks of a model while it is traced, and what was recorded of them."""

    def __init__(self, model: nn.Module) -> None:
        self._groups = _equal_blocks(model)
        self._records: list[_Record] = []
        self._numbers: dict[Hashable, int] = {}  # group and kinds of arguments -> record
        self._calls: dict[nn.Module, list[int | None]] = {}  # the record of each call; None: traced as it is
        self._copies: list[_Copy] = []

    @property
    def used(self) -> bool:
        """Whether some call has to be copied."""
        return bool(self._copies)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """While this lasts, calls of repeated blocks are recorded, or replaced by an operator."""
        for number, group in enumerate(self._groups):
            for block in group:
                object.__setattr__(block, "__class__", self._watched(number, block))
        _ACTIVE.append(self)
        try:
            yield
        finally:
            _ACTIVE.pop()
            for block in (block for group in self._groups for block in group):
                object.__setattr__(block, "__class__", type(block).__base__)

    def _watched(self, group: int, block: nn.Module) -> type[nn.Module]:
        """The block's class with its forward watched; the tracer calls that on a stand-in with the same attributes."""
        kind = type(block)

        def forward(self_: Any, *args: Any, **kwargs: Any) -> Any:
            return self._called(group, block, partial(kind.forward, self_), args, kwargs)

        forward.__wrapped__ = kind.forward  # type: ignore[attr-defined]
        named = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
        return type(kind.__name__, (kind,), {**named, "forward": forward})

    def _called(self, group: int, block: nn.Module, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        flat, structure = pytree.tree_flatten((args, kwargs))
        calls, kinds = self._calls.setdefault(block, []), _kinds(flat)
        key = group, structure, kinds
        number = None if kinds is None else self._numbers.get(key)
        if number is not None and set(calls) <= {number}:
            calls.append(number)
            self._copies.append(_Copy(number, block, len(calls) - 1))
            return self._records[number].around(_again(_tensors(flat), len(self._copies) - 1))
        if any(copy.block is block for copy in self._copies):
            raise NotRepeatedError("a block is called in two ways")
        if number is not None or kinds is None or calls:
            calls.append(None)
            return run(*args, **kwargs)
        result, number = self._recorded(block, _tensors(flat), partial(run, *args, **kwargs))
        calls.append(number)
        if number is not None:
            self._numbers[key] = number
        return result

    def _recorded(self, block: nn.Module, given: list[torch.Tensor], run: Callable[[], Any]) -> tuple[Any, int | None]:
        """What a first call returns, and the number of its record; None if it cannot be copied."""
        held = [*given, *block.parameters(), *block.buffers()]
        versions = [tensor._version for tensor in held]
        number = len(self._records)
        _begins(given, number)
        result = run()
        returned, structure = pytree.tree_flatten(result)
        record = _Record(block, returned, structure)
        self._records.append(record)
        _ends(record.tensors, number)
        writes = versions != [tensor._version for tensor in held]
        is_simple = all(isinstance(value, (FakeTensor, *_PLAIN)) for value in returned)
        return result, number if is_simple and not writes else None

    def kinds_of(self, copy: int) -> list[torch.Tensor]:
        """Stand-ins for what a replaced call returns."""
        return self._records[self._copies[copy].record].tensors

    def write_out(self, exported: ExportedProgram) -> None:
        """Put the nodes of the first calls in the place of the operators.

        Raises:
            NotRepeatedError: they cannot be copied.
        """
        graph = exported.graph
        bodies = _bodies(graph)
        places = _Places(exported)
        for node in graph.find_nodes(op="call_function", target=torch.ops.pccompile_capture.again.default):
            copy = self._copies[node.args[1]]
            body = bodies.get(copy.record)
            if body is None:
                raise NotRepeatedError("torch.export moved a block into a graph of its own")
            body.copied(node, places.mapping(self._records[copy.record].block, copy.block), copy.call)
        for target in (_begins, _ends):
            for node in graph.find_nodes(op="call_function", target=target._opoverload):
                graph.erase_node(node)


_ACTIVE: list[Repeats] = []


# Operators ------------------------------------------------------------------------------------------------------------


@torch.library.custom_op("pccompile_capture::begins", mutates_args=())  # type: ignore[untyped-decorator]
def _begins(values: list[torch.Tensor], record: int) -> None:
    """The nodes up to `ends` are a block's; the values are its arguments."""


@torch.library.custom_op("pccompile_capture::ends", mutates_args=())  # type: ignore[untyped-decorator]
def _ends(values: list[torch.Tensor], record: int) -> None:
    """The values are what the block returns."""


@torch.library.custom_op("pccompile_capture::again", mutates_args=())  # type: ignore[untyped-decorator]
def _again(values: list[torch.Tensor], copy: int) -> list[torch.Tensor]:
    """A block's call with these arguments; exists while it is traced only."""
    raise AssertionError("copied into its place before it can run")


@_begins.register_fake  # type: ignore[untyped-decorator]
@_ends.register_fake  # type: ignore[untyped-decorator]
def _(values: list[torch.Tensor], record: int) -> None:
    return None


@_again.register_fake  # type: ignore[untyped-decorator]
def _(values: list[torch.Tensor], copy: int) -> list[torch.Tensor]:
    likes = _ACTIVE[-1].kinds_of(copy)
    return [torch.empty_strided(v.shape, v.stride(), dtype=v.dtype, device=v.device) for v in likes]


for _marker in (_begins, _ends):
    has_side_effect(_marker._opoverload)


# Equal blocks and calls -----------------------------------------------------------------------------------------------


def _equal_blocks(model: nn.Module) -> list[list[nn.Module]]:
    """Groups of the outermost modules with submodules that are equal, and share none."""
    groups: dict[Hashable, list[nn.Module]] = {}
    waiting = [model]
    while waiting:
        children: dict[Hashable, list[nn.Module]] = {}
        for child in waiting.pop()._modules.values():
            if child is not None and child._modules:
                children.setdefault(block_key(child), []).append(child)
        for key, blocks in children.items():
            if key is None or len(blocks) < 2:
                waiting += blocks
            else:
                groups.setdefault(key, []).extend(blocks)
    return [blocks for blocks in groups.values() if _are_apart(blocks)]


def _are_apart(blocks: list[nn.Module]) -> bool:
    inner = [module for block in blocks for module in modules_of(block, None)]
    return len(set(inner)) == len(inner)


def _kinds(flat: list[Any]) -> Hashable:
    """The kinds of a call's flattened arguments, where it matters what they are; None if they are not known."""
    first: dict[int, int] = {}
    kinds: list[Hashable] = []
    for position, value in enumerate(flat):
        if isinstance(value, torch.Tensor):
            if not isinstance(value, FakeTensor | nn.Parameter):
                return None
            sizes = tuple(s.node.expr if isinstance(s, torch.SymInt) else s for s in (*value.shape, *value.stride()))
            kinds.append((first.setdefault(id(value), position), value.dtype, value.device, value.requires_grad, sizes))
        elif isinstance(value, _PLAIN):
            kinds.append((type(value), value))
        else:
            return None
    casts = [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")]
    return (*kinds, *casts, torch.is_grad_enabled())


def _tensors(flat: list[Any]) -> list[torch.Tensor]:
    return [value for value in flat if isinstance(value, torch.Tensor)]


# Copies ---------------------------------------------------------------------------------------------------------------


class _Places:
    """The placeholders of a program's parameters and buffers."""

    def __init__(self, exported: ExportedProgram) -> None:
        nodes = exported.graph.find_nodes(op="placeholder")
        held = (InputKind.PARAMETER, InputKind.BUFFER)
        specs = zip(nodes, exported.graph_signature.input_specs, strict=True)
        self._tensors = {**exported.state_dict, **exported.constants}
        self._node = {id(self._tensors[str(spec.target)]): node for node, spec in specs if spec.kind in held}

    def mapping(self, block: nn.Module, other: nn.Module) -> dict[fx.Node, fx.Node]:
        """The placeholders that one block reads -> those that an equal one reads in their place."""
        pairs = zip(_held(block), _held(other), strict=True)
        return {self._node[id(a)]: self._node[id(b)] for a, b in pairs if id(a) in self._node}


def _held(block: nn.Module) -> list[torch.Tensor]:
    return [
        *(tensor for _, tensor in block.named_parameters(remove_duplicate=False)),
        *(tensor for _, tensor in block.named_buffers(remove_duplicate=False)),
    ]


@dataclass(frozen=True)
class _Body:
    """The nodes of a block's first call, between those that say what it was given and what it returned."""

    begins: fx.Node
    nodes: list[fx.Node]
    ends: fx.Node

    def copied(self, call: fx.Node, held: dict[fx.Node, fx.Node], times: int) -> None:
        """Put a copy in the place of another call.

        Args:
            held: what it reads in the place of the first block's parameters and buffers.
            times: how often its block was called before.
        """
        given = dict(zip(self.begins.args[0], call.args[0], strict=True))
        if not held.keys().isdisjoint(given):
            raise NotRepeatedError("a block is given its own parameter")
        values = {**held, **given}
        path = _Path(_stack(self.begins), _stack(call), self.nodes, times)
        for node in self.nodes:
            with node.graph.inserting_before(call):
                values[node] = node.graph.node_copy(node, lambda read: values.get(read, read))
            values[node].meta = {**node.meta, "nn_module_stack": path.of(node)}
        results = [values.get(result, result) for result in self.ends.args[0]]
        for getter in list(call.users):
            getter.replace_all_uses_with(results[getter.args[1]])
            call.graph.erase_node(getter)
        call.graph.erase_node(call)


def _bodies(graph: fx.Graph) -> dict[int, _Body]:
    """What lies between the markers, by record.

    Raises:
        NotRepeatedError: it has sizes that only its values tell, calls graphs, or writes into what is not its own.
    """
    bodies: dict[int, _Body] = {}
    begins: fx.Node | None = None
    inside: list[fx.Node] = []
    for node in graph.nodes:
        if node.target is _begins._opoverload:
            begins, inside = node, []
        elif node.target is _ends._opoverload:
            if begins is None or begins.args[1] != node.args[1]:
                raise NotRepeatedError("torch.export moved a part of a block")
            bodies[node.args[1]] = _Body(begins, inside, node)
            begins = None
        elif begins is not None:
            inside.append(node)
    for body in bodies.values():
        own = set(body.nodes)
        if any(node.op != "call_function" or _has_own_sizes(node) or _writes_elsewhere(node, own) for node in own):
            raise NotRepeatedError("a block has sizes that its values tell, or writes into what is not its own")
    return bodies


def _has_own_sizes(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return any(free_unbacked_symbols(part) for part in pytree.tree_leaves(value) if part is not None)


def _writes_elsewhere(node: fx.Node, own: set[fx.Node]) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable and not own.issuperset(node.all_input_nodes[:1])


def _stack(node: fx.Node) -> dict[str, tuple[str, Any]]:
    return node.meta.get("nn_module_stack") or {}


class _Path:
    """Where in the model a copy's nodes belong: below the block that was called, for the how manieth time.

    Args:
        first, stack: the modules around the first call and around the copy, down to the blocks themselves.
        nodes: the first call's.
        times: how often the copy's block was called before.
    """

    def __init__(
        self,
        first: dict[str, tuple[str, Any]],
        stack: dict[str, tuple[str, Any]],
        nodes: list[fx.Node],
        times: int,
    ) -> None:
        self.depth, self.stack, self.times = len(first), stack, times
        (_, (self.before, _)), (_, (self.after, _)) = list(first.items())[-1], list(stack.items())[-1]
        keys = {key for node in nodes for key in list(_stack(node))[self.depth :]}
        self.calls = Counter(key.partition("@")[0] for key in keys)  # of each inner module, in one call of the block

    def of(self, node: fx.Node) -> dict[str, tuple[str, Any]]:
        """The stack of a node's copy."""
        inner = list(_stack(node).items())[self.depth :]
        return {**self.stack, **dict(self._renamed(key, path, kind) for key, (path, kind) in inner)}

    def _renamed(self, key: str, path: str, kind: Any) -> tuple[str, tuple[str, Any]]:
        if not path.startswith(self.before):
            raise NotRepeatedError(f"{path} is a part of {self.before}")
        name, _, call = key.partition("@")
        number = int(call or 0) + self.times * self.calls[name]
        name = name.replace(self.before, self.after, 1)
        return (f"{name}@{number}" if number else name), (path.replace(self.before, self.after, 1), kind)
