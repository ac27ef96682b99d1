"""Training steps of predictive coding by autograd's: time, peak memory, compile time, exactness.

Every model is trained by every rule on every back end, by autograd, by autograd under torch.compile, and two of them
by other libraries for predictive coding. Gradients are compared with a reference before anything is timed. The exit
code is 1 if any are wrong. docs/benchmarks.md says how to read what comes out.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
import time
from pathlib import Path

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    some = {"nargs": "+", "metavar": "NAME"}
    parser.add_argument(
        "--quick", action="store_true", help="two models, three rules, no peers, no compile times; within two minutes"
    )
    parser.add_argument("--models", **some, help="only these (--list names them)")
    parser.add_argument("--rules", **some, help="only these")
    parser.add_argument("--backends", **some, help="only these")
    parser.add_argument("--peers", nargs="*", metavar="NAME", help="only these; none, if no name follows")
    parser.add_argument("--torch2pc", type=Path, metavar="FOLDER", help="that of Torch2PC's TorchSeq2PC.py")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda, where there is one")
    parser.add_argument("--threads", type=int, default=2, help="threads, and cores, on the CPU")
    parser.add_argument("--repetitions", type=int, help="blocks of steps for each contestant")
    parser.add_argument(
        "--compile-times", action=argparse.BooleanOptionalAction, help="first steps in fresh processes (slow)"
    )
    parser.add_argument(
        "--torch-compile", action=argparse.BooleanOptionalAction, default=True, help="autograd under torch.compile"
    )
    parser.add_argument(
        "--limit", type=float, metavar="SECONDS", help="begin no contestant after this, shared out over the models"
    )
    parser.add_argument("--output", type=Path, default=Path("bench/results"), metavar="FOLDER")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="a page of the docs to put the tables in")
    parser.add_argument("--report", type=Path, metavar="FILE", help="no run: the tables and figure of this one's JSON")
    parser.add_argument("--list", action="store_true", help="models, rules, back ends, peers")


def run(arguments: argparse.Namespace) -> None:
    """Measure, print, write; exit with 1 if gradients are wrong."""
    from bench.steps import campaign  # PyTorch takes seconds to import
    from bench.steps.results import load

    if arguments.list:
        print(campaign.listing())
        return
    if arguments.report:
        campaign.write(load(arguments.report), arguments.output, arguments.write)
        return
    start = time.monotonic()
    choice = campaign.chosen(arguments)
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    results = campaign.begin(choice, shlex.join(["python", "-m", "bench", *sys.argv[1:]]), date)
    campaign.measure_all(results, choice, arguments.output, start)
    campaign.write(results, arguments.output, arguments.write)
    sys.exit(bool(results.wrong))
