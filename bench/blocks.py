"""Compile time of a transformer against its number of blocks: equal blocks are compiled once.

A first training step with Z-IL is measured in a fresh process with empty caches on disk, and again with those that it
left. The table gives seconds, and how many times as long as the fewest blocks take.
"""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--blocks", type=int, nargs="+", default=[4, 48], metavar="N")
    parser.add_argument("--backends", nargs="+", default=["aten", "inductor"], metavar="NAME")
    parser.add_argument("--threads", type=int, default=2, help="threads, and cores")


def run(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    from bench.steps.compile_time import cold_and_warm  # PyTorch takes seconds to import
    from bench.steps.models import transformer

    counts = sorted(arguments.blocks)
    table = Table("back end", "blocks", "cold, s", "× fewest", "warm, s", "warm / cold", box=None)
    for backend in arguments.backends:
        fewest = 0.0
        for blocks in counts:
            cold, warm = cold_and_warm(transformer(blocks).name, "zil", backend, "cpu", arguments.threads)
            fewest = fewest or cold
            figures = f"{cold:.2f}", f"{cold / fewest:.2f}", f"{warm:.2f}", f"{warm / cold:.2f}"
            table.add_row(backend, str(blocks), *figures)
    Console().print(table)
