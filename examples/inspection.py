"""What the compiler made of a small network: one vertex's story, the costs, and the page."""

import tempfile
from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import pccompile


def network() -> nn.Module:
    """The MNIST network of Rosenbaum 2022, without its last layers."""
    layers = [
        ("conv", nn.Conv2d(1, 10, 3)),
        ("relu", nn.ReLU()),
        ("pool", nn.MaxPool2d(2)),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(1690, 10)),
    ]
    return nn.Sequential(OrderedDict(layers))


if __name__ == "__main__":
    torch.manual_seed(0)
    images, labels = torch.randn(8, 1, 28, 28), torch.randint(10, (8,))
    pc = pccompile.compile(network(), loss_fn=F.cross_entropy, example_inputs=images, example_target=labels)
    program = pc.program
    print(program.explain("conv"))
    print()
    print(program.cost())
    with pccompile.record(pc, gradients=True) as rec:
        pc.loss(images, labels).backward()
    print()
    print("largest divergence from autograd:", max(rec.frames[0].divergence.values()))
    with tempfile.TemporaryDirectory() as folder:
        program.save_html(Path(folder) / "program.html", recording=rec)
