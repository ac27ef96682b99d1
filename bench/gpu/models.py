"""The models of the campaign: those of bench.steps, some of them with other batches or more layers, and a large MLP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from bench.steps.models import MODELS, Model
from bench.steps.networks import GPT

__all__ = ["BATCHES", "GPU_MODELS", "LARGE"]

NAMES = ("mlp", "mlp-tanh", "mnist-cnn", "conv-tanh", "cifar-cnn", "char-lstm")
BATCHES = (128, 256, 512)  # of the MLP; bench.steps has 64
WIDTH, LARGE_BATCH = 4096, 8192
RESNET_BATCH = 128
BLOCKS = 6


def _images(*shape: int) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    return lambda: (torch.randn(shape), torch.randint(10, shape[:1]))


def _mlp_at(batch: int) -> Model:
    title = MODELS["mlp"].title.replace("batch 64", f"batch {batch}")
    return replace(MODELS["mlp"], name=f"mlp-{batch}", title=title, batch=_images(batch, 784))


def _wide() -> nn.Sequential:
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(4)]
    chain = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2], nn.ReLU(), layers[3])
    return chain.to(torch.bfloat16)


def _wide_batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(LARGE_BATCH, WIDTH).to(torch.bfloat16), torch.randint(WIDTH, (LARGE_BATCH,))


LARGE = Model(
    name="mlp-large",
    title=f"MLP of 4 layers, {WIDTH} wide, ReLU, batch {LARGE_BATCH}, bfloat16",
    build=_wide,
    batch=_wide_batch,
    tolerance=3e-2,
)

_RESNET = replace(
    MODELS["resnet18"],
    name=f"resnet18-{RESNET_BATCH}",
    title=f"ResNet-18, 32 x 32, batch {RESNET_BATCH}",
    batch=_images(RESNET_BATCH, 3, 32, 32),
    tolerance=2e-2,  # in float32 two orders of the same sums are 8e-3 of a gradient's length apart
)

_GPT = replace(
    MODELS["gpt-small"],
    name=f"gpt-{BLOCKS}",
    title=MODELS["gpt-small"].title.replace("4 layers", f"{BLOCKS} layers"),
    build=lambda: GPT(layers=BLOCKS, width=128, heads=4, vocabulary=512, length=64),
)

GPU_MODELS: dict[str, Model] = {
    model.name: model for model in (*(MODELS[name] for name in NAMES), _RESNET, _GPT, *map(_mlp_at, BATCHES), LARGE)
}
