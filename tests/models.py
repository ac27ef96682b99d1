"""The models that the tests compile, each with a batch: (model, inputs, target); and rules of every kind."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import pccompile

BATCH, CLASSES = 6, 5

RULES = {
    "zil": pccompile.ZIL(),
    "fixed prediction": pccompile.FixedPrediction(steps=6, step_size=0.3),
    "fixed prediction, levelled": pccompile.FixedPrediction(steps=12, step_size=0.6, levelled=True),
    "strict": pccompile.Strict(steps=4, step_size=0.1),
    "strict, adam, previous errors": pccompile.Strict(
        steps=4, step_size=0.05, optimizer="adam", learn_errors="previous"
    ),
    "strict, momentum, tolerance": pccompile.Strict(steps=9, step_size=0.1, optimizer="momentum", tolerance=0.02),
}


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layer1 = nn.Sequential(Block(4), Block(4))
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.fc(self.layer1(self.stem(x)).mean((2, 3)))


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4 + 3 * i, 3) for i in range(4)])
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, torch.tanh(layer(x))], 1)
        return self.fc(x)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.hidden = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.hidden(self.embedding(tokens)))).mean(1)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x):
        return self.fc(self.layer(x).mean(1))


class UnrolledCell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, 4)
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x):
        h = c = x.new_zeros(x.shape[0], 4)
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
        return self.fc(h)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, 2, batch_first=True)
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.fc(self.lstm(x)[0][:, -1])


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.places = nn.Embedding(3, 6)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, tokens):
        places = self.places(torch.arange(tokens.shape[1], device=tokens.device))
        return self.fc(F.gelu(self.words(tokens) + places).mean(1))


class TwoByTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(3, 4)
        self.right = nn.Linear(2, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x, z):
        hidden = torch.tanh(self.left(x)) * torch.sigmoid(self.right(z))
        return hidden, self.head(hidden)


class Skips(nn.Module):
    """Three layers whose outputs are all read again later: paths of many lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        first = torch.tanh(self.a(x))
        second = torch.tanh(self.b(first)) + first
        return self.c(second * first)


class Regularised(nn.Module):
    """Returns its own loss, as Hugging Face models do when given labels."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, CLASSES))

    def forward(self, x, labels=None):
        logits = self.net(x)
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, CLASSES))


def mnist_network() -> nn.Module:
    """The MNIST network of Torch2PC (Rosenbaum 2022)."""
    layers = [
        ("conv1", nn.Conv2d(1, 10, 3)),
        ("relu1", nn.ReLU()),
        ("pool", nn.MaxPool2d(2)),
        ("conv2", nn.Conv2d(10, 5, 3)),
        ("relu2", nn.ReLU()),
        ("flatten", nn.Flatten()),
        ("fc1", nn.Linear(605, 50)),
        ("relu3", nn.ReLU()),
        ("fc2", nn.Linear(50, 30)),
        ("relu4", nn.ReLU()),
        ("fc3", nn.Linear(30, 10)),
    ]
    return nn.Sequential(OrderedDict(layers))


def loss_fn(outputs: Any, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy; with two outputs, plus the mean square of the first."""
    if isinstance(outputs, tuple):
        return F.cross_entropy(outputs[1], target) + outputs[0].pow(2).mean()
    return F.cross_entropy(outputs, target)


_MAKERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "mlp": (mlp, lambda: torch.randn(BATCH, 4)),
    "mnist network": (mnist_network, lambda: torch.randn(BATCH, 1, 28, 28)),
    "residual blocks with batch norm": (ResNet, lambda: torch.randn(BATCH, 3, 8, 8)),
    "dense concatenation": (DenseNet, lambda: torch.randn(BATCH, 4)),
    "tied weights": (Tied, lambda: torch.randint(11, (BATCH, 3))),
    "transformer encoder with dropout": (Encoder, lambda: torch.randn(BATCH, 7, 16)),
    "unrolled lstm cell": (UnrolledCell, lambda: torch.randn(BATCH, 5, 3)),
    "lstm": (Recurrent, lambda: torch.randn(BATCH, 5, 3)),
    "embeddings": (Embedded, lambda: torch.randint(11, (BATCH, 3))),
    "two inputs, two outputs": (TwoByTwo, lambda: (torch.randn(BATCH, 3), torch.randn(BATCH, 2))),
    "skips": (Skips, lambda: torch.randn(BATCH, 4)),
}

NAMES = tuple(_MAKERS)


def make(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Any, torch.Tensor]:
    """The model of that name, with inputs and a target; the same weights and data in every dtype."""
    torch.manual_seed(0)
    model, inputs = _MAKERS[name][0](), _MAKERS[name][1]()
    target = torch.randint(CLASSES, (BATCH,))
    cast = lambda value: value.to(dtype) if value.is_floating_point() else value  # noqa: E731
    inputs = tuple(map(cast, inputs)) if isinstance(inputs, tuple) else cast(inputs)
    return model.to(dtype), inputs, target
