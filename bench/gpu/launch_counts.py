"""Kernels launched by a training step without the optimizer's, by rule and back end, beside their targets.

What counts is what the step itself launches: no CUDA graph is recorded, whose inputs and outputs would be copied, and
the loss's derivative is given, which autograd would fill. A target (targets.py) bounds the kernels that compute;
copies and fills are counted apart, and shown. "triton always" takes every kernel that can run, "triton" only those that
are no slower than what they replace.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch

import pccompile
from bench.gpu.models import GPU_MODELS
from bench.gpu.targets import LAUNCHES, LaunchTarget, launch_target, parametric_layers
from bench.gpu.work import Work
from bench.steps.contestants import backend_names
from bench.steps.launches import Launched, launched
from bench.steps.task import RULES as TASK_RULES
from bench.steps.task import Task
from pccompile.rules import Rule

__all__ = ["ALWAYS", "BACKENDS", "COUNTED", "RULES", "count_model", "item_of", "warm_step"]

COUNTED = tuple(dict.fromkeys(model for target in LAUNCHES for model in target.models))
RULES: dict[str, Callable[[float], Rule]] = {  # by the step size of inference
    "zil": TASK_RULES["zil"],
    "fixed": TASK_RULES["fixed"],
    "levelled": TASK_RULES["levelled"],
    "levelled-1": lambda step_size: pccompile.FixedPrediction(1, 0.1, levelled=True),
    "strict": TASK_RULES["strict"],
}
ALWAYS = "triton always"
BACKENDS = ("aten", "inductor", "triton", ALWAYS, "auto")
JUDGED = ("triton", ALWAYS, "auto")  # the others are there to compare with
WARM_UP = 4  # more than it takes until nothing is made any more
CASE_SECONDS = 60.0
SHOWN = 12
SETTING = "PCCOMPILE_KERNELS"


def item_of(found: Launched, target: LaunchTarget | None, layers: int) -> dict[str, Any]:
    """What is kept of a count: its target, whether it is met, and what runs most often.

    Args:
        found: what a step runs.
        target: None where there is none.
        layers: how many layers of the model have parameters.
    """
    return {
        "launches": found.calls,
        "kernels": found.kernels.total(),
        "copies": found.copies.total(),
        "fills": found.fills.total(),
        "target": None if target is None else target.words(layers),
        "met": None if target is None else target.is_met(layers, found.kernels),
        "names": _most_common(found.kernels),
        "copies_and_fills": _most_common(found.copies + found.fills),
    }


def count_model(
    name: str, device: str = "cuda", count: Callable[[Callable[[], None]], Launched] = launched
) -> Callable[[Work], None]:
    """A part that counts a model's launches under every rule, on every back end, and autograd's."""

    def run(work: Work) -> None:
        task = Task.of(GPU_MODELS[name], device)
        layers = parametric_layers(task.model)
        known = (*backend_names(), ALWAYS)
        cases = [("autograd", "eager")]
        cases += [(rule, backend) for rule in RULES for backend in BACKENDS if backend in known]
        for rule, backend in cases:
            case = f"{rule} {backend}"
            if case in work.items:
                continue
            work.begin(CASE_SECONDS)
            try:
                found = count(warm_step(task, rule, backend))
            except Exception as error:
                work.add(case, {"raised": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"})
            else:
                work.add(case, item_of(found, launch_target(name, rule) if backend in JUDGED else None, layers))

    return run


def warm_step(task: Task, rule: str, backend: str) -> Callable[[], None]:
    """Loss and gradients of a step, after as many as it takes until nothing is made any more."""
    task.reset()
    with _every_kernel(backend == ALWAYS):
        loss = _loss_under(task, rule, "triton" if backend == ALWAYS else backend)
        upstream = torch.ones_like(loss().detach())  # a backward pass without it would fill it

        def step() -> None:
            loss().backward(upstream)

        for _ in range(WARM_UP):
            step()
            task.model.zero_grad(set_to_none=True)
    return step


def _loss_under(task: Task, rule: str, backend: str) -> Callable[[], torch.Tensor]:
    if rule == "autograd":
        return lambda: task.loss(task.model(task.inputs), task.target)
    made = RULES[rule](task.step_size)
    pc = pccompile.compile(task.model, made, loss_fn=task.loss, backend=backend, cuda_graph=False)
    return lambda: pc.loss(task.inputs, task.target)


@contextlib.contextmanager
def _every_kernel(always: bool) -> Iterator[None]:
    """Whether every kernel is taken that can run."""
    before = os.environ.get(SETTING)
    if always:
        os.environ[SETTING] = "always"
    try:
        yield
    finally:
        os.environ.pop(SETTING, None)
        if before is not None:
            os.environ[SETTING] = before


def _most_common(found: Counter[str]) -> dict[str, int]:
    return {name[:120]: times for name, times in found.most_common(SHOWN)}
