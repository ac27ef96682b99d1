"""What a pattern finds, and what patterns ask of the nodes of a flat graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from pccompile.backends.patterns.calls import Write
from pccompile.lowering.fragments import may_be_alias

__all__ = [
    "VIEWS",
    "Candidates",
    "Match",
    "Pattern",
    "argument",
    "declined",
    "distinct",
    "is_own",
    "is_rows_of",
    "items_of",
    "only_user",
]

_aten = torch.ops.aten
VIEWS = (_aten.view.default, _aten._unsafe_view.default)


@dataclass(frozen=True)
class Match:
    """Nodes of a flat graph that one kernel can compute.

    Attributes:
        kernel: its name.
        replaced: the nodes that go, in any order. Those that others read as well are not among them.
        results: the ones of these that are read outside.
        inputs: the nodes that the call reads.
        write: writes the call into a graph, given what stands there for each input; returns a node for each result.
        launches: of kernels, by the call.
        statistics: those of the inputs that are float32 beside tensors of any dtype.
        kinds: stand-ins for inputs and results that are of another kind once the call has taken its place.
        decided: why it is taken, where that was decided before.
    """

    kernel: str
    replaced: tuple[fx.Node, ...]
    results: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    write: Write
    launches: int = 1
    statistics: tuple[fx.Node, ...] = ()
    kinds: Mapping[fx.Node, Any] = field(default_factory=dict)
    decided: str = ""

    @property
    def graph(self) -> fx.Graph:
        """Where its nodes are."""
        return self.replaced[0].graph

    def kind(self, node: fx.Node) -> Any:
        """A stand-in for what the call reads or gives at a node."""
        return self.kinds.get(node, node.meta["val"])


Candidates = Callable[[fx.Node], Iterator[Match]]


@dataclass(frozen=True)
class Pattern:
    """How an operation is found.

    Attributes:
        kernel: its name.
        part: "prediction" or "error": the nodes of which its heart is one (`lowering.symbols.Origin`); "" for any.
        hearts: the operators of which one is in every match.
        candidates: the matches around a heart, best first.
    """

    kernel: str
    part: str
    hearts: frozenset[Any]
    candidates: Candidates


def argument(node: fx.Node, name: str) -> Any:
    """An argument of an ATen operator by name, its default where it is not given."""
    for position, formal in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if formal.name == name:
            given = node.kwargs.get(name, formal.default_value)
            return node.args[position] if position < len(node.args) else given
    raise KeyError(name)


def only_user(node: fx.Node) -> fx.Node | None:
    """The one node that reads a node, if there is exactly one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def distinct(*nodes: fx.Node | None) -> tuple[fx.Node, ...]:
    """The nodes that there are, each once, in order."""
    return tuple(dict.fromkeys(node for node in nodes if node is not None))


def is_rows_of(rows: fx.Node, tensor: fx.Node) -> bool:
    """Whether a matrix is a tensor with its leading dimensions made one, as a view."""
    shape = tensor.meta["val"].shape
    return len(shape) > 0 and tuple(rows.meta["val"].shape) == (shape[:-1].numel(), shape[-1])


def items_of(node: fx.Node) -> dict[int, fx.Node] | None:
    """The nodes that read an operator's results, by their places; None if others read the tuple or a place twice."""
    users = list(node.users)
    if not all(user.target is operator.getitem for user in users):
        return None
    places = {user.args[1]: user for user in users}
    return places if len(places) == len(users) else None  # type: ignore[return-value]


def is_own(node: fx.Node) -> bool:
    """Whether a node's memory was allocated in this graph and nothing else lies in it or reads it, but one reader."""
    while node.target in VIEWS and len(node.users) == 1:
        node = node.args[0]  # type: ignore[assignment]
    is_call = node.op == "call_function" and isinstance(node.meta.get("val"), torch.Tensor)
    return is_call and len(node.users) == 1 and not may_be_alias(node)


def declined(node: fx.Node, reason: str, kernel: str = "") -> None:
    """Leave a node to the operators (or to other kernels than one), and say why in the report."""
    node.meta.setdefault("declined", reason)
    if kernel:
        node.meta.setdefault("left_by", f"no {kernel}: {reason}")
