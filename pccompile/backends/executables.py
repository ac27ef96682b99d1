"""What a flat graph becomes before it runs, and its own Python as the simplest."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from pccompile.backends.report import Row, rows_of
from pccompile.lowering.direct import direct
from pccompile.lowering.expand import FlatPiece

__all__ = ["Compile", "Executable", "Together", "as_it_is", "python_of"]


@dataclass(frozen=True)
class Executable:
    """A flat graph made ready.

    Attributes:
        call: from the list of inputs, which it empties, to the outputs.
        code: its source.
        runs: what runs its operators, "aten" or "inductor".
        choices: the vertices for which there was a choice, and what was chosen; the operators of these rows are told
            apart in the graph by "chosen" in their meta.
        graph: the graph with those choices made; None where there were none.
    """

    call: Callable[[list[Any]], Any]
    code: str
    runs: str = "aten"
    choices: tuple[Row, ...] = ()
    graph: fx.Graph | None = None

    def rows(self, piece: FlatPiece) -> list[Row]:
        """What runs each vertex."""
        if self.graph is None:
            return rows_of(piece.graph, self.runs, f"{self.runs} operators")
        return [*self.choices, *rows_of(self.graph, self.runs, "no kernel takes them")]


Compile = Callable[[FlatPiece], Executable]
Together = Callable[[Sequence[FlatPiece]], list[FlatPiece]]


def as_it_is(piece: FlatPiece) -> Executable:
    """Run a flat graph's own Python."""
    graph = copy.deepcopy(piece.graph)
    carried = set(piece.inputs) & set(piece.outputs) if piece.loop else set()
    direct(graph, [node for node in graph.find_nodes(op="placeholder") if node.target in carried])
    graph.lint()
    module = fx.GraphModule({}, graph, piece.name)
    return Executable(module.forward, python_of(module, piece.name))


def python_of(module: fx.GraphModule, name: str) -> str:
    """A flat graph as a Python function of that name; kernels go by their own."""
    code: str = module.code.strip().replace("def forward(", f"def {name}(", 1)
    calls = (node for node in module.graph.nodes if node.op == "call_function" and "kernel" in node.meta)
    for function in {node.target for node in calls}:
        prefix = str(getattr(function, "__module__", "")).replace(".", "_")
        code = code.replace(f"{prefix}_{function.__name__}", function.__name__)
    return code
