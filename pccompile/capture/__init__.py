"""Capture: model, loss and example inputs -> a functional torch.fx graph with module paths and source lines."""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from pccompile.call import Call
from pccompile.capture.captured import Captured, Effect, Fact, Leaf
from pccompile.capture.decompose import has_modules_to_open, moves_only
from pccompile.capture.exported import capture_exported
from pccompile.capture.hooks import refuse_backward_hooks
from pccompile.capture.masks import masks_as_given
from pccompile.capture.observe import observe, place_of
from pccompile.capture.packed import refuse_packed_sequences
from pccompile.capture.reads import sharing_key
from pccompile.capture.rehearse import random_states_kept, settles, with_line
from pccompile.capture.shapes import Shape, ShapeDomain
from pccompile.capture.symbolic import capture_symbolic
from pccompile.capture.tuples import open_tuples
from pccompile.capture.watch import refuse_custom_functions
from pccompile.errors import CaptureError, PCCompileError, Place, PythonStateError, ShapeError
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


def capture(call: Call, method: str, dynamic: bool = True, opens: bool = False) -> Captured:
    """Capture the model's forward, and the loss after it if there is one, on example inputs.

    Args:
        call: the model, the loss and the example inputs.
        method: "auto" (a GraphModule as it is, everything else exported, or traced symbolically where torch.export
            cannot follow an operator), "export" or "symbolic".
        dynamic: leave the sizes of the inputs open where that is possible.
        opens: replace recurrent networks, recurrent cells and attention by their elementary operators (export only).

    Raises:
        CaptureError, ShapeError: see the methods.
    """
    refuse_backward_hooks(call.model)
    _refuse_unknown("an argument", call.flat, call.model)
    exported = partial(capture_exported, dynamic=dynamic, opens=opens)
    if is_symbolic(call.model, method):
        return _captured(capture_symbolic, call)
    try:
        return _captured(exported, call)
    except (CaptureError, ShapeError) as error:
        own_refusal = error.__cause__ is None or isinstance(error.__cause__, PCCompileError)
        if method == "export" or own_refusal or (opens and has_modules_to_open(call.model)):
            raise
        # a symbolic graph calls operators as they are, so values that torch.export would have to know stay unknown
        with suppress(PCCompileError):
            return _captured(capture_symbolic, call)
        raise


def _captured(trace: Callable[[Call], Captured], call: Call) -> Captured:
    """What `trace` captures, observed on the example inputs."""
    model = call.model
    captured = _watched(trace, call)
    _use_first_names(captured, model)
    values = {name: leaf_value(leaf, model, call.loss_fn, call.flat) for name, leaf in captured.leaves.items()}
    _refuse_written_parameters(captured, values)
    seen = observe(captured, values)
    if open_tuples(captured, seen):
        seen = observe(captured, values)
    _refuse_unknown("an output", [seen[name] for name in captured.outputs if name is not None], model)
    _detach_what_is_written(captured)
    if captured.loss is not None:
        outputs = [
            c if name is None else seen[name] for name, c in zip(captured.outputs, captured.constants, strict=True)
        ]
        captured.example_outputs = captured.rebuild(outputs)[1]
    captured.input_names = input_names(call)
    return captured


def _watched(trace: Callable[[Call], Captured], call: Call) -> Captured:
    """What `trace` captures while nothing that it would lose happens unseen."""

    def traced(call: Call = call) -> Captured:
        with (
            refuse_custom_functions(),
            refuse_packed_sequences(),
            masks_as_given(),
            random_states_kept(),
            torch.enable_grad(),
        ):
            return trace(call)

    model, loss_fn = call.model, call.loss_fn
    shared = any(found != (i, i) for i, found in enumerate(sharing_key(call.flat)))
    try:
        captured = traced()
    except PythonStateError as error:
        if not settles(model, loss_fn, call.run):
            raise with_line(error, model, loss_fn, call.run) from None
        captured = traced()
    except PCCompileError:
        refusal = None
        if shared:  # if that is what kept it from being captured, say so
            with suppress(PCCompileError):
                apart = call.given([v.clone() if isinstance(v, torch.Tensor) else v for v in call.flat])
                refusal = _written_input(traced(apart))
        if refusal is None:
            raise
        raise refusal from None
    if shared and (refusal := _written_input(captured)):
        raise refusal
    return captured


def is_symbolic(model: nn.Module, method: str) -> bool:
    """Whether the model is traced symbolically (or taken as the graph it is) and not exported."""
    return method == "symbolic" or (method == "auto" and isinstance(model, fx.GraphModule))


def _refuse_unknown(what: str, values: list[Any], model: nn.Module) -> None:
    """Refuse an object that may hold tensors which nobody would see."""
    for value in values:
        if not isinstance(value, _KNOWN):
            kind = type(value).__name__
            raise CaptureError(
                f"{what} is a {kind}, and tensors in it would not be seen",
                Place(type(model).__name__, kind),
                "register the class: torch.export.register_dataclass, or torch.utils._pytree.register_pytree_node",
            )


_KNOWN = (
    *(torch.Tensor, int, float, complex, str, bytes, type(None), enum.Enum, slice, range, type(...)),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, torch.SymInt, torch.SymFloat),
    *(FunctionType, BuiltinFunctionType, type),
)


def _written_input(captured: Captured) -> CaptureError | None:
    """What to say where inputs share memory and the forward writes into one: the graph would leave the other alone."""
    effect = next((effect for effect in captured.effects if effect.leaf.kind is Kind.INPUT), None)
    if effect is None:
        return None
    return CaptureError(
        "the forward writes into an input that shares memory with another input",
        place_of(captured, effect.node),
        "give it a copy of one of them (x.clone()), or write out of place",
    )


def _refuse_written_parameters(captured: Captured, values: dict[str, Any]) -> None:
    """A forward that writes into a parameter changes its value and not its derivative, which the graph cannot say."""
    homes = {leaf.home: values[name] for name, leaf in captured.leaves.items()}
    for effect in captured.effects:
        if effect.leaf.kind is Kind.PARAMETER and homes[effect.leaf.home].requires_grad:
            raise CaptureError(
                f"the forward writes into the parameter {effect.leaf.path}",
                replace(place_of(captured, effect.node), module=effect.leaf.path.rpartition(".")[0] or "(top level)"),
                "write into it outside the forward, compute a new tensor from it, or freeze it (requires_grad=False)",
            )


def _detach_what_is_written(captured: Captured) -> None:
    """What the forward writes into a buffer or an input leaves the flow of derivatives: computed once and held."""
    for position, effect in enumerate(captured.effects):
        fact = captured.facts[effect.node]
        if not fact.differentiable:
            continue
        source = next(node for node in captured.graph.nodes if node.name == effect.node)
        with captured.graph.inserting_after(source):
            written = captured.graph.call_function(torch.ops.aten.detach.default, (source,))
        written.meta = dict(source.meta)
        captured.facts[written.name] = replace(fact, differentiable=False, random=False)
        captured.modules[written.name] = captured.modules.get(effect.node, ("", ""))
        captured.sources[written.name] = captured.sources.get(effect.node, "")
        captured.effects[position] = replace(effect, node=written.name)


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


def input_names(call: Call) -> list[str]:
    """A readable name for each of a call's leaves: the parameter's name in the forward."""
    parameters, (args, kwargs, targets) = inspect.signature(call.model.forward).parameters.values(), call.inputs
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
