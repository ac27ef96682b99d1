"""Strict inference learning as a loop in plain PyTorch: the gradient of the energy, by autograd."""

from __future__ import annotations

import torch

from bench.steps.peers.blocks import blocks
from bench.steps.task import LEARNING_RATE, STEPS, Prepared, Task

__all__ = ["prepare"]


def prepare(task: Task) -> Prepared:
    """A training step by hand."""
    chain = blocks(task.model)
    parameters = list(task.model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE)
    samples = task.inputs.shape[0]

    def energy(values: list[torch.Tensor]) -> torch.Tensor:
        """B L + sum |v - mu|^2 / 2"""
        below = task.inputs
        total = torch.zeros((), device=below.device)
        for block, value in zip(chain, values, strict=False):
            total = total + (value - block(below)).square().sum() / 2
            below = value
        return total + samples * task.loss(chain[-1](below), task.target)

    def backward() -> None:
        values = []
        with torch.no_grad():
            below = task.inputs
            for block in chain[:-1]:
                below = block(below)
                values.append(below)
        for _ in range(STEPS):
            values = [value.requires_grad_() for value in values]
            slopes = torch.autograd.grad(energy(values), values)
            with torch.no_grad():
                values = [value - task.step_size * slope for value, slope in zip(values, slopes, strict=True)]
        (energy(values) / samples).backward()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        backward()
        optimizer.step()

    return Prepared(step, lambda: task.gradients_of(backward), "strict", reset=task.reset)
