"""How to train: the options that all rules share, and the rules, losses and optimizers that they name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pccompile
from pccompile.demo.errors import CommandLineError
from pccompile.demo.references import is_reference, resolve

__all__ = ["LOSSES", "OPTIMIZERS", "RULES", "Loss", "Options", "are_classes", "find_loss", "make_optimizer"]

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Options:
    """How every rule trains.

    Attributes:
        epochs: passes over the training samples.
        batch_size: samples in a training step.
        learning_rate: of the optimizer.
        steps: inference steps of the rules that have them.
        step_size: of an inference step.
        optimizer: a key of OPTIMIZERS.
        loss: a key of LOSSES, or `module:function`.
        device: a torch device, such as "cpu" or "cuda".
        seed: of the initial weights, the split and the order of the samples.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    steps: int
    step_size: float
    optimizer: str
    loss: str
    device: str
    seed: int


def are_classes(targets: Tensor) -> bool:
    """Whether targets are class indices, rather than numbers to come close to."""
    return not (targets.is_floating_point() or targets.is_complex())


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error; class indices `(batch,)` stand for their one-hot vectors `(batch, classes)`."""
    if are_classes(targets):
        targets = F.one_hot(targets, outputs.shape[1]).to(outputs.dtype)
    return F.mse_loss(outputs, targets)


LOSSES: dict[str, Loss] = {"cross_entropy": F.cross_entropy, "mse": squared_error}

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}

# None: autograd, which needs no program.
RULES: dict[str, Callable[[Options], Any] | None] = {
    "autograd": None,
    "zil": lambda options: pccompile.ZIL(),
    "fixed-prediction": lambda options: pccompile.FixedPrediction(options.steps, options.step_size),
    "strict": lambda options: pccompile.Strict(options.steps, options.step_size),
    "incremental": lambda options: pccompile.Incremental(options.steps, options.step_size),
}


def make_optimizer(model: nn.Module, options: Options) -> torch.optim.Optimizer:
    """The optimizer of a model's parameters that the options name."""
    make: Any = OPTIMIZERS[options.optimizer]  # torch's base class does not declare `lr`
    optimizer: torch.optim.Optimizer = make(model.parameters(), lr=options.learning_rate)
    return optimizer


def find_loss(name: str) -> Loss:
    """The loss `(outputs, targets) -> scalar` that `--loss` names.

    Raises:
        CommandLineError: it names none.
    """
    if is_reference(name):
        return resolve(name)
    if name not in LOSSES:
        raise CommandLineError(f"there is no loss {name!r}", cure=f"{', '.join(LOSSES)} or your own module:function")
    return LOSSES[name]
