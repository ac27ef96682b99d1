"""Networks of the usual shapes, written out because torchvision is no dependency: ResNet-18 and -50, GPT-2."""

from __future__ import annotations

import functools

import torch
from torch import nn

import pccompile
from bench.steps.networks import GPT
from pccompile.ir import Program


class Basic(nn.Module):
    expansion = 1

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.downsample = shortcut(width_in, width, stride)

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU()
        self.downsample = shortcut(width_in, 4 * width, stride)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)))))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


def shortcut(width_in: int, width: int, stride: int) -> nn.Module | None:
    if stride == 1 and width_in == width:
        return None
    return nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))


class ResNet(nn.Module):
    """He et al. 2016; `scale` divides the widths, which changes no vertex."""

    def __init__(self, block: type[nn.Module], depths: list[int], scale: int = 16) -> None:
        super().__init__()
        width = 64 // scale
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        width_in = width
        for index, depth in enumerate(depths):
            blocks = []
            for position in range(depth):
                blocks.append(block(width_in, width << index, 2 if index and not position else 1))
                width_in = (width << index) * block.expansion
            setattr(self, f"layer{index + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width_in, 10)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def resnet18() -> nn.Module:
    return ResNet(Basic, [2, 2, 2, 2])


def resnet50() -> nn.Module:
    return ResNet(Bottleneck, [3, 4, 6, 3])


def transformer(blocks: int = 12) -> nn.Module:
    return GPT(layers=blocks, width=16, heads=2, vocabulary=50, length=8)


IMAGES = (2, 3, 32, 32)
TOKENS = (2, 8)


_MADE = {
    "resnet18": (resnet18, lambda: torch.randn(IMAGES)),
    "resnet50": (resnet50, lambda: torch.randn(IMAGES)),
    "transformer": (transformer, lambda: torch.randint(50, TOKENS)),
}


@functools.cache
def zil_program(name: str) -> Program:
    """The Z-IL program of a network, compiled once."""
    model, inputs = _MADE[name]
    return pccompile.compile(model(), example_inputs=inputs(), dynamic=False).program
