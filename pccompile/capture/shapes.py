"""Which input shapes a captured graph holds for: the dimensions left open, and what the capture assumed of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from types import CodeType
from typing import Any

import sympy
import torch
from torch import fx
from torch.export import Dim
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._sympy.printers import PythonPrinter

__all__ = ["OpenSizesError", "Shape", "ShapeDomain", "SimpleSizes", "domain_of_export", "open_dimensions"]

Shape = tuple[int, ...] | None  # None: not a tensor


@dataclass(frozen=True)
class ShapeDomain:
    """The input shapes for which a captured graph computes what the model computes.

    Attributes:
        inputs: for each flattened input its dimensions: a number, or an expression in the symbols of open dimensions;
            None where the input is no tensor. None altogether for a graph that takes any shapes.
        ranges: smallest and largest size of each symbol.
        guards: conditions on the symbols that the model's forward, or an operator, relied on.
        fixed: why the sizes could not be left open, where they were to be.
    """

    inputs: tuple[tuple[int | sympy.Expr, ...] | None, ...] | None = None
    ranges: dict[sympy.Symbol, tuple[float, float]] = field(default_factory=dict)
    guards: tuple[sympy.Basic, ...] = ()
    fixed: str = ""

    def relying_on(self, guards: Sequence[sympy.Basic]) -> ShapeDomain:
        """The domain with further guards."""
        return replace(self, guards=tuple(dict.fromkeys((*self.guards, *guards))))

    def objection(self, shapes: Sequence[Shape], names: Sequence[str]) -> str:
        """Why the graph does not hold for these shapes; empty if it does.

        Args:
            shapes: the shape of each flattened input.
            names: a name for each of them.
        """
        if self.inputs is None:
            return ""
        because = f" ({self.fixed})" if self.fixed else ""
        sizes: dict[sympy.Symbol, int] = {}
        derived: list[tuple[str, sympy.Expr, int]] = []
        for name, expected, shape in zip(names, self.inputs, shapes, strict=True):
            if expected is None or shape is None:
                continue
            for dimension, (wanted, size) in enumerate(zip(expected, shape, strict=True)):
                place = f"{name}.shape[{dimension}]"
                if isinstance(wanted, sympy.Symbol) and wanted not in sizes:
                    sizes[wanted] = size
                    low, high = self.ranges.get(wanted, (0, float("inf")))
                    if not low <= size <= high:
                        return f"{place} is {size}, captured for {_range(low, high)}"
                elif isinstance(wanted, int):
                    if wanted != size:
                        return f"{place} is {size}, captured for {wanted}{because}"
                else:
                    derived.append((place, wanted, size))
        for place, expression, size in derived:
            if _at(expression, sizes) != size:
                return f"{place} is {size}, captured for {_at(expression, sizes)}"
        broken = next((guard for guard in self.guards if _at(guard, sizes) is not True), None)
        return "" if broken is None else f"the forward relied on {broken} at {_where(sizes)}"


def open_dimensions(inputs: Any, only_first: bool = False) -> Any:
    """The `dynamic_shapes` argument of torch.export that leaves every dimension open that can be.

    Args:
        only_first: only the first of each tensor, which is the batch in most models.
    """

    def of(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return None
        sizes = value.shape[:1] if only_first else value.shape
        return {dimension: Dim.AUTO for dimension, size in enumerate(sizes) if size > 1}

    return pytree.tree_map(of, inputs)


class OpenSizesError(Exception):
    """The sizes inside the forward are too complicated to be left open."""


class SimpleSizes(TorchFunctionMode):
    """Active while a forward is traced with open sizes: gives up before their expressions outgrow the model.

    Every operator compares sizes, and the cost of that grows with the expressions: windows, padding and shifts of a
    Swin transformer make sizes of a hundred operations, and a trace of minutes.

    Raises:
        OpenSizesError: a result has a size that takes more than MOST_OPERATIONS operations to write down.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function and look at the sizes of its results."""
        result = func(*args, **(kwargs or {}))
        for value in pytree.tree_leaves(result):
            if isinstance(value, torch.Tensor):
                _refuse_complicated(value)
        return result


MOST_OPERATIONS = 20  # 9 in the inception networks, 5 in the other convolutional networks of torchvision, 1 in GPT-2


def _refuse_complicated(value: torch.Tensor) -> None:
    for dimension, size in enumerate(value.shape):
        if isinstance(size, torch.SymInt) and _operations(size.node.expr) > MOST_OPERATIONS:
            count = _operations(size.node.expr)
            raise OpenSizesError(f"dimension {dimension} of an activation would take {count} operations to compute")


@cache
def _operations(expression: sympy.Expr) -> int:
    return int(sympy.count_ops(expression))


def domain_of_export(
    placeholders: Sequence[fx.Node], exported: torch.export.ExportedProgram, fixed: str
) -> ShapeDomain:
    """The domain of an exported graph.

    Args:
        placeholders: the placeholder node of each flattened input, in order.
        fixed: why the sizes could not be left open; empty if they were, or were not to be.
    """
    values = [node.meta.get("val") for node in placeholders]
    inputs = tuple(tuple(map(_size, v.shape)) if isinstance(v, torch.Tensor) else None for v in values)
    symbols = {s for sizes in inputs for size in sizes or () if not isinstance(size, int) for s in size.free_symbols}
    fakes = [node.meta["val"] for node in exported.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    environments = {id(f.fake_mode.shape_env): f.fake_mode.shape_env for f in fakes if hasattr(f, "fake_mode")}
    guards: list[sympy.Basic] = []
    for environment in environments.values():
        expressions = [environment.simplify(guard.expr) for guard in environment.guards] if environment else []
        guards += [e for e in expressions if e != sympy.true and e.free_symbols <= symbols]
    ranges = {
        symbol: (float(bounds.lower), float(bounds.upper))
        for symbol, bounds in exported.range_constraints.items()
        if symbol in symbols
    }
    return ShapeDomain(inputs, ranges, tuple(dict.fromkeys(guards)), fixed)


def _size(size: int | torch.SymInt) -> int | sympy.Expr:
    if isinstance(size, int):
        return size
    expression = sympy.sympify(size.node.expr)
    return int(expression) if expression.is_number else expression


def _at(expression: sympy.Basic, sizes: Mapping[sympy.Symbol, int]) -> Any:
    """The expression's value at these sizes; None if it reads another."""
    try:
        return eval(_code(expression), {"math": math}, {symbol.name: size for symbol, size in sizes.items()})
    except NameError:
        return None


@cache
def _code(expression: sympy.Basic) -> CodeType:
    """As Python, which is evaluated at every call of the model: a hundred times quicker than substituting."""
    return compile(PythonPrinter().doprint(expression), "<sizes>", "eval")


def _range(low: float, high: float) -> str:
    return f"{low:.0f} or more" if high > 1e15 else f"{low:.0f} to {high:.0f}"


def _where(sizes: dict[sympy.Symbol, int]) -> str:
    return ", ".join(f"{symbol} = {size}" for symbol, size in sizes.items())
