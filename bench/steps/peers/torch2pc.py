"""Torch2PC (Rosenbaum 2022), given the folder of its TorchSeq2PC.py."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from bench.steps.peers.blocks import blocks
from bench.steps.task import LEARNING_RATE, STEPS, TORCH2PC_RULE, Prepared, Task

__all__ = ["prepare"]


def prepare(task: Task, folder: Path) -> Prepared:
    """A training step by PCInfer."""
    library = _load(folder / "TorchSeq2PC.py")
    chain = nn.Sequential(*blocks(task.model))
    optimizer = torch.optim.SGD(task.model.parameters(), lr=LEARNING_RATE)

    def backward() -> None:
        library.PCInfer(chain, task.loss, task.inputs, task.target, "Strict", eta=task.step_size, n=STEPS)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        backward()
        optimizer.step()

    return Prepared(step, lambda: task.gradients_of(backward), TORCH2PC_RULE, reset=task.reset)


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("TorchSeq2PC", path)
    if spec is None or spec.loader is None or not path.exists():
        raise FileNotFoundError(f"no {path}")
    module = importlib.util.module_from_spec(spec)
    with contextlib.redirect_stdout(io.StringIO()):
        spec.loader.exec_module(module)
    return module
