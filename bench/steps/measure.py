"""One model: prepare every contestant, hold its gradients to the reference, look at its memory, then time them all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from bench.steps.ceiling import multiply_ceiling
from bench.steps.contestants import Contestant
from bench.steps.exactness import compare
from bench.steps.launches import count_launches
from bench.steps.memory import peak_bytes
from bench.steps.results import ModelFacts, Row, Status
from bench.steps.task import Prepared, Task
from bench.steps.timing import Effort, time_steps

__all__ = ["Deadline", "Progress", "measure"]


class Progress(Protocol):
    """Is told what happens."""

    def doing(self, what: str) -> None:
        """This begins."""

    def advance(self, share: float) -> None:
        """This share of the model's timing is done."""

    def trouble(self, row: Row) -> None:
        """A contestant is not timed."""


@dataclass(frozen=True)
class Deadline:
    """When to begin no further contestant."""

    at: float = float("inf")

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """So many seconds from now; None: never."""
        return cls() if seconds is None else cls(time.monotonic() + seconds)

    @property
    def passed(self) -> bool:
        """Whether it is too late."""
        return time.monotonic() > self.at


def measure(
    task: Task,
    contestants: Sequence[Contestant],
    device: str,
    effort: Effort,
    progress: Progress,
    deadline: Deadline | None = None,
) -> tuple[ModelFacts, list[Row]]:
    """Measure all contestants on one model.

    Args:
        task: the model.
        contestants: who trains it.
        device: "cpu" or "cuda".
        effort: how long to time.
        progress: is told.
        deadline: contestants that have not begun by then are left out.
    """
    torch.compiler.reset()  # so that no model runs into the compiler's limit of recompilations
    deadline = deadline or Deadline()
    rows = {str(contestant): Row(task.name, contestant.rule, contestant.backend) for contestant in contestants}
    ready: dict[str, Prepared] = {}
    for contestant in contestants:
        row = rows[str(contestant)]
        row.reason = contestant.absent or ("the time was up" if deadline.passed else None)
        if row.reason:
            continue
        progress.doing(f"{task.name}: {contestant}")
        try:
            prepared = _checked(task, contestant, device, row)
        except Exception as error:
            _failed(row, error)
        else:
            if row.status is Status.MEASURED:
                ready[str(contestant)] = prepared
        if row.status is not Status.MEASURED:
            progress.trouble(row)
    progress.doing(f"{task.name}: timing {len(ready)} contestants in turn")

    def failed(name: str, error: Exception) -> None:
        _failed(rows[name], error)
        progress.trouble(rows[name])

    for name, seconds in time_steps(ready, effort, failed, progress.advance).items():
        rows[name].seconds = seconds
    parameters = sum(parameter.numel() for parameter in task.model.parameters())
    dtype = str(task.dtype).removeprefix("torch.")
    facts = ModelFacts(task.name, task.title, parameters, multiply_ceiling(device, task.dtype), dtype)
    return facts, list(rows.values())


def _checked(task: Task, contestant: Contestant, device: str, row: Row) -> Prepared:
    """The contestant, with its gradients compared and its memory and launches counted."""
    task.reset()
    prepared = contestant.prepare(task)
    row.agreement = compare(
        prepared.gradients(), task.reference(prepared.reference), prepared.reference, task.tolerance
    )
    row.flops = task.flops.get("autograd" if prepared.reference == "zil" else prepared.reference)
    if row.agreement.wrong:
        row.status, row.reason = Status.WRONG, f"the gradients of {', '.join(row.agreement.wrong)} are wrong"
        return prepared
    row.status = Status.MEASURED
    if prepared.in_torch:
        prepared.reset()  # the step for the gradients has made what is made once
        row.peak_bytes = peak_bytes(prepared.step, device)
        if device == "cuda":
            row.launches, row.kernels = count_launches(prepared.step)
    prepared.reset()
    return prepared


def _failed(row: Row, error: Exception) -> None:
    text = " ".join(str(error).split())
    row.status, row.reason = Status.RAISED, f"{type(error).__name__}: {text[:400]}"
