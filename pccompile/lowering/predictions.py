"""A vertex's prediction, and its products with the Jacobian, written into a flat graph from its fragment."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import fx

from pccompile.derivatives import LocalFunction, Value
from pccompile.lowering.fragments import Fragment, Leaf, Substitution, Unsupported, fragment_of, is_random
from pccompile.lowering.symbols import Origin, Space, Symbol

__all__ = ["Held", "Prediction"]


class Written(Protocol):
    """What a prediction is written into: the space of its symbols, identifiers by vertex, fragments traced before."""

    space: Space
    names: Mapping[str, str]
    fragments: dict[Hashable, Fragment]

    def substitution(self, function: LocalFunction, kinds: Mapping[Leaf, Any]) -> Substitution:
        """What a fragment is traced with, given stand-ins for what its function reads."""


@dataclass
class Held:
    """A symbol among the arguments of a node, which fx would look into."""

    value: Any


class Prediction:
    """A vertex's prediction in a flat graph; stands for `derivatives.Linearisation`.

    Args:
        written: what it is written into.
        name: the vertex's identifier.
        function: its local function.
        leaves: what that reads.
        first: the vertex's first prediction, whose draws are repeated.

    Raises:
        Unsupported: it cannot be written in ATen.
    """

    def __init__(
        self,
        written: Written,
        name: str,
        function: LocalFunction,
        leaves: dict[Leaf, Any],
        first: Prediction | None = None,
    ) -> None:
        self.written, self.name, self.function, self.leaves = written, name, function, leaves
        self.kinds = {leaf: value.fake if isinstance(value, Symbol) else value for leaf, value in leaves.items()}
        self.instead = written.substitution(function, self.kinds)
        self.why = {"taken" if self.instead.functions else "left": self.instead.reason}
        self.fragment = fragment_of(function, self.kinds, None, written.fragments, self.instead)
        self.behind = self.fragment.behind
        self.symbols: dict[fx.Node, Any] = {node: leaves[leaf] for leaf, node in self.fragment.leaves.items()}
        if first is not None:
            if first.fragment.graph is not self.fragment.graph:
                raise Unsupported(f"{name} draws random numbers, and for other kinds of inputs when predicted again")
            self.symbols.update(first.draws())
        if self.fragment.writes:
            for node in self.fragment.predicted:
                self._copy(node, self.symbols)
        self.prediction: Value = tuple(
            self._copy(part, self.symbols, f"{name}" if index == 0 else f"{name}_{index}")
            for index, part in enumerate(self.fragment.components)
        )

    def draws(self) -> dict[fx.Node, Symbol]:
        """What was drawn, for later predictions of the vertex, which repeat it.

        Raises:
            Unsupported: a draw depends on the vertex's inputs.
        """
        drawn = self.fragment.independent
        for node in self.fragment.predicted:
            if is_random(node) and node not in drawn:
                raise Unsupported(f"{self.name} draws random numbers that depend on its inputs")
        return {node: self.symbols[node] for node in drawn if node in self.symbols}

    def pull_back(self, error: Value | None, targets: tuple[str, ...], release: bool = False) -> dict[str, Value]:
        """J(i, parent)^T e_i for each target that the error reaches, as nodes of the graph being written."""
        given = [
            (position, error[position] if error is not None and position < len(error) else None)
            for position, node in enumerate(self.fragment.errors)
            if node is not None
        ]
        if all(part is None for _, part in given):
            return {}
        parts = {position: part if part is not None else self._zeros(position) for position, part in given}
        fragment, symbols = self._for_errors(parts)
        for position, part in parts.items():
            symbols[fragment.errors[position]] = part
        if fragment.writes:
            predicted = set(fragment.predicted)
            for node in fragment.graph.nodes:
                if node.op == "call_function" and node not in predicted:
                    self._copy(node, symbols)
        found: dict[str, list[Any]] = {}
        for (parent, index), node in fragment.contributions.items():
            if parent in targets:
                symbol = self._copy(node, symbols, f"{self.name}_to_{self.written.names[parent]}")
                found.setdefault(parent, [None] * self.function.widths[parent])[index] = symbol
        return {parent: tuple(contribution) for parent, contribution in found.items()}

    def _zeros(self, position: int) -> Symbol:
        like = self.prediction[position].fake
        options = {"dtype": like.dtype, "device": like.device}
        return self.written.space.emit(torch.zeros, (tuple(like.shape),), options)

    def _for_errors(self, parts: dict[int, Symbol]) -> tuple[Fragment, dict[fx.Node, Any]]:
        """The fragment for errors of these layouts, and the symbols of its nodes that are known already."""
        expected = [self.fragment.errors[position].meta["val"] for position in parts]  # type: ignore[union-attr]
        actual = [part.fake for part in parts.values()]
        if all(a.stride() == b.stride() and a.dtype == b.dtype for a, b in zip(expected, actual, strict=True)):
            return self.fragment, _Layered(self.symbols)
        other = fragment_of(self.function, self.kinds, actual, self.written.fragments, self.instead)
        self.behind = self.behind | other.behind
        mine, theirs = self.fragment.predicted, other.predicted
        forward = min(len(mine), len(theirs))
        symbols: dict[fx.Node, Any] = _Layered({node: self.leaves[leaf] for leaf, node in other.leaves.items()})
        for ours, node in zip(mine[:forward], theirs[:forward], strict=True):
            if ours.target is not node.target:
                break
            if ours in self.symbols:
                symbols[node] = self.symbols[ours]
        return other, symbols

    def _copy(self, node: Any, symbols: dict[fx.Node, Any], wish: str | None = None) -> Any:
        """The symbol of a fragment's node, written now (with what it reads) if it is not there yet."""
        if not isinstance(node, fx.Node):
            return node
        stack: list[tuple[fx.Node, str | None]] = [(node, wish)]
        while stack:
            current, name = stack[-1]
            if current in symbols:
                stack.pop()
                continue
            missing = [parent for parent in current.all_input_nodes if parent not in symbols]
            if missing:
                stack += [(parent, None) for parent in missing]
                continue
            stack.pop()
            args = fx.node.map_arg(current.args, lambda n: Held(symbols[n]))
            kwargs = fx.node.map_arg(current.kwargs, lambda n: Held(symbols[n]))
            part: Any = "error" if current in self.behind else "prediction"
            self.written.space.origin = Origin(self.function.vertex.name, part, **self.why)
            operator = str(getattr(current.target, "__name__", current.target)).partition(".")[0].strip("_")
            symbols[current] = self.written.space.emit(
                current.target,  # type: ignore[arg-type]
                _unheld(args),
                _unheld(kwargs),
                wish=name or f"{self.name}_{operator}",
                fake=current.meta["val"],
            )
            if isinstance(current.meta["val"], tuple | list):  # a tuple stays in the graph that computes it
                for user in current.users:
                    if user.target.__name__ == "getitem" and user not in symbols:  # type: ignore[union-attr]
                        self._copy(user, symbols)
        return symbols[node]


class _Layered(dict[fx.Node, Any]):
    """Symbols of one product with a Jacobian; those of the prediction show through."""

    def __init__(self, below: dict[fx.Node, Any]) -> None:
        super().__init__()
        self.below = below

    def __contains__(self, node: object) -> bool:
        return super().__contains__(node) or node in self.below

    def __missing__(self, node: fx.Node) -> Any:
        return self.below[node]


def _unheld(argument: Any) -> Any:
    if isinstance(argument, Held):
        return argument.value
    if isinstance(argument, tuple | list):
        return type(argument)(_unheld(part) for part in argument)
    if isinstance(argument, dict):
        return {name: _unheld(part) for name, part in argument.items()}
    return argument
