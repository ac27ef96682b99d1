"""`pccompile.compile`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from pccompile.backends import BACKENDS
from pccompile.capture import is_symbolic
from pccompile.errors import UsageError
from pccompile.module import PCModule
from pccompile.rules import ZIL, Rule

__all__ = ["compile"]


def compile(
    model: nn.Module,
    rule: Rule | None = None,
    loss_fn: Callable[..., torch.Tensor] | None = None,
    example_inputs: Any = None,
    example_target: Any = None,
    vertices: str | Sequence[str] = "auto",
    backend: str = "aten",
    capture: str = "auto",
    dynamic: bool = True,
    optimize: bool = True,
    decompose: bool | str = "auto",
    cuda_graph: bool | str = "auto",
    verify: bool = True,
) -> PCModule:
    """Compile a PyTorch model into a predictive-coding program that trains it.

    Args:
        model: any `nn.Module`, or a `torch.fx.GraphModule`, which is taken as it is. Its parameters and buffers are
            shared, not copied.
        rule: ZIL() (the default), FixedPrediction(...), Strict(...) or Incremental(...).
        loss_fn: loss_fn(outputs, target) -> scalar, for the loss inside the program (`pc.loss`); a function or module.
            The rules that follow the loss while they infer need it, unless the model returns its own loss.
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments to capture with now; without
            them the model is captured at its first call.
        example_target: a target to capture the loss with as well. A rule that needs the loss inside, given a loss_fn
            and no target, is captured at the first `pc.loss`.
        vertices: what is a vertex, for the rules whose result depends on it: "auto" (nodes for ZIL, layers for the
            others), "nodes", "layers", or the names of the modules whose outputs are vertices.
        backend: what runs the program. "aten" (the default): flat graphs of ATen operators; Z-IL's gradients are
            autograd's to the last bit. "eager": local derivatives from the autograd engine, vertex by vertex.
            "inductor": the flat graphs compiled by torch's Inductor, which takes seconds to minutes at the first call
            and rounds in its own way. "triton": the flat graphs with this package's kernels where they can run and
            were measured to be no slower, on a GPU; elsewhere as "aten". "auto": measures "aten", "inductor" and, on a
            GPU, "triton" at the first call with inputs of a kind and keeps the fastest, also for later processes
            (`pccompile.cache`). With optimize=False the
            reference evaluator runs, whatever the back end.
        capture: "auto" (torch.export, or torch.fx.symbolic_trace where that fails; a GraphModule as it is), "export",
            or "symbolic" (torch.fx.symbolic_trace).
        dynamic: leave the sizes of the inputs' dimensions open wherever the forward allows it, so that a new batch size
            or sequence length needs no new capture. False fixes every size, which captures faster. Graphs that
            torch.fx.symbolic_trace makes hold for every size that their code allows, whatever is said here.
        decompose: True opens `nn.RNN`, `nn.LSTM`, `nn.GRU`, their cells, `nn.MultiheadAttention` and
            `F.scaled_dot_product_attention`: every gate, cell, product and time step becomes a vertex, named as in
            "lstm.l0.forget_gate@3" (layer 0, time step 3) or "attention.weights". False leaves each of them one
            vertex, or part of one. "auto" opens them where the result depends on it: under every rule but ZIL, unless
            `vertices` asks for "layers" or lists modules. What is opened is made of vertices under all of `vertices`.
        cuda_graph: "auto" records what a step launches on a GPU as CUDA graphs, at the third step with inputs of its
            kind, and replays them: right under dropout, for other inputs and after optimizer steps; where parameters
            take steps during inference or energies are read it launches as ever. True raises an error there, or where
            not everything is on one GPU. False never records.
        optimize: False runs the literal program by the reference evaluator; slow, for comparison.
        verify: compare what is captured with the model's own forward (and, under ZIL, its gradients) once, at the first
            call with inputs of its kind; costs about two training steps then. False goes on without.

    Returns:
        A module to call and train like the model.

    Raises:
        UsageError: an unknown option.
        CaptureError (DataDependentError, PythonStateError, ReplayError among them), ShapeError, NoDerivativeError: with
            example inputs, now; else at the first call. The model, its parameters and its buffers stay as they were.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"model is a {type(model).__name__}", cure="give a torch.nn.Module")
    if rule is not None and not isinstance(rule, Rule):
        cure = "give one of ZIL(), FixedPrediction(steps, step_size), Strict(...) and Incremental(...)"
        raise UsageError(f"rule={rule!r}", cure=cure)
    for name, value, choices in (
        ("backend", backend, tuple(BACKENDS)),
        ("capture", capture, ("auto", "export", "symbolic")),
    ):
        if value not in choices:
            raise UsageError(f"{name}={value!r}", cure=f"choose one of {', '.join(map(repr, choices))}")
    if decompose not in (True, False, "auto"):
        raise UsageError(f"decompose={decompose!r}", cure="choose one of True, False, 'auto'")
    if decompose is True and is_symbolic(model, capture):
        raise UsageError("decompose=True opens operators of exported graphs only", cure='add capture="export"')
    if cuda_graph not in (True, False, "auto"):
        raise UsageError(f"cuda_graph={cuda_graph!r}", cure="choose one of True, False, 'auto'")
    pc = PCModule(
        *(model, rule or ZIL(), loss_fn, vertices, backend, capture, dynamic),
        *(optimize, verify, decompose, cuda_graph),
    )
    waits_for_target = pc.rule.needs_loss and loss_fn is not None and example_target is None
    if example_inputs is not None and not waits_for_target:
        pc.prepare(example_inputs, example_target)
    return pc
