"""Compile time of a chain of layers against its length: linear is a ratio of 2 from one length to its double.

Each length is measured `--repetitions` times, interleaved with the others, without garbage collection. The table gives
medians in seconds: capture (torch's), then graph, rule, passes, lowering and back end (ours), and one training step.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time

import torch
from torch import nn

import pccompile
from pccompile.call import Call
from pccompile.capture import capture
from pccompile.compiled import compile_captured
from pccompile.ir import Kind
from pccompile.rules import ZIL

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--layers", type=int, nargs="+", default=[1000, 2000])
    parser.add_argument("--capture", choices=("symbolic", "export"), default="symbolic")
    parser.add_argument("--repetitions", type=int, default=3)


def run(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    measure(10, arguments.capture)  # warm up imports and caches
    seconds: dict[int, list[tuple[float, ...]]] = {layers: [] for layers in arguments.layers}
    for _ in range(arguments.repetitions):
        for layers in arguments.layers:
            gc.collect()
            gc.disable()
            seconds[layers].append(measure(layers, arguments.capture))
            gc.enable()
    print(f"capture={arguments.capture!r}, Z-IL, medians of {arguments.repetitions}, torch {torch.__version__}, CPU")
    print(f"{'layers':>8}{'capture':>10}{'compile':>10}{'ratio':>8}{'step':>10}")
    before = None
    for layers, rows in seconds.items():
        captured, compiled, step = (statistics.median(column) for column in zip(*rows, strict=True))
        ratio = f"{compiled / before:.2f}" if before else ""
        print(f"{layers:>8}{captured:>10.3f}{compiled:>10.3f}{ratio:>8}{step:>10.3f}")
        before = compiled


def measure(layers: int, method: str) -> tuple[float, float, float]:
    """Seconds to capture a chain of linear layers, to compile it, and to take one training step."""
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(layers)))
    x = torch.randn(2, 2)
    start = time.perf_counter()
    captured = capture(Call(model, None, (x,), {}), method)
    middle = time.perf_counter()
    wanted = [node for node, leaf in captured.leaves.items() if leaf.kind is Kind.PARAMETER]
    compile_captured(captured, ZIL(), "nodes", wanted, optimize=True)
    end = time.perf_counter()
    pc = pccompile.compile(model, capture="symbolic", verify=False)
    pc.prepare(x)
    begin = time.perf_counter()
    pc(x).sum().backward()
    return middle - start, end - middle, time.perf_counter() - begin
