"""Who is timed on a model: autograd, torch.compile, every rule on every back end, and peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bench.steps.task import LEARNING_RATE, Prepared, Task
from pccompile.backends import BACKENDS

__all__ = ["AUTOGRAD", "COMPILE_MODES", "Contestant", "autograd_contestants", "backend_names", "rule_contestants"]

AUTOGRAD = "autograd"
COMPILE_MODES = {"cpu": ("default",), "cuda": ("default", "reduce-overhead", "max-autotune")}


@dataclass(frozen=True)
class Contestant:
    """Something that trains the model: a rule, and what runs it.

    Attributes:
        absent: why it cannot take part; "" if it can.
    """

    rule: str
    backend: str
    prepare: Callable[[Task], Prepared]
    absent: str = ""

    def __str__(self) -> str:
        return f"{self.rule} {self.backend}"


def backend_names(device: str | None = None) -> tuple[str, ...]:
    """Every back end of pccompile, and its own choice among them; for a device, those that differ there."""
    return tuple(name for name in BACKENDS if device != "cpu" or name != "triton")


def autograd_contestants(device: str) -> list[Contestant]:
    """Autograd as it is, and the same training step under torch.compile."""

    def compiled(mode: str) -> Contestant:
        name = "torch.compile" if mode == "default" else f"torch.compile {mode}"
        return Contestant(AUTOGRAD, name, lambda task: _prepare_autograd(task, mode))

    return [Contestant(AUTOGRAD, "eager", _prepare_autograd), *map(compiled, COMPILE_MODES[device])]


def rule_contestants(rules: Sequence[str], backends: Sequence[str]) -> list[Contestant]:
    """pccompile: each of these rules on each of these back ends, in the order of the back ends."""

    def made(rule: str, backend: str) -> Contestant:
        return Contestant(rule, backend, lambda task: _prepare_rule(task, rule, backend))

    return [made(rule, backend) for backend in backends for rule in rules]


def _prepare_autograd(task: Task, mode: str | None = None) -> Prepared:
    def forward(inputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return task.loss(task.model(inputs), target)

    loss = forward if mode is None else torch.compile(forward, mode=None if mode == "default" else mode)
    optimizer = torch.optim.SGD(task.model.parameters(), lr=LEARNING_RATE)

    def backward() -> None:
        if mode is not None:
            torch.compiler.cudagraph_mark_step_begin()
        loss(task.inputs, task.target).backward()

    return Prepared(
        _ordinary_step(optimizer, backward), lambda: task.gradients_of(backward), AUTOGRAD, reset=task.reset
    )


def _prepare_rule(task: Task, rule: str, backend: str) -> Prepared:
    pc = task.compiled(rule, backend)
    optimizer = torch.optim.SGD(task.model.parameters(), lr=LEARNING_RATE)
    if rule == "incremental":

        def step() -> None:
            pc.step(task.inputs, task.target, optimizer)

        return Prepared(step, lambda: task.summed_gradients(pc), rule, reset=task.reset)

    def backward() -> None:
        pc.loss(task.inputs, task.target).backward()

    return Prepared(_ordinary_step(optimizer, backward), lambda: task.gradients_of(backward), rule, reset=task.reset)


def _ordinary_step(optimizer: torch.optim.Optimizer, backward: Callable[[], None]) -> Callable[[], None]:
    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        backward()
        optimizer.step()

    return step
