"""Ask derivatives of several inputs for those that somebody reads."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

__all__ = ["narrow_masks"]


def narrow_masks(graph: fx.Graph) -> None:
    """In calls with an output mask (of convolutions, normalisations), ask for the outputs that have users."""
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        names = [argument.name for argument in schema.arguments] if schema is not None else []
        if "output_mask" not in names or any(user.target is not operator.getitem for user in node.users):
            continue
        position = names.index("output_mask")
        read = {user.args[1] for user in node.users}
        if position < len(node.args):
            mask: Any = node.args[position]
            narrowed = [asked and index in read for index, asked in enumerate(mask)]
            node.args = (*node.args[:position], narrowed, *node.args[position + 1 :])
