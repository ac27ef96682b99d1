"""Tensors and numbers that stand for what a flat graph will compute; operating on them writes nodes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import fx

from pccompile.lowering.fragments import Unsupported, fakes
from pccompile.names import unique_name

__all__ = ["Boxed", "Origin", "Space", "Symbol", "Writer"]


@dataclass(frozen=True)
class Origin:
    """What a node of a flat graph was written for.

    Attributes:
        vertex: the vertex that it belongs to, "" where it belongs to none.
        part: the vertex's prediction, a product with its transposed Jacobian, or a sum in an update.
        taken, left: why other operators were traced in the place of the vertex's own, or why these were not.
    """

    vertex: str = ""
    part: Literal["prediction", "error", "update"] = "update"
    taken: str = ""
    left: str = ""


class Boxed(fx.graph.CodeGen):
    """Code that takes its inputs as one list and empties it, so that each is freed after its last use."""

    def gen_fn_def(self, free_vars: list[str], maybe_return_annotation: str, **_: Any) -> str:
        """The first lines of the function."""
        names = [name.partition(":")[0].strip() for name in free_vars if name != "self"]
        unpack = f"    {', '.join(names)}, = inputs\n" if names else ""
        return f"def forward(self, inputs):\n{unpack}    inputs.clear()"


@dataclass
class Writer:
    """One flat graph being written: what it imports from outside, and what others import from it."""

    name: str
    graph: fx.Graph = field(default_factory=lambda: fx.Graph())
    imports: dict[str, fx.Node] = field(default_factory=dict)
    exports: dict[str, fx.Node] = field(default_factory=dict)
    descents: list[tuple[str, str | None]] = field(default_factory=list)
    closed: bool = False

    def use(self, symbol: Symbol) -> fx.Node:
        """The node of a symbol here: its own, or a placeholder for what another graph (or the caller) provides."""
        if symbol.writer is self:
            return symbol.node
        node = self.placeholder(symbol.key, symbol.fake)
        if symbol.writer is not None:
            symbol.writer.export(symbol)
        return node

    def placeholder(self, key: str, fake: Any) -> fx.Node:
        """The node of an input."""
        if key not in self.imports:
            first = next(iter(self.graph.nodes), None)
            with self.graph.inserting_before(first) if first is not None else self.graph.inserting_after():
                self.imports[key] = self.graph.placeholder(key)
            self.imports[key].meta["val"] = fake
        return self.imports[key]

    def export(self, symbol: Symbol) -> None:
        """Make a symbol's value a result of this graph (import it first where it is not its own)."""
        if self.closed and symbol.key not in self.exports:
            raise Unsupported(f"{symbol.key} is read too late")
        self.exports[symbol.key] = self.use(symbol)


@dataclass(eq=False)
class Symbol:
    """What a node will compute.

    Attributes:
        space: where new nodes go.
        writer: the graph that computes it; None for what the caller provides.
        key: its name, unique in the space.
        node: its node in that graph.
        fake: a tensor without data of its kind, or a number.
        transposed: what it is the transpose of.
    """

    space: Space
    writer: Writer | None
    key: str
    node: Any
    fake: Any
    transposed: Symbol | None = None

    def __add__(self, other: Any) -> Symbol:
        return self.space.emit(operator.add, (self, other))

    def __radd__(self, other: Any) -> Symbol:
        return self if isinstance(other, float | int) and other == 0 else self.space.emit(operator.add, (other, self))

    def __sub__(self, other: Any) -> Symbol:
        return self.space.emit(operator.sub, (self, other))

    def __rsub__(self, other: Any) -> Symbol:
        return self.space.emit(operator.sub, (other, self))

    def __mul__(self, other: Any) -> Symbol:
        return self.space.emit(operator.mul, (self, other))

    def __rmul__(self, other: Any) -> Symbol:
        return self.space.emit(operator.mul, (other, self))

    def __truediv__(self, other: Any) -> Symbol:
        return self.space.emit(operator.truediv, (self, other))

    def __pow__(self, other: Any) -> Symbol:
        return self.space.emit(operator.pow, (self, other))

    def __rpow__(self, other: Any) -> Symbol:
        return self.space.emit(operator.pow, (other, self))

    def __neg__(self) -> Symbol:
        return self.space.emit(operator.neg, (self,))


class Space:
    """Where symbols live: gives each a name and writes nodes into the graph of the moment."""

    def __init__(self) -> None:
        self.writer = Writer("none")
        self.origin = Origin()
        self.names: set[str] = {"self", "inputs"}

    def begin(self, name: str) -> Writer:
        """Start a new graph; what is emitted goes there."""
        self.writer = Writer(name)
        self.writer.graph.set_codegen(Boxed())
        return self.writer

    def unique(self, wish: str) -> str:
        """A name of its own, close to the wish."""
        return unique_name(wish, self.names)

    def given(self, wish: str, fake: Any) -> Symbol:
        """A symbol for something the caller provides."""
        return Symbol(self, None, self.unique(wish), None, fake)

    def emit(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        wish: str | None = None,
        fake: Any = None,
    ) -> Symbol:
        """Write a node that calls target; symbols among the arguments become nodes."""
        kwargs = kwargs or {}
        if target is _TRANSPOSE and args[0].transposed is not None:
            undone: Symbol = args[0].transposed
            return undone
        if fake is None:
            with fakes():
                fake = target(*_map(args, _fake), **_map(kwargs, _fake))
        node = self.writer.graph.call_function(target, _map(args, self.writer.use), _map(kwargs, self.writer.use))
        name = self.unique(wish or str(getattr(target, "__name__", "value")).partition(".")[0])
        node._rename(name)
        node.meta["val"], node.meta["origin"] = fake, self.origin
        return Symbol(self, self.writer, name, node, fake, args[0] if target is _TRANSPOSE else None)


_TRANSPOSE = torch.ops.aten.t.default


def _fake(symbol: Symbol) -> Any:
    return symbol.fake


def _map(value: Any, function: Callable[[Symbol], Any]) -> Any:
    if isinstance(value, Symbol):
        return function(value)
    if isinstance(value, tuple | list):
        return type(value)(_map(part, function) for part in value)
    if isinstance(value, dict):
        return {name: _map(part, function) for name, part in value.items()}
    return value
