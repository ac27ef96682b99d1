"""What runs each vertex: a kernel or operators, why, and what that launches, moves and computes."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import flop_registry

from pccompile.ir.text import aligned
from pccompile.lowering.fragments import is_write, may_be_alias

__all__ = [
    "BackendReport",
    "Row",
    "bytes_in",
    "bytes_of",
    "covered",
    "launches_of",
    "operations_of",
    "rows_of",
    "size_of",
]


@dataclass(frozen=True)
class Row:
    """What runs some vertices in one phase of a step.

    Attributes:
        vertices: their names; none for what belongs to no vertex, such as a loop's first values.
        kernel: the kernel's name, or "aten", or "inductor".
        reason: why that runs them.
        launches: kernels launched. An operator is counted as one unless it is a view; Inductor launches fewer.
        bytes: what is read and written, each tensor once; of an operator as of a kernel.
        operations: as `torch.utils.flop_counter` counts them: those of products, convolutions and attention.
        phase: "prediction", "error sweep", or "every step" for the body of a loop, once; "all steps"
            for inference that is one launch.
    """

    vertices: tuple[str, ...]
    kernel: str
    reason: str
    launches: int
    bytes: int
    operations: int
    phase: str = ""


@dataclass(frozen=True)
class BackendReport:
    """What runs each vertex; a sequence of rows that prints as a table.

    Attributes:
        backend: what `pccompile.compile` was asked for.
        rows: phase by phase; none where a back end runs vertex by vertex through the autograd engine.
        notes: what it says of the program as a whole.
        inside: for vertices that run as part of another, which one.
    """

    backend: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    inside: Mapping[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, vertex: str) -> list[Row]:
        """The rows of one vertex."""
        runs = self.inside.get(vertex, vertex)
        return [row for row in self.rows if runs in row.vertices]

    def __str__(self) -> str:
        if not self.rows:
            return f"backend {self.backend!r}: the autograd engine runs every vertex by itself"
        header = ("phase", "vertex", "runs as", "launches", "bytes", "operations", "reason")
        table = [header, *map(_cells, self.rows)]
        widths = [max(len(row[column]) for row in table) for column in range(len(header))]
        lines = [
            tuple(cell.rjust(widths[i]) if header[i] in _NUMBERS else cell for i, cell in enumerate(row))
            for row in table
        ]
        return "\n".join([f"backend {self.backend!r}", *(line.rstrip() for line in aligned(lines)), *self.notes])


_NUMBERS = ("launches", "bytes", "operations")


def _cells(row: Row) -> tuple[str, ...]:
    numbers = (f"{value:,}" for value in (row.launches, row.bytes, row.operations))
    return (row.phase, ", ".join(row.vertices) or "-", row.kernel, *numbers, row.reason)


def rows_of(graph: fx.Graph, runs: str, reason: str) -> list[Row]:
    """The operators of a flat graph by vertex, without those whose row was written when they were chosen."""
    by_vertex: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_function" and "chosen" not in node.meta:
            origin = node.meta.get("origin")
            by_vertex.setdefault("" if origin is None else origin.vertex, []).append(node)
    rows = [
        Row(
            (vertex,) if vertex else (),
            runs,
            next(filter(None, map(_why_left, nodes)), reason),
            sum(map(launches_of, nodes)),
            sum(map(bytes_of, nodes)),
            sum(map(operations_of, nodes)),
        )
        for vertex, nodes in by_vertex.items()
    ]
    return [row for row in rows if row.launches]


def _why_left(node: fx.Node) -> str:
    """Why operators compute a node that a kernel might, if anything is known."""
    left: str = node.meta.get("declined", "") or getattr(node.meta.get("origin"), "left", "")
    return left


def launches_of(node: fx.Node) -> int:
    """1, or 0 for views, numbers, and tensors that are only allocated."""
    is_tensor = any(isinstance(part, torch.Tensor) for part in pytree.tree_leaves(node.meta.get("val")))
    return int(is_tensor and not _is_free(node))


def bytes_of(node: fx.Node) -> int:
    """The bytes of its tensors, read and written once; 0 where nothing is launched."""
    if not launches_of(node):
        return 0
    return sum(map(size_of, {*node.all_input_nodes, node}))


def size_of(node: fx.Node) -> int:
    """The bytes of the tensors that a node's value is made of."""
    return bytes_in(node.meta.get("val"))


def bytes_in(value: Any) -> int:
    """The bytes of the tensors in a value."""
    parts = pytree.tree_leaves(value)
    return sum(part.numel() * part.element_size() for part in parts if isinstance(part, torch.Tensor))


def operations_of(node: fx.Node) -> int:
    """Floating-point operations by torch's own formulas, 0 where it has none."""
    formula = flop_registry.get(getattr(node.target, "overloadpacket", None))
    if formula is None:
        return 0
    args, kwargs = _values((node.args, node.kwargs))
    return int(formula(*args, **kwargs, out_val=node.meta["val"]))


def _values(arguments: Any) -> Any:
    """Arguments with what stands for nodes' values in their places; lists and dicts of fx are those of pytree."""
    return pytree.tree_map(lambda value: value.meta["val"] if isinstance(value, fx.Node) else value, arguments)


_FREE = (operator.getitem, torch.empty_strided, torch.ops.aten.empty_like.default, torch.ops.aten.empty.memory_format)


def _is_free(node: fx.Node) -> bool:
    return node.target in _FREE or (may_be_alias(node) and not is_write(node))


def covered(nodes: Iterable[fx.Node]) -> tuple[str, ...]:
    """The vertices that some nodes belong to, each once."""
    origins = (node.meta.get("origin") for node in nodes)
    return tuple(dict.fromkeys(origin.vertex for origin in origins if origin is not None and origin.vertex))
