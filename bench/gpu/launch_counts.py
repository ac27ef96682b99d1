"""Kernels launched by a training step without the optimizer's, by rule and back end, and what they should be.

The targets, for a model with L layers that have parameters: Z-IL and fixed prediction launch at most two kernels a
layer and two for the loss (its prediction and its error). Strict inference of a chain launches one for the sweep, at
most one a layer for the gradients, and two for the loss. There is no target for strict inference of other graphs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import nn

from bench.gpu.work import Work
from bench.steps.contestants import backend_names
from bench.steps.launches import launched_kernels
from bench.steps.models import MODELS
from bench.steps.task import Task

__all__ = ["BACKENDS", "COUNTED", "RULES", "count_model", "item_of", "parametric_layers", "target"]

COUNTED = ("mlp", "mnist-cnn", "cifar-cnn", "resnet18")
RULES = ("zil", "fixed", "strict")
BACKENDS = ("aten", "inductor", "triton", "auto")
WARM_UP = 4  # graphs are recorded at the third step
CASE_SECONDS = 60.0
SHOWN = 12


def target(model: nn.Module, rule: str) -> int | None:
    """The most kernels that a step should launch; None where there is no target."""
    layers = parametric_layers(model)
    if rule == "strict":
        return 1 + layers + 2 if isinstance(model, nn.Sequential) else None
    return 2 * layers + 2


def parametric_layers(model: nn.Module) -> int:
    """Modules with parameters of their own."""
    return sum(any(True for _ in module.parameters(recurse=False)) for module in model.modules())


def item_of(calls: int, kernels: Counter[str], wanted: int | None) -> dict[str, Any]:
    """What is kept of a count: its target, whether it is met, and the kernels that run most often."""
    met = None if wanted is None else kernels.total() <= wanted
    names = {name[:120]: times for name, times in kernels.most_common(SHOWN)}
    return {"launches": calls, "kernels": kernels.total(), "target": wanted, "met": met, "names": names}


def count_model(
    name: str, device: str = "cuda", count: Callable[..., tuple[int, Counter[str]]] = launched_kernels
) -> Callable[[Work], None]:
    """A part that counts a model's launches under every rule, on every back end, and autograd's."""

    def run(work: Work) -> None:
        task = Task.of(MODELS[name], device)
        cases = [("autograd", "eager")]
        cases += [(rule, backend) for rule in RULES for backend in BACKENDS if backend in backend_names()]
        for rule, backend in cases:
            case = f"{rule} {backend}"
            if case in work.items:
                continue
            work.begin(CASE_SECONDS)
            try:
                found = count(_warm_step(task, rule, backend))
            except Exception as error:
                work.add(case, {"raised": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"})
            else:
                wanted = None if rule == "autograd" else target(task.model, rule)
                work.add(case, item_of(*found, wanted))

    return run


def _warm_step(task: Task, rule: str, backend: str) -> Callable[[], None]:
    """Loss and gradients of a step, after as many as it takes until nothing is made any more."""
    task.reset()
    if rule == "autograd":

        def step() -> None:
            task.loss(task.model(task.inputs), task.target).backward()

    else:
        pc = task.compiled(rule, backend)

        def step() -> None:
            pc.loss(task.inputs, task.target).backward()

    for _ in range(WARM_UP):
        step()
        task.model.zero_grad(set_to_none=True)
    return step
