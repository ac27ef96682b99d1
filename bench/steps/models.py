"""The models that are trained, each with its batch and loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from bench.steps.networks import GPT, CharacterLSTM, ResNet18
from pccompile.demo.models import cnn

__all__ = ["MODELS", "QUICK", "TOLERANCE", "Model", "model_named", "transformer"]

TOLERANCE = 1e-3  # of the length of a parameter's gradient, in float32; compilers reorder sums

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def token_cross_entropy(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Cross entropy of sequences, a mean over every position."""
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())


@dataclass(frozen=True)
class Model:
    """What is trained.

    Attributes:
        name: on the command line.
        title: in words.
        build: the model, with torch's default initial weights.
        batch: one batch, (inputs, targets).
        loss: loss(outputs, targets), a mean over the batch.
        step_size: of strict and incremental inference; smaller where 0.1 diverges, which costs the same time.
        peers: other libraries are timed on it.
        tolerance: of a gradient's length, more than rounding in the dtype of the model.
    """

    name: str
    title: str
    build: Callable[[], nn.Module]
    batch: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    loss: Loss = F.cross_entropy
    step_size: float = 0.1
    peers: bool = False
    tolerance: float = TOLERANCE


def _mlp(activation: type[nn.Module]) -> nn.Sequential:
    return nn.Sequential(nn.Linear(784, 256), activation(), nn.Linear(256, 256), activation(), nn.Linear(256, 10))


def _conv_tanh() -> nn.Sequential:
    # 28 x 28 -> 14 x 14 -> 7 x 7
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.Tanh(), nn.Conv2d(16, 32, 3, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(1568, 10)
    )


def _cifar_cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 128, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(128, 256, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16384, 256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


def _images(*shape: int) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    return lambda: (torch.randn(shape), torch.randint(10, shape[:1]))


def _tokens(batch: int, length: int, words: int) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    def make() -> tuple[torch.Tensor, torch.Tensor]:
        text = torch.randint(words, (batch, length + 1))
        return text[:, :-1].contiguous(), text[:, 1:].contiguous()

    return make


MODELS = {
    model.name: model
    for model in (
        Model("mlp", "MLP 784-256-256-10, ReLU, batch 64", lambda: _mlp(nn.ReLU), _images(64, 784)),
        Model("mlp-tanh", "MLP 784-256-256-10, tanh, batch 64", lambda: _mlp(nn.Tanh), _images(64, 784), peers=True),
        Model(
            "mnist-cnn", "MNIST CNN (2 conv, 3 linear), batch 64", lambda: cnn((1, 28, 28), 10), _images(64, 1, 28, 28)
        ),
        Model("conv-tanh", "conv 1-16-32, tanh, linear, batch 64", _conv_tanh, _images(64, 1, 28, 28), peers=True),
        Model("cifar-cnn", "CIFAR CNN (3 conv, 3 linear), batch 64", _cifar_cnn, _images(64, 3, 32, 32)),
        Model("resnet18", "ResNet-18, 32 x 32, batch 32", ResNet18, _images(32, 3, 32, 32)),
        Model(
            "char-lstm",
            "character LSTM, width 128, sequence 64, batch 32",
            CharacterLSTM,
            _tokens(32, 64, 65),
            token_cross_entropy,
        ),
        Model(
            "gpt-small",
            "GPT-2 style, 4 layers, width 128, sequence 64, batch 8",
            lambda: GPT(layers=4, width=128, heads=4, vocabulary=512, length=64),
            _tokens(8, 64, 512),
            token_cross_entropy,
            step_size=0.01,
        ),
        Model(
            "gpt-124m",
            "GPT-2 124M, sequence 128, batch 1",
            lambda: GPT(layers=12, width=768, heads=12, vocabulary=50257, length=1024),
            _tokens(1, 128, 50257),
            token_cross_entropy,
            step_size=0.01,
        ),
    )
}

QUICK = ("mlp", "conv-tanh")


def transformer(blocks: int) -> Model:
    """A narrow transformer of so many equal blocks: what its first step takes is compile time."""
    return Model(
        f"transformer-{blocks}",
        f"transformer of {blocks} blocks, width 32, sequence 16, batch 2",
        lambda: GPT(layers=blocks, width=32, heads=4, vocabulary=64, length=16),
        _tokens(2, 16, 64),
        token_cross_entropy,
    )


def model_named(name: str) -> Model:
    """One of `MODELS`, or "transformer-N", with N blocks.

    Raises:
        KeyError: there is no such model.
    """
    kind, _, blocks = name.partition("-")
    return transformer(int(blocks)) if kind == "transformer" else MODELS[name]
