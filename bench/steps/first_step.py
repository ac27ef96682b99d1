"""`python -m bench.steps.first_step MODEL RULE BACKEND DEVICE THREADS`: seconds until the first training step is done.

A process of its own, so that nothing is compiled or cached yet; `bench.steps.compile_time` starts it.
"""

from __future__ import annotations

import json
import sys
import time

import torch

from bench.steps.contestants import autograd_contestants, rule_contestants
from bench.steps.machine import set_up
from bench.steps.models import model_named
from bench.steps.task import Task


def main(model: str, rule: str, backend: str, device: str, threads: str) -> None:
    """Take autograd's first step, which warms up PyTorch, then time the contestant's."""
    set_up(device, int(threads))
    task = Task.of(model_named(model), device)
    eager, *compiled = autograd_contestants(device)
    eager.prepare(task).step()
    contestants = [*compiled, *rule_contestants([rule] if rule != eager.rule else [], [backend])]
    contestant = next(c for c in contestants if (c.rule, c.backend) == (rule, backend))
    task.reset()
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    contestant.prepare(task).step()
    if device == "cuda":
        torch.cuda.synchronize()
    print(json.dumps({"seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main(*sys.argv[1:])
