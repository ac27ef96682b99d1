"""Capture with torch.export: functional ATen graphs with module paths and source lines."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind, OutputKind

from pccompile.capture.captured import Captured, Effect, Leaf
from pccompile.capture.source import source_of_exception, source_of_stack
from pccompile.errors import CaptureError, DataDependentError, PCCompileError, Place, ShapeError
from pccompile.ir.grammar import Kind

__all__ = ["WithLoss", "capture_exported"]


class WithLoss(nn.Module):
    """A model followed by its loss, as one module: (args, kwargs, targets) -> (loss, outputs)."""

    def __init__(self, model: nn.Module, loss_fn: Callable[..., torch.Tensor] | None) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn
        self.training = model.training

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any], targets: tuple[Any, ...]) -> Any:
        outputs = self.model(*args, **kwargs)
        if self.loss_fn is None:
            return outputs
        return self.loss_fn(outputs, *targets), outputs


def capture_exported(
    model: nn.Module,
    loss_fn: Callable[..., torch.Tensor] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    targets: tuple[Any, ...],
) -> Captured:
    """Capture the model (and the loss after it) with `torch.export`, functionalised and decomposed.

    Runs inside the caller's autocast context, so that its casts become nodes.

    Raises:
        DataDependentError: the forward branches on a tensor's values.
        ShapeError: shapes do not fit inside the forward.
        CaptureError: anything else that keeps torch.export from capturing the model.
    """
    module = WithLoss(model, loss_fn)
    with _errors_with_place(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(module, (args, kwargs, targets), strict=False).run_decompositions({})
    return _read(exported, has_loss=loss_fn is not None)


def _read(exported: torch.export.ExportedProgram, has_loss: bool) -> Captured:
    graph, signature = exported.graph, exported.graph_signature
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    leaves = _leaves(exported, placeholders)
    by_target = {leaf.path: leaf for leaf in leaves.values() if leaf.path}
    outputs: list[str | None] = []
    constants: list[Any] = []
    effects: list[Effect] = []
    for spec in signature.output_specs:
        name = getattr(spec.arg, "name", "") or None
        if spec.kind is OutputKind.USER_OUTPUT:
            outputs.append(name if not hasattr(spec.arg, "value") else None)
            constants.append(getattr(spec.arg, "value", None))
        elif spec.kind is OutputKind.USER_INPUT_MUTATION:
            effects.append(Effect(leaves[str(spec.target)], str(name)))
        else:
            effects.append(Effect(by_target[_strip(str(spec.target))], str(name)))
    modules = {node.name: _module_of(node) for node in graph.nodes}
    loss_nodes = frozenset(node.name for node in graph.nodes if has_loss and _is_loss_node(node))
    return Captured(
        graph=graph,
        leaves=leaves,
        outputs=outputs,
        constants=constants,
        output_spec=exported.call_spec.out_spec,
        effects=effects,
        modules=modules,
        sources={node.name: source_of_stack(node.meta.get("stack_trace")) for node in graph.nodes},
        loss=outputs[0] if has_loss else None,
        loss_nodes=loss_nodes,
    )


_KINDS = {
    InputKind.PARAMETER: Kind.PARAMETER,
    InputKind.BUFFER: Kind.BUFFER,
    InputKind.CONSTANT_TENSOR: Kind.CONSTANT,
    InputKind.USER_INPUT: Kind.INPUT,
}


def _leaves(exported: torch.export.ExportedProgram, placeholders: list[fx.Node]) -> dict[str, Leaf]:
    leaves: dict[str, Leaf] = {}
    index = 0
    for node, spec in zip(placeholders, exported.graph_signature.input_specs, strict=True):
        kind = _KINDS.get(spec.kind)
        if kind is None:
            raise CaptureError(f"torch.export lifted {node.name} as {spec.kind}, which is not a tensor")
        if kind is Kind.INPUT:
            leaves[node.name] = Leaf(kind, "", index)
            index += 1
        elif kind is Kind.CONSTANT:
            leaves[node.name] = Leaf(kind, _strip(str(spec.target)), constant=exported.constants[str(spec.target)])
        else:
            leaves[node.name] = Leaf(kind, _strip(str(spec.target)))
    return leaves


def _strip(path: str) -> str:
    return path.removeprefix("model.")


def _stack(node: fx.Node) -> list[tuple[str, tuple[str, Any]]]:
    return list((node.meta.get("nn_module_stack") or {}).items())


def _module_of(node: fx.Node) -> tuple[str, str]:
    """Path and class name of the module that called the node; a repeated call of a module is "path@1"."""
    stack = _stack(node)
    if not stack:
        return "", ""
    key, (path, kind) = stack[-1]
    call = key.partition("@")[2]
    inner = "" if path == "model" else _strip(path)
    class_name = kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__
    return (f"{inner}@{call}" if call else inner), class_name


def _is_loss_node(node: fx.Node) -> bool:
    paths = [path for _, (path, _) in _stack(node)]
    return node.op == "call_function" and not any(path == "model" or path.startswith("model.") for path in paths)


@contextmanager
def _errors_with_place(model: nn.Module) -> Iterator[None]:
    """Turn whatever torch.export raises into a CaptureError that says where in the model it happened."""
    stack: list[str] = []
    names = {id(module): name for name, module in model.named_modules()}

    def enter(module: nn.Module, args: Any) -> None:
        if id(module) in names:
            stack.append(names[id(module)])

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if id(module) in names:
            stack.pop()

    hooks = [
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave),
    ]
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch._dynamo", "torch.fx.experimental")]
    levels = [logger.level for logger in loggers]
    last = _LastOperator()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with last:
            yield
    except PCCompileError:
        raise
    except Exception as error:
        path = (stack[-1] or type(model).__name__) if stack else None
        place = Place(path, last.name, source_of_exception(error.__traceback__) or None)
        raise _classify(error)(f"{type(error).__name__}: {_first_paragraph(error)}", place) from error
    finally:
        for hook in hooks:
            hook.remove()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _LastOperator(torch.overrides.TorchFunctionMode):
    """Remembers the last torch function called, which is the one that failed."""

    name: str | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", str(func))
        if name not in ("__get__", "__set__", "__torch_function__"):
            self.name = name
        return func(*args, **(kwargs or {}))


def _first_paragraph(error: Exception) -> str:
    return str(error).strip().split("\n\n")[0]


def _classify(error: Exception) -> type[CaptureError] | type[ShapeError]:
    kinds = " ".join(kind.__name__ for kind in type(error).__mro__)
    text = str(error)
    if "DataDependent" in kinds or "data-dependent" in text.lower() or "unbacked symbol" in text.lower():
        return DataDependentError
    shape_words = ("shape", "size", "dimension", "must match", "channels", "broadcast", "expand")
    if isinstance(error, RuntimeError | ValueError | IndexError) and any(word in text for word in shape_words):
        return ShapeError
    return CaptureError
