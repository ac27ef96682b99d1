"""Every back end, with and without CUDA graphs, against the eager back end: gradients of several steps in a row.

A case is called with batches A, B, A, B, A, each from the initial state. What is recorded as a CUDA graph is recorded
at the third call, so that the fourth and the fifth are replays, of another batch and of the same one; the fifth has
to equal the third bit for bit where all of the gradient comes from kernels that promise it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

import pccompile
from bench.gpu.models import GPU_MODELS
from bench.gpu.work import Work
from bench.steps.contestants import backend_names
from bench.steps.exactness import compare
from bench.steps.models import Model
from bench.steps.task import RULES, Gradients, Task
from pccompile.errors import UsageError

__all__ = ["BACKENDS", "CHECKED", "TOLERANCES", "Case", "cases_of", "check_agreement", "judge", "tolerance_of"]

CHECKED = ("mlp", "mlp-tanh", "conv-tanh", "mnist-cnn", "cifar-cnn", "resnet18-128", "char-lstm", "gpt-6")
WHOLE = ("mlp", "mlp-tanh", "conv-tanh", "mnist-cnn")  # the others: some rules, one way of launching
SOME_RULES = ("zil", "fixed", "levelled")
REPEATABLE = ("mlp", "mlp-tanh")  # libraries' convolutions and embeddings add up in any order
WANTED = ("aten", "inductor", "triton", "auto")
BACKENDS = tuple(name for name in WANTED if name in backend_names())
TOLERANCES = {"float32": 1e-4, "bfloat16": 3e-2}  # of all gradients together
# Units of a ReLU that rounding turns on or off. Autograd with images first and with channels last differs, on a CPU, by
# 5e-3 and 0.25 on ResNet-18, and by 0.025 in bfloat16 on the CIFAR CNN.
ROUNDING = {
    ("resnet18-128", "float32"): 2e-2,
    ("resnet18-128", "bfloat16"): 0.5,
    ("cifar-cnn", "bfloat16"): 6e-2,
}
REPLAYED = 5
CASE_SECONDS = 40.0

Graph = bool | str
Make = Callable[[Task, str, str, Graph], Any]


@dataclass(frozen=True)
class Case:
    """What is compared: a rule on a back end, with a setting of `cuda_graph`, in a precision."""

    rule: str
    backend: str
    cuda_graph: Graph
    precision: str

    def __str__(self) -> str:
        return f"{self.rule} {self.backend} cuda_graph={self.cuda_graph!r} {self.precision}"


def cases_of(model: str, precision: str, backends: Sequence[str] = BACKENDS) -> list[Case]:
    """The cases of a model."""
    rules = tuple(RULES) if model in WHOLE else SOME_RULES
    graphs: tuple[Graph, ...] = (False, True, "auto") if model in WHOLE else ("auto",)
    return [Case(rule, backend, graph, precision) for rule in rules for backend in backends for graph in graphs]


def tolerance_of(model: str, precision: str) -> float:
    """How far all gradients together may be off, by their length: more than rounding in the precision."""
    return ROUNDING.get((model, precision), TOLERANCES[precision])


def check_agreement(name: str, precision: str, device: str = "cuda") -> Callable[[Work], None]:
    """A part that judges all cases of a model."""

    def run(work: Work) -> None:
        batches = tuple(_batches(GPU_MODELS[name], device))
        references: dict[str, list[Gradients]] = {}
        for case in cases_of(name, precision):
            if work.items.get(str(case), {}).get("right"):
                continue
            work.begin(CASE_SECONDS)
            if case.rule not in references:
                eager = Case(case.rule, "eager", False, precision)
                references[case.rule] = list(gradients_in_turn(batches, eager, calls=2))
            verdict = judge(
                batches, case, references[case.rule], name in REPEATABLE, tolerance=tolerance_of(name, precision)
            )
            work.add(str(case), verdict)
            if not verdict["right"]:
                work.fail(f"{name}: {case}: {verdict['why']}")
            torch.compiler.reset()
            gc.collect()

    return run


def judge(
    batches: Sequence[Task],
    case: Case,
    references: Sequence[Gradients],
    repeats: bool,
    make: Make = Task.compiled,
    tolerance: float | None = None,
) -> dict[str, Any]:
    """Whether a case's gradients are right, how far they are off, and why they are not.

    Args:
        batches: the same model with two batches.
        case: what is compared.
        references: the right gradients for each batch.
        repeats: whether the Triton back end has to repeat bit for bit.
        make: compiles the model.
        tolerance: of all gradients together; None: that of the precision.
    """
    tolerance = TOLERANCES[case.precision] if tolerance is None else tolerance
    worst, found = 0.0, []
    try:
        for call, gradients in enumerate(gradients_in_turn(batches, case, REPLAYED, make)):
            agreement = compare(gradients, references[call % 2], case.rule, tolerance)
            worst = max(worst, agreement.relative_error)
            found.append(gradients)
            if not agreement.relative_error <= tolerance:
                why = f"call {call + 1} is {agreement.relative_error:.1e} off ({', '.join(agreement.wrong[:4])})"
                return {"right": False, "error": agreement.relative_error, "why": why}
    except UsageError as error:
        expected = case.rule == "incremental" and case.cuda_graph is True
        return {"right": expected, "refused": expected, "why": str(error)}
    except Exception as error:
        return {"right": False, "why": f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"}
    repeated = all(torch.equal(found[2][name], found[4][name]) for name in found[4])
    if repeats and case.backend == "triton" and not repeated:
        return {"right": False, "error": worst, "why": "the third and the fifth call differ in their bits"}
    return {"right": True, "error": worst, "repeats": repeated}


def gradients_in_turn(
    batches: Sequence[Task], case: Case, calls: int, make: Make = Task.compiled
) -> Iterator[Gradients]:
    """The gradients of one compiled module, called with one batch after the other, from the initial state."""
    pc = make(batches[0], case.rule, case.backend, case.cuda_graph)
    for call in range(calls):
        yield _gradients(batches[call % len(batches)], pc, case)


def _gradients(task: Task, pc: pccompile.PCModule, case: Case) -> Gradients:
    autocast = torch.autocast(task.inputs.device.type, torch.bfloat16, enabled=case.precision == "bfloat16")
    if case.rule == "incremental":
        with autocast:
            return task.summed_gradients(pc)

    def backward() -> None:
        with autocast:
            loss = pc.loss(task.inputs, task.target)
        loss.backward()

    return task.gradients_of(backward)


def _batches(model: Model, device: str) -> Iterator[Task]:
    """The model's task, and the same model with another batch."""
    task = Task.of(model, device)
    yield task
    inputs, target = (part.to(device) for part in model.batch())
    yield replace(task, inputs=inputs, target=target)
