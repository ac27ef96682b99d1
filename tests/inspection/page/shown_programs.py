"""The programs whose pages the tests open."""

import functools

import torch
from models import loss_fn, make, mnist_network
from networks import IMAGES, TOKENS, resnet18, transformer

import pccompile
from pccompile.ir import Program

MODELS = {
    "mnist": (mnist_network, lambda: torch.randn(4, 1, 28, 28)),
    "resnet18": (resnet18, lambda: torch.randn(IMAGES)),
    "transformer": (lambda: transformer(blocks=4), lambda: torch.randint(50, TOKENS)),
}


@functools.cache
def program_of(name: str) -> Program:
    model, inputs = MODELS[name]
    return pccompile.compile(model(), example_inputs=inputs(), dynamic=False).program


@functools.cache
def recorded(rule) -> tuple[Program, pccompile.Recording]:
    model, inputs, target = make("residual blocks with batch norm")
    pc = pccompile.compile(model, rule, loss_fn, dynamic=False)
    with pccompile.record(pc) as recording:
        for _ in range(3):
            pc.step(inputs, target, torch.optim.SGD(model.parameters(), 0.1))
    return pc.program, recording
