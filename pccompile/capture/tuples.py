"""A model may return an operator's tuple of results as it is; each result is an output of its own."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from pccompile.capture.captured import Captured

__all__ = ["open_tuples"]


def open_tuples(captured: Captured, values: Mapping[str, Any]) -> bool:
    """Take the outputs that are tuples apart by getitem nodes, which have yet to be observed.

    Args:
        captured: changed in place: its graph, outputs, constants and how they are put together.
        values: the value of every node, by name.

    Returns:
        Whether there were any.
    """
    named = list(zip(captured.outputs, captured.constants, strict=True))
    if not any(name is not None and isinstance(values[name], tuple | list) for name, _ in named):
        return False
    structure = [constant if name is None else values[name] for name, constant in named]
    around, tuples = captured.rebuild, pytree.tree_structure(structure)
    captured.rebuild = lambda flat: around(tuples.unflatten(flat))
    nodes = {node.name: node for node in captured.graph.nodes}
    outputs: list[str | None] = []
    constants: list[Any] = []
    for name, constant in named:
        parts = [None] if name is None else [part.name for part in _parts(captured, nodes[name], values[name])]
        outputs += parts
        constants += [constant if name is None else None] * len(parts)
    captured.outputs, captured.constants = outputs, constants
    return True


def _parts(captured: Captured, node: fx.Node, value: Any) -> list[fx.Node]:
    """The node itself, or a getitem node for each result in the tuple that it yields."""
    if not isinstance(value, tuple | list):
        return [node]
    found = []
    for index, part in enumerate(value):
        with captured.graph.inserting_before(captured.graph.output_node()):
            getter = captured.graph.call_function(operator.getitem, (node, index))
        captured.modules[getter.name] = captured.modules.get(node.name, ("", ""))
        captured.sources[getter.name] = captured.sources.get(node.name, "")
        found += _parts(captured, getter, part)
    return found
