"""Capture with torch.export: functional ATen graphs with module paths and source lines."""

from __future__ import annotations

import io
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from pccompile.call import Call
from pccompile.capture.captured import Captured, Effect, Leaf
from pccompile.capture.decompose import Opened, decompose
from pccompile.capture.functional import functional
from pccompile.capture.repeats import NotRepeatedError, Repeats
from pccompile.capture.restore import restore_eager_operators
from pccompile.capture.shapes import SimpleSizes, domain_of_export, open_dimensions
from pccompile.capture.source import source_of_exception, source_of_function, source_of_stack
from pccompile.capture.state import refuse_changes
from pccompile.capture.structure import Structure
from pccompile.capture.watch import Watch
from pccompile.errors import (
    CaptureError,
    DataDependentError,
    PCCompileError,
    Place,
    PythonStateError,
    ShapeError,
)
from pccompile.ir.grammar import Kind

__all__ = ["WithLoss", "capture_exported"]


class WithLoss(nn.Module):
    """A model followed by its loss, as one module: (args, kwargs, targets) -> the tensors of (loss, outputs).

    Attributes:
        structure: of (loss, outputs), or of the outputs where there is no loss; known once the module has run.
    """

    structure: Structure

    def __init__(self, model: nn.Module, loss_fn: Callable[..., torch.Tensor] | None) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn
        self.training = model.training

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any], targets: tuple[Any, ...]) -> list[Any]:
        with SimpleSizes(), Watch(), refuse_changes(self.model, self.loss_fn):
            with _assigned_buffers_written(self.model):
                outputs = self.model(*args, **kwargs)
            if self.loss_fn is not None:
                outputs = self.loss_fn(outputs, *targets), outputs
            self.structure, tensors = Structure.take_apart(outputs)
            return tensors


@contextmanager
def _assigned_buffers_written(model: nn.Module) -> Iterator[None]:
    """A buffer that the forward replaces (`self.mean = ...`) is written into instead, which the graph can show.

    Raises:
        CaptureError: the new tensor has another shape or dtype.
    """
    before = [(path, module, dict(module._buffers)) for path, module in model.named_modules()]
    yield
    for path, module, buffers in before:
        for name, old in buffers.items():
            new = module._buffers.get(name)
            if new is old:
                continue
            if new is None or old is None or new.shape != old.shape or new.dtype != old.dtype:
                kinds = [None if t is None else (t.dtype, *t.shape) for t in (old, new)]
                cause = f"the forward replaces the buffer {name} by one of another kind ({kinds[0]} -> {kinds[1]})"
                place = Place(path or type(model).__name__, name, source_of_function(type(module).forward) or None)
                raise CaptureError(cause, place, "keep its shape and dtype, or return it from the forward")
            old.copy_(new.detach())
            module._buffers[name] = old


def capture_exported(call: Call, dynamic: bool, opens: bool = False) -> Captured:
    """Capture the model (and the loss after it) with `torch.export`, functionalised and decomposed.

    Runs inside the caller's autocast context, so that its casts become nodes.

    Args:
        opens: replace recurrent networks, recurrent cells and attention by their elementary operators.

    Raises:
        DataDependentError: the forward branches on a tensor's values.
        ShapeError: shapes do not fit inside the forward.
        CaptureError: anything else that keeps torch.export from capturing the model.
    """
    model, loss_fn = call.model, call.loss_fn
    module = WithLoss(model, loss_fn)
    with _errors_with_place(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _refuse_compressed([*call.flat, *model.parameters()])
        exported, fixed = _export(module, call.inputs, dynamic)
    return _read(exported, module.structure, fixed, opens, has_loss=loss_fn is not None)


def _refuse_compressed(values: list[Any]) -> None:
    """torch.export ends the process where a sparse tensor in a compressed layout requires a gradient."""
    strange = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
    for value in values:
        if isinstance(value, torch.Tensor) and value.requires_grad and value.layout in strange:
            raise NotImplementedError(f"torch.export cannot follow a {value.layout} tensor that requires a gradient")


def _export(module: WithLoss, inputs: tuple[Any, ...], dynamic: bool) -> tuple[torch.export.ExportedProgram, str]:
    """Export with open sizes if asked to; where the model does not allow it, with open batch sizes; else with fixed.

    Returns:
        The program, and why not all of the sizes could be left open.
    """
    fixed = ""
    inputs = _aliases(inputs)
    every, first = open_dimensions(inputs), open_dimensions(inputs, only_first=True)
    for shapes in ([every] if every == first else [every, first]) if dynamic else []:
        try:
            return _traced(module, inputs, shapes), fixed
        except PCCompileError:
            raise
        except Exception as error:
            fixed = fixed or f"{type(error).__name__}: {_first_paragraph(error)}".partition("\n")[0]
    return _traced(module, inputs, None), fixed


def _traced(module: WithLoss, inputs: tuple[Any, ...], shapes: Any) -> torch.export.ExportedProgram:
    """Export with these open sizes; of equal blocks the first is traced and copied, if they can be."""
    repeats = Repeats(module)
    try:
        with repeats.recorded():
            exported = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)
        repeats.write_out(exported)
    except Exception as error:
        if not (repeats.used or isinstance(error, NotRepeatedError)):
            raise
        exported = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)
    return functional(exported)


def _aliases(inputs: tuple[Any, ...]) -> Any:
    """The inputs as other tensors: torch.export marks sizes on them, and takes the caller's own marks for its own."""
    made: dict[int, torch.Tensor] = {}

    def alias(tensor: torch.Tensor) -> torch.Tensor:
        return made.setdefault(id(tensor), tensor.detach().requires_grad_(tensor.requires_grad))

    return pytree.tree_map_only(torch.Tensor, alias, inputs)


def _read(
    exported: torch.export.ExportedProgram, structure: Structure, fixed: str, opens: bool, has_loss: bool
) -> Captured:
    graph, signature = exported.graph, exported.graph_signature
    _drop_assertions(graph)
    _infer_open_sizes(graph)
    _drop_idle_broadcasts(graph)
    restore_eager_operators(graph)
    opened = decompose(graph) if opens else Opened()
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    leaves = _leaves(exported, placeholders)
    by_target = {leaf.path: leaf for leaf in leaves.values() if leaf.path}
    outputs: list[str | None] = []
    constants: list[Any] = []
    effects: list[Effect] = []
    for spec, result in zip(signature.output_specs, graph.output_node().args[0], strict=True):
        name = result.name if isinstance(result, fx.Node) else None
        if spec.kind is OutputKind.USER_OUTPUT:
            outputs.append(name)
            constants.append(result if name is None else None)
        elif spec.kind is OutputKind.USER_INPUT_MUTATION:
            effects.append(Effect(leaves[str(spec.target)], str(name)))
        else:
            effects.append(Effect(by_target[_strip(str(spec.target))], str(name)))
    domain = domain_of_export([n for n in placeholders if leaves[n.name].kind is Kind.INPUT], exported, fixed)
    modules = {node.name: _module_of(node) for node in graph.nodes}
    loss_nodes = frozenset(node.name for node in graph.nodes if has_loss and _is_loss_node(node))
    return Captured(
        graph=graph,
        leaves=leaves,
        outputs=outputs,
        constants=constants,
        rebuild=structure.around,
        domain=domain.relying_on(opened.guards),
        effects=effects,
        modules=modules,
        sources={node.name: source_of_stack(node.meta.get("stack_trace")) for node in graph.nodes},
        loss=outputs[0] if has_loss else None,
        loss_nodes=loss_nodes,
        labels=opened.labels,
        elementary=frozenset(opened.elementary),
    )


def _drop_assertions(graph: fx.Graph) -> None:
    """Take out torch.export's assertions on sizes that it did not know; some are wrong, and operators check theirs."""
    for node in reversed(graph.nodes):
        returns = getattr(getattr(node.target, "_schema", None), "returns", None)
        if returns == [] and not node.users:
            graph.erase_node(node)


def _drop_idle_broadcasts(graph: fx.Graph) -> None:
    """Take out what F.mse_loss and its like broadcast to the shape that it has: it would make the output's value read
    by something beside the loss, and the target a computed constant."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.broadcast_tensors.default):
        for part in list(node.users):
            whole = node.args[0][part.args[1]]
            if str(part.meta["val"].shape) == str(whole.meta["val"].shape):
                part.replace_all_uses_with(whole)
                graph.erase_node(part)
        if not node.users:
            graph.erase_node(node)


def _infer_open_sizes(graph: fx.Graph) -> None:
    """Let a view find its only open size by itself: view(x, [-1, 784]) needs no node for the batch size."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
        value, sizes = node.args
        if sum(isinstance(size, fx.Node) for size in sizes) == 1 and 0 not in sizes and -1 not in sizes:
            node.args = (value, [-1 if isinstance(size, fx.Node) else size for size in sizes])
    for node in reversed(graph.nodes):
        is_number = isinstance(node.meta.get("val"), int | torch.SymInt)
        if node.op == "call_function" and is_number and not node.users:
            graph.erase_node(node)


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
            path, _, name = _strip(str(spec.target)).rpartition(".")
            what = type(exported.constants.get(str(spec.target))).__name__
            raise CaptureError(
                f"the forward reads an object that is no tensor: a {what}",
                Place(path or None, name, next((source_of_stack(u.meta.get("stack_trace")) for u in node.users), None)),
                "a graph holds tensors and numbers only; draw random numbers from torch's default generator",
            )
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
    stack = node.meta.get("nn_module_stack") or {}
    return [(key, entry) for key, entry in stack.items() if key != "_empty_nn_module_stack_from_metadata_hook"]


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
    disabled = logging.root.manager.disable
    try:
        logging.disable(logging.ERROR)  # torch reports a failed export several times over; ours says it once
        with redirect_stderr(io.StringIO()):
            yield
    except Exception as error:
        path = (stack[-1] or type(model).__name__) if stack else None
        place = Place(path, _failing_operator(error), source_of_exception(error.__traceback__) or None)
        if isinstance(error, PCCompileError):
            source = error.place.source or (None if isinstance(error, PythonStateError) else place.source)
            known = Place(error.place.module or path, error.place.node, source)
            raise type(error)(error.cause, known, error.cure) from error
        cause = f"{type(error).__name__}: {_first_paragraph(error)}"
        raise _classify(error)(cause, place) from error
    finally:
        for hook in hooks:
            hook.remove()
        logging.disable(disabled)


def _failing_operator(error: Exception) -> str | None:
    """What raised, from the frames of torch's dispatch: "aten.mm.default", "__bool__"; else the innermost function."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    called = [frame.f_locals[name] for frame in reversed(frames) for name in ("func", "op") if name in frame.f_locals]
    for found in called:
        if isinstance(found, torch._ops.OpOverload):
            return str(found)
    named = [str(found.__name__) for found in called if hasattr(found, "__name__")]
    return named[0] if named else frames[-1].f_code.co_name


def _first_paragraph(error: Exception) -> str:
    return str(error).strip().split("\n\n")[0]


def _classify(error: Exception) -> type[CaptureError] | type[ShapeError]:
    kinds = " ".join(kind.__name__ for kind in type(error).__mro__)
    text = str(error)
    if "DataDependent" in kinds or "data-dependent" in text.lower() or "unbacked symbol" in text.lower():
        return DataDependentError
    shape_words = ("shape", "size", " dim", "must match", "channels", "broadcast", "expand")
    if isinstance(error, RuntimeError | ValueError | IndexError) and any(word in text for word in shape_words):
        return ShapeError
    return CaptureError
