"""Write a lowered program out in ATen: flat graphs with explicit derivatives, no call of a vertex left.

Each piece of the lowered program is run on symbols: a prediction copies the vertex's fragment, a product with the
Jacobian copies those nodes of the fragment's derivative that its readers ask for, and the updates do their sums. What a
later graph reads of an earlier one, a residual say, becomes a result there and an input here, and nothing else is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import fx

from pccompile.derivatives import LocalFunction, Value
from pccompile.ir.grammar import Action, Kind, Span
from pccompile.lowering import Lowered, Piece, Quantity
from pccompile.lowering.batches import batch_products
from pccompile.lowering.fragments import Fragment, Leaf, Substitution, Unsupported
from pccompile.lowering.gains import scale_errors
from pccompile.lowering.gram import sum_errors
from pccompile.lowering.hoist import hoist
from pccompile.lowering.masks import narrow_masks
from pccompile.lowering.parts import join_parts
from pccompile.lowering.predictions import Held, Prediction
from pccompile.lowering.symbolic_updates import SymbolicOptimizer, SymbolicRun, infer_on_symbols, relax_on_symbols
from pccompile.lowering.symbols import Origin, Space, Symbol, Writer
from pccompile.updates import ValueOptimizer, infer, relax

__all__ = ["Expansion", "FlatPiece", "Key", "Scalars"]

Scalars = dict[str, tuple[Any, ...]]  # key of an input that is a number -> how to find it in a run


@dataclass
class FlatPiece:
    """A graph of ATen operators and the names of what it takes and gives.

    Attributes:
        name: what it is, "prediction_sweep".
        span: the steps it belongs to; `loop` says that it runs in each of them.
        graph: takes the inputs as one list, which its code empties, and returns the outputs.
        inputs, outputs: keys of the tensors and numbers.
        descents: parameters whose gradient is handed to their optimizer after it, with the gradient's key.
        results: quantities brought up to date by it, component by component, as keys or as the thing itself.
        compares: whether it brings the errors up to date.
    """

    name: str
    span: Span
    loop: bool
    graph: fx.Graph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    descents: tuple[tuple[str, str | None], ...]
    results: dict[Quantity, tuple[Any, ...] | None]
    compares: bool

    def times(self, steps: int) -> int:
        """How often it runs in so many steps of inference."""
        return self.span.stop.at(steps) - self.span.start.at(steps) if self.loop else 1


class Expansion:
    """A lowered program being written out for inputs of one kind.

    Args:
        lowered: the program.
        functions: the local function of every predicted vertex.
        clamped: a stand-in (or the thing itself, where it is no tensor) for every clamped leaf, by vertex.
        optimizer: the optimizer of the values; its numbers are inputs of the graphs.
        needed: the quantities that somebody reads after a graph has run.
        fragments: fragments traced before.
        substitution: what a vertex's fragment is traced with, given its local function and stand-ins for what it reads.
        sums_errors: loops may carry sums of errors in the place of values; see `gram`.

    Raises:
        Unsupported: the program cannot be written in ATen.
    """

    def __init__(
        self,
        lowered: Lowered,
        functions: Mapping[str, LocalFunction],
        clamped: Mapping[str, Any],
        optimizer: ValueOptimizer,
        needed: set[Quantity],
        fragments: dict[Hashable, Fragment],
        substitution: Callable[[LocalFunction, Mapping[Leaf, Any]], Substitution],
        sums_errors: bool = False,
    ) -> None:
        self.lowered, self.functions, self.fragments, self.needed = lowered, functions, fragments, needed
        self.substitution, self.sums_errors = substitution, sums_errors
        self.names = lowered.prediction_sweep.names
        self.module_of = {self.names[vertex]: function for vertex, function in functions.items()}
        self.space = Space()
        self.scalars: Scalars = {}
        self._numbers: dict[str, Symbol] = {}
        self.optimizer = SymbolicOptimizer(self, optimizer)
        self.state: dict[Quantity, Any] = {}
        self.kinds: dict[str, tuple[Any, ...]] = {}  # identifier -> a stand-in for each component
        self.keys: dict[str, str] = {}  # clamped vertex -> key
        self.first_draws: dict[str, Prediction] = {}  # by identifier of a vertex that draws at random
        for vertex, value in clamped.items():
            symbol = self.space.given(self.names[vertex], value) if isinstance(value, torch.Tensor) else value
            if isinstance(symbol, Symbol):
                self.keys[vertex] = symbol.key
            self.state["value", vertex] = (symbol,)
        drawn = [node for function in functions.values() for node in function.random]
        if len(set(drawn)) < len(drawn):
            raise Unsupported("two vertices repeat the same draw of random numbers")
        self.prediction = self._write(lowered.prediction_sweep)

    def scalar(self, name: str, *how: Any) -> Symbol:
        """A number that the run provides."""
        if name not in self._numbers:
            self._numbers[name] = self.space.given(name, 1.0)
            self.scalars[self._numbers[name].key] = how
        return self._numbers[name]

    def error_sweep(self, outputs: Mapping[str, tuple[Any, ...]]) -> tuple[list[_Written], dict[str, tuple[Any, ...]]]:
        """Write the error sweep.

        Args:
            outputs: for each output vertex (or the loss vertex) a stand-in for the error of each component, or None.

        Returns:
            The graphs, and the keys under which those errors are expected.
        """
        state = dict(self.state)
        keys: dict[str, tuple[Any, ...]] = {}
        loss_error = None
        for name, parts in outputs.items():
            symbols = tuple(
                None if part is None else self.space.given(f"{self.names[name]}_error", part) for part in parts
            )
            keys[name] = tuple(None if symbol is None else symbol.key for symbol in symbols)
            if self.lowered.program.vertex(name).kind is Kind.LOSS:
                loss_error = symbols
            else:
                state["error", name] = symbols
        written: list[_Written] = []
        saved, self.state = self.state, state
        try:
            for piece in self.lowered.error_sweep:
                if piece.loop:
                    written.append(self._enter_loop(piece))
                written.append(self._write(piece, loss_error))
        finally:
            self.state = saved
        stepped = {key for vertex, key in self.keys.items() if (Action.DESCEND, vertex) in self.lowered.program.updates}
        for before, loop in pairwise(written):
            if loop.piece is not None and loop.piece.loop:
                hoist(self.space, before.writer, loop.writer, stepped | set(loop.writer.exports))
        if self.sums_errors:
            self._sum_errors(written, stepped)
        return written, keys

    def _sum_errors(self, written: list[_Written], stepped: set[str]) -> None:
        """Let loops carry sums of errors in the place of values, and drop what nobody reads any more."""
        kept = {part.key for one in written for value in one.results.values() for part in _parts(value)}
        writers = [one.writer for one in written]
        for index, loop in enumerate(written):
            if loop.piece is not None and loop.piece.loop:
                earlier, before, later = writers[: index - 1], writers[index - 1], writers[index + 1 :]
                first = self.prediction.writer
                sum_errors(self.space, first, earlier, before, loop.writer, later, stepped | kept)
        read = kept | {key for writer in writers for key, node in writer.imports.items() if node.users}
        for writer in writers:
            read |= {key for _, key in writer.descents if key is not None}
            writer.exports = {key: node for key, node in writer.exports.items() if key in read}

    # Pieces -----------------------------------------------------------------------------------------------------------

    def _write(self, piece: Piece, loss_error: Value | None = None) -> _Written:
        writer = self.space.begin(piece.name)
        before = dict(self.state)
        run = SymbolicRun(self, loss_error)
        values: dict[fx.Node, Any] = {}
        quantities = iter(piece.reads)
        for node in piece.graph.nodes:
            if node.op == "placeholder":
                values[node] = run if node.name == "run" else self.state.get(next(quantities))
            elif node.op == "output":
                results = fx.node.map_arg(node.args[0], lambda n: Held(values[n]))
                self.state.update(
                    {q: r.value if isinstance(r, Held) else r for q, r in zip(piece.writes, results, strict=True)}
                )
            else:
                self.space.origin = Origin(node.meta.get("vertex", ""))
                values[node] = self._run(node, values)
        results_of = {q: self._read_outside(q, self.state[q]) for q in piece.writes if q in self.needed}
        written = _Written(self, piece, writer, results_of)
        if piece.loop:
            self._leave_loop(written, before)
        for value in results_of.values():
            for part in _parts(value):
                if part.writer is writer:
                    writer.export(part)
        return written

    def _read_outside(self, quantity: Quantity, parts: Any) -> Any:
        """A quantity without what nobody reads of it: of a value that no output is, only what inference cannot move."""
        kind, vertex = quantity
        if kind != "value" or parts is None or self.lowered.program.vertex(vertex).follows:
            return parts
        return tuple(None if free else part for part, free in zip(parts, self._free(vertex), strict=True))

    def _run(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        args = _resolve(node.args, values)
        kwargs = _resolve(node.kwargs, values)
        if node.op == "call_module":
            return self._predict(str(node.target), args[1:])
        if node.op == "call_method":
            if node.target == "get":
                return args[0].get(args[1])
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.target is relax and isinstance(args[1], Symbol):
            return relax_on_symbols(*args)
        if node.target is infer:
            return infer_on_symbols(*args)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _predict(self, name: str, parents: tuple[Value, ...]) -> Prediction:
        function = self.module_of[name]
        values: dict[Leaf, Any] = {}
        for (parent, read), value in zip(function.reads.items(), parents, strict=True):
            for index, _, _ in read:
                values[parent, index] = value[index]
        prediction = Prediction(self, name, function, values, self.first_draws.get(name))
        if function.random:
            self.first_draws.setdefault(name, prediction)
        self.kinds[name] = tuple(part.fake if isinstance(part, Symbol) else part for part in prediction.prediction)
        return prediction

    # Loops ------------------------------------------------------------------------------------------------------------

    def _enter_loop(self, piece: Piece) -> _Written:
        """What the loop carries from step to step gets a place of its own, filled once before the loop."""
        writer = self.space.begin(f"before_{piece.name}")
        for kind, vertex in piece.writes:
            name = f"{self.names[vertex]}_{kind}"
            present, kinds = self.state.get((kind, vertex)), self.kinds.get(self.names[vertex], ())
            if kind == "moment":
                self.state[kind, vertex] = self._carry_moments(writer, vertex, name, present)
            elif kind == "error" or (kind == "value" and present is not None):
                parts = present if present is not None else (None,) * len(kinds)
                self.state[kind, vertex] = tuple(
                    self.carry(writer, name, part, like) if free else part
                    for part, like, free in zip(parts, kinds, self._free(vertex), strict=True)
                )
        return _Written(self, None, writer, {})

    def _carry_moments(self, writer: Writer, vertex: str, name: str, present: Any) -> Any:
        """What the optimizer of the values remembers: as it is now, or as before its first step."""
        value, free = self.state["value", vertex], self._free(vertex)
        present = tuple(
            self.optimizer.start() if is_free and moment is None else moment
            for is_free, moment in zip(free, present or (None,) * len(free), strict=True)
        )

        def carried(part: Any, moment: Any) -> Any:
            if not isinstance(moment, tuple) or part is None:
                return moment
            return tuple(
                self.count(writer, m) if isinstance(m, int) else self.carry(writer, name, m, part.fake) for m in moment
            )

        return tuple(carried(part, moment) for part, moment in zip(value, present, strict=True))

    def count(self, writer: Writer, start: int) -> Symbol:
        """A number that a loop carries."""
        given = self.space.given("moment_count", start)
        writer.exports[given.key] = writer.graph.call_function(int, (start,))
        return given

    def _free(self, vertex: str) -> tuple[bool, ...]:
        return tuple(component.free for component in self.lowered.program.vertex(vertex).components)

    def carry(self, writer: Writer, name: str, start: Symbol | None, like: torch.Tensor) -> Symbol:
        """A tensor that a loop carries: a copy of its start, or zeros like a stand-in."""
        given = self.space.given(name, like)
        if start is None:
            node = writer.graph.call_function(torch.zero_, (_empty_like(writer, like),))
        elif _strides(start) == tuple(like.stride()):
            node = writer.graph.call_function(torch.clone, (writer.use(start),))
        else:
            node = _laid_out(writer, start, like)
        node.meta["val"] = like
        node._rename(self.space.unique(f"{name}_start"))
        writer.exports[given.key] = node
        return given

    def _leave_loop(self, written: _Written, before: dict[Quantity, Any]) -> None:
        """The results of a step go where the next step reads them."""
        writer = written.writer
        for quantity in written.piece.writes:  # type: ignore[union-attr]
            entry, result = before.get(quantity), self.state[quantity]
            if quantity[0] not in ("value", "error", "moment"):
                continue
            places, results = list(_flat(entry)), list(_flat(result))
            if len(places) != len(results):
                raise Unsupported(f"the {quantity[0]} of {quantity[1]} changes its structure from step to step")
            for place, part in zip(places, results, strict=True):
                if isinstance(place, Symbol) and isinstance(part, Symbol):
                    if place is not part:
                        same = _strides(place) == _strides(part)
                        writer.exports[place.key] = writer.use(part) if same else _laid_out(writer, part, place.fake)
                elif isinstance(place, Symbol) or isinstance(part, Symbol):
                    raise Unsupported(f"the {quantity[0]} of {quantity[1]} changes its structure from step to step")
            self.state[quantity] = entry
            if quantity in written.results:
                written.results[quantity] = self._read_outside(quantity, entry)


def _empty_like(writer: Writer, like: torch.Tensor) -> fx.Node:
    options = {"dtype": like.dtype, "device": like.device}
    node = writer.graph.call_function(torch.empty_strided, (tuple(like.shape), tuple(like.stride())), options)
    node.meta["val"] = like
    return node


def _laid_out(writer: Writer, part: Symbol, like: torch.Tensor) -> fx.Node:
    """A copy in the memory layout of another tensor."""
    node = writer.graph.call_function(torch.Tensor.copy_, (_empty_like(writer, like), writer.use(part)))
    node.meta["val"] = like
    return node


@dataclass
class _Written:
    """A graph that is written, until everything that reads from it is."""

    expansion: Expansion
    piece: Piece | None
    writer: Writer
    results: dict[Quantity, Any]

    def finish(self) -> FlatPiece:
        """Close the graph; everything that reads from it has been written by now."""
        graph = self.writer.graph
        self.writer.closed = True
        graph.output(tuple(self.writer.exports.values()))
        graph.eliminate_dead_code()
        narrow_masks(graph)
        join_parts(graph)
        keys = {key for key, (name, *_) in self.expansion.scalars.items() if name == "gain"}
        gains = [node for key, node in self.writer.imports.items() if key in keys]
        for node in gains:
            node.meta["gain"] = True
        scale_errors(graph, gains)
        if keys:
            batch_products(graph)
        graph.lint()
        used = [key for key, node in self.writer.imports.items() if node.users]
        for node in self.writer.imports.values():
            if not node.users:
                graph.erase_node(node)
        order = {node: position for position, node in enumerate(graph.nodes)}
        inputs = tuple(sorted(used, key=lambda key: order[self.writer.imports[key]]))
        piece = self.piece
        span = piece.span if piece is not None else Span.steps(0, 1)
        return FlatPiece(
            self.writer.name,
            span,
            piece is not None and piece.loop,
            graph,
            inputs,
            tuple(self.writer.exports),
            tuple(self.writer.descents),
            {quantity: _keys(value) for quantity, value in self.results.items()},
            piece is not None and piece.compares,
        )


def _resolve(argument: Any, values: dict[fx.Node, Any]) -> Any:
    if isinstance(argument, fx.Node):
        return values[argument]
    if isinstance(argument, tuple | list):
        return tuple(_resolve(part, values) for part in argument)
    if isinstance(argument, dict):
        return {name: _resolve(part, values) for name, part in argument.items()}
    return argument


def _flat(value: Any) -> Any:
    if isinstance(value, tuple):
        for part in value:
            yield from _flat(part)
    else:
        yield value


def _parts(value: Any) -> list[Symbol]:
    return [part for part in _flat(value) if isinstance(part, Symbol)]


def _keys(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_keys(part) for part in value)
    return Key(value.key) if isinstance(value, Symbol) else value


class Key(str):
    """The key of a tensor, as against a string that is a value."""

    __slots__ = ()


def _strides(symbol: Symbol) -> Any:
    return tuple(symbol.fake.stride()) if isinstance(symbol.fake, torch.Tensor) else None
