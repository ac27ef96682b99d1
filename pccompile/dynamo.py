"""The back end of `torch.compile`: every piece of graph that dynamo finds becomes a program of its own.

    model = torch.compile(model, backend="pccompile")                                      # Z-IL
    model = torch.compile(model, backend="pccompile", options={"rule": "fixed_prediction", "steps": 20})

Dynamo follows any Python and breaks the graph where it has to; autograd carries the errors from piece to piece.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import fx, nn
from torch.fx import traceback as fx_traceback
from torch.utils import _pytree as pytree

from pccompile.api import compile
from pccompile.capture.source import source_of_stack
from pccompile.errors import CaptureError, Place, UsageError
from pccompile.module import PCModule
from pccompile.rules import ZIL, FixedPrediction, Incremental, Rule, Strict

__all__ = ["Piece", "backend"]

_RULES = {"zil": ZIL, "fixed_prediction": FixedPrediction, "strict": Strict, "incremental": Incremental}
_COMPILE_OPTIONS = ("vertices", "decompose", "dynamic", "backend", "verify", "optimize", "cuda_graph")


def backend(
    graph_module: fx.GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """Turn a piece of dynamo's graph into a program; `torch.compile` calls this.

    A piece is compiled at its first call, because capture looks at real tensors; errors are raised there too.

    Args:
        graph_module: the piece, with parameters and buffers as inputs.
        example_inputs: what the piece will be called with, without data.
        options: "rule", a rule or its name ("zil", "fixed_prediction"), and next to a name the rule's arguments
            ("steps", "step_size", "levelled"); "vertices", "decompose", "dynamic", "backend", "verify", "optimize" and
            "cuda_graph" as for `pccompile.compile`; "pieces", a list that receives the `PCModule` of every piece, to
            look inside.

    Returns:
        A function of the piece's inputs, differentiable like the piece.

    Raises:
        UsageError: (at the first call) an unknown option, or a rule that needs the loss while it infers.
        CaptureError and its like: (at the first call) see `pccompile.compile`.
    """

    @cache
    def compiled() -> tuple[Piece, PCModule]:
        rest = dict(options or {})
        pieces = rest.pop("pieces", None)
        chosen = {name: rest.pop(name) for name in _COMPILE_OPTIONS if name in rest}
        piece = Piece(graph_module, example_inputs)
        pc = compile(piece, _rule(rest), capture="export", **chosen)
        if pieces is not None:
            pieces.append(pc)
        return piece, pc

    def run(*inputs: Any) -> Any:
        piece, pc = compiled()
        return pc(*piece.bind(inputs))

    return run


def _rule(options: dict[str, Any]) -> Rule:
    """The rule that the remaining options describe."""
    given = options.pop("rule", "zil")
    if isinstance(given, str):
        if given not in _RULES:
            raise UsageError(f"rule={given!r}", cure=f"choose one of {', '.join(map(repr, _RULES))}, or give a rule")
        kind = _RULES[given]
        known = {field.name for field in dataclasses.fields(kind)}
        rule: Rule = kind(**{name: options.pop(name) for name in list(options) if name in known})
    else:
        rule = given
    if options:
        raise UsageError(f"unknown options: {', '.join(map(repr, options))}", cure="see pccompile.dynamo.backend")
    if not isinstance(rule, Rule):
        raise UsageError(f"rule={rule!r} is no rule", cure=f"choose one of {', '.join(map(repr, _RULES))}")
    if rule.needs_loss:
        raise UsageError(
            f"{rule.name} evaluates the loss in every step of inference, and a piece of a graph does not know it",
            cure="use pccompile.compile(model, rule, loss_fn) and pc.loss(x, y)",
        )
    return rule


class Piece(nn.Module):
    """A piece of dynamo's graph as a module again: its parameters and buffers have their places and names back.

    Dynamo may call the same piece with other parameters (of another instance of the same class), so `bind` puts those
    of the present call in place.

    Args:
        graph_module: the piece.
        example_inputs: one for each of its placeholders.
    """

    def __init__(self, graph_module: fx.GraphModule, example_inputs: Sequence[Any]) -> None:
        super().__init__()
        for part in graph_module.modules():
            if isinstance(part, fx.GraphModule):
                _prepare(part)
        self._graph = graph_module
        self._state: dict[int, tuple[nn.Module, str]] = {}  # by position among the inputs
        placeholders = graph_module.graph.find_nodes(op="placeholder")
        for position, (node, value) in enumerate(zip(placeholders, example_inputs, strict=True)):
            source = _source(node)
            if isinstance(value, nn.Parameter) or "._buffers[" in source:
                self._state[position] = self._place(_path(source) or node.name)

    def bind(self, inputs: Sequence[Any]) -> list[Any]:
        """Put the parameters and buffers among the inputs in their places; returns the other inputs."""
        for position, (owner, name) in self._state.items():
            kind = owner._parameters if isinstance(inputs[position], nn.Parameter) else owner._buffers
            kind[name] = inputs[position]
        return [value for position, value in enumerate(inputs) if position not in self._state]

    def forward(self, *inputs: Any) -> Any:
        """The piece's outputs."""
        others = iter(inputs)
        state = self._state
        count = len(inputs) + len(state)
        everything = [getattr(*state[position]) if position in state else next(others) for position in range(count)]
        if not torch.compiler.is_exporting():
            return self._graph(*everything)
        with fx_traceback.preserve_node_meta():  # captured nodes keep the module and the source line they came from
            return _Interpreter(self._graph).run(*everything)

    def _place(self, path: str) -> tuple[nn.Module, str]:
        """The module that holds the parameter of that path, made as needed, and the parameter's name in it."""
        owner: nn.Module = self
        *modules, name = path.split(".")
        for module in modules:
            if module not in owner._modules:
                owner.add_module(module, nn.Module())
            owner = owner.get_submodule(module)
        taken = {place for owner_of, place in self._state.values() if owner_of is owner}
        while name in taken:
            name += "_"
        return owner, name


class _Interpreter(fx.Interpreter):
    """Runs a piece, and the graphs inside it, node by node, so that what is captured knows where it came from."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if torch.is_grad_enabled() or not n.op.startswith("call"):
            return result
        given = [self.env.get(node) for node in n.all_input_nodes]  # what was written in place stays what it is
        return pytree.tree_map_only(torch.Tensor, lambda t: t if any(t is g for g in given) else t.detach(), result)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = self.fetch_attr(target)
        if isinstance(module, fx.GraphModule):
            return _Interpreter(module).run(*args, **kwargs)
        return super().call_module(target, args, kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is torch.amp.autocast_mode._enter_autocast:  # its own function is for tracers, and enters nothing
            return torch.autocast(*args).__enter__()
        if target is torch.amp.autocast_mode._exit_autocast:
            return args[0].__exit__(None, None, None)
        if target is torch._C._set_grad_enabled:
            with torch._C.DisableTorchFunction():  # what is made under no_grad is detached, so the tracer need not know
                return target(*args)
        return super().call_function(target, args, kwargs)


def _source(placeholder: fx.Node) -> str:
    """Where dynamo took an input from: "L['self']._modules['fc']._parameters['weight']"."""
    source = getattr(placeholder, "_dynamo_source", None)
    name = getattr(source, "name", "")
    return str(name() if callable(name) else name)


def _path(source: str) -> str:
    """The parameter's path in its model; the model's own name comes first where it is a variable of a function."""
    parts = re.findall(r"\._(?:modules|parameters|buffers)\['([^']+)'\]", source)
    base = re.match(r"[LG]\['([^']+)'\]", source)
    return ".".join([base.group(1), *parts] if base and base.group(1) != "self" else parts)


def _clean_module_stack(node: fx.Node) -> None:
    """Give a node's modules the paths that they have in the piece, as torch.export writes them."""
    stack = node.meta.get("nn_module_stack")
    if stack:
        node.meta["nn_module_stack"] = {
            key: (".".join(["model", *_module_path(path)]), kind if isinstance(kind, str) else _qualified(kind))
            for key, (path, kind) in stack.items()
        }


def _module_path(path: str) -> list[str]:
    """ "L['self'].layers.0.fc" and "L['self']._modules['layers']..." as parts."""
    base = re.match(r"[LG]\['([^']+)'\]", path)
    rest = path[base.end() :] if base else path
    parts = [quoted or plain for quoted, plain in re.findall(r"_modules\['([^']+)'\]|([^.\[\]']+)", rest)]
    return [base.group(1), *parts] if base and base.group(1) != "self" else parts


def _qualified(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _prepare(graph_module: fx.GraphModule) -> None:
    """Make a piece's graph what capture can follow.

    Activation checkpoints become plain calls of what they check-point: a program holds its own activations.

    Raises:
        CaptureError: it applies a custom autograd function.
    """
    for node in graph_module.graph.nodes:
        _clean_module_stack(node)
        if node.target is torch.ops.higher_order.tag_activation_checkpoint:
            body, *inputs = node.args
            node.op, node.target, node.args, node.kwargs = "call_module", body.target, tuple(inputs), {}
        elif "autograd_function_apply" in str(node.target):
            raise CaptureError(
                "a custom autograd function would lose its backward",
                Place(node=node.name, source=source_of_stack(node.meta.get("stack_trace")) or None),
                "write it as an operator: torch.library.custom_op with register_autograd and register_fake",
            )
    graph_module.recompile()
