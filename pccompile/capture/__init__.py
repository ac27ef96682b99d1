"""Capture: model, loss and example inputs -> a functional torch.fx graph with module paths and source lines."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from pccompile.capture.captured import Captured, Effect, Fact, Leaf
from pccompile.capture.custom import refuse_custom_functions
from pccompile.capture.decompose import has_modules_to_open, moves_only
from pccompile.capture.exported import capture_exported
from pccompile.capture.masks import masks_as_given
from pccompile.capture.observe import observe, place_of
from pccompile.capture.packed import refuse_packed_sequences
from pccompile.capture.shapes import Shape, ShapeDomain
from pccompile.capture.symbolic import capture_symbolic
from pccompile.capture.tuples import open_tuples
from pccompile.errors import CaptureError, PCCompileError, ShapeError
from pccompile.ir.grammar import Kind

__all__ = [
    "Captured",
    "Effect",
    "Fact",
    "Leaf",
    "Shape",
    "ShapeDomain",
    "capture",
    "is_symbolic",
    "leaf_value",
    "moves_only",
    "place_of",
]


def capture(
    model: nn.Module,
    loss_fn: Callable[..., torch.Tensor] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    targets: tuple[Any, ...],
    method: str,
    dynamic: bool = True,
    opens: bool = False,
) -> Captured:
    """Capture the model's forward, and the loss after it if there is one, on example inputs.

    Args:
        method: "auto" (a GraphModule as it is, everything else exported, or traced symbolically where torch.export
            cannot follow an operator), "export" or "symbolic".
        dynamic: leave the sizes of the inputs open where that is possible.
        opens: replace recurrent networks, recurrent cells and attention by their elementary operators (export only).

    Raises:
        CaptureError, ShapeError: see the methods.
    """
    symbolic = partial(capture_symbolic, model, loss_fn, args, kwargs, targets)
    exported = partial(capture_exported, model, loss_fn, args, kwargs, targets, dynamic, opens)
    if is_symbolic(model, method):
        return _captured(symbolic, model, loss_fn, args, kwargs, targets)
    try:
        return _captured(exported, model, loss_fn, args, kwargs, targets)
    except (CaptureError, ShapeError) as error:
        own_refusal = error.__cause__ is None or isinstance(error.__cause__, PCCompileError)
        if method == "export" or own_refusal or (opens and has_modules_to_open(model)):
            raise
        # a symbolic graph calls operators as they are, so values that torch.export would have to know stay unknown
        with suppress(PCCompileError):
            return _captured(symbolic, model, loss_fn, args, kwargs, targets)
        raise


def _captured(
    trace: Callable[[], Captured],
    model: nn.Module,
    loss_fn: Callable[..., torch.Tensor] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    targets: tuple[Any, ...],
) -> Captured:
    """What `trace` captures, observed on the example inputs."""
    with refuse_custom_functions(), refuse_packed_sequences(), masks_as_given():
        captured = trace()
    _use_first_names(captured, model)
    flat = pytree.tree_leaves((args, kwargs, targets))
    values = {name: leaf_value(leaf, model, loss_fn, flat) for name, leaf in captured.leaves.items()}
    seen = observe(captured, values)
    if open_tuples(captured, seen):
        seen = observe(captured, values)
    if captured.loss is not None:
        outputs = [
            c if name is None else seen[name] for name, c in zip(captured.outputs, captured.constants, strict=True)
        ]
        captured.example_outputs = captured.rebuild(outputs)[1]
    captured.input_names = input_names(model, args, kwargs, targets)
    return captured


def is_symbolic(model: nn.Module, method: str) -> bool:
    """Whether the model is traced symbolically (or taken as the graph it is) and not exported."""
    return method == "symbolic" or (method == "auto" and isinstance(model, fx.GraphModule))


def _use_first_names(captured: Captured, model: nn.Module) -> None:
    """Put tied parameters and buffers under the first of their names, and take unread twins out of the graph."""
    first: dict[int, str] = {}
    name_of: dict[str, str] = {}
    for name, tensor in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        name_of[name] = first.setdefault(id(tensor), name)

    def renamed(leaf: Leaf) -> Leaf:
        return replace(leaf, path=name_of.get(leaf.path, leaf.path))

    leaves = {node: renamed(leaf) for node, leaf in captured.leaves.items()}
    nodes = {node.name: node for node in captured.graph.nodes}
    read = {leaf.path for name, leaf in leaves.items() if nodes[name].users}
    for name, leaf in list(leaves.items()):
        if leaf.path in read and leaf.path and not nodes[name].users:
            captured.graph.erase_node(nodes[name])
            del leaves[name]
    captured.leaves = leaves
    captured.effects = [replace(effect, leaf=renamed(effect.leaf)) for effect in captured.effects]


def input_names(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], targets: tuple[Any, ...]) -> list[str]:
    """A readable name for each of the flattened (args, kwargs, targets): the parameter's name in the forward."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names += [f"input_{position}" for position in range(len(names), len(args))]
    labelled = [*zip(names, args, strict=False), *kwargs.items()]
    labelled += [("target" if len(targets) == 1 else f"target_{i}", target) for i, target in enumerate(targets)]
    found = []
    for name, value in labelled:
        for path, _ in pytree.tree_flatten_with_path(value)[0]:
            found.append(name + "".join("_" + re.sub(r"\W", "", str(key)) for key in path))
    return found


def leaf_value(leaf: Leaf, model: nn.Module, loss_fn: Any, flat_inputs: list[Any]) -> Any:
    """The present value of a placeholder: an argument, or the live parameter or buffer of the model or its loss."""
    if leaf.kind is Kind.INPUT:
        return flat_inputs[leaf.index]
    if leaf.constant is not None:
        return leaf.constant
    owner: Any = model
    path = leaf.path
    if path.startswith("loss_fn.") and not hasattr(model, "loss_fn"):
        owner, path = loss_fn, path.removeprefix("loss_fn.")
    for part in path.split("."):
        owner = getattr(owner, part)
    return owner
