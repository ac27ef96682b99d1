"""Every differentiable operator and module of PyTorch, compiled with Z-IL and compared with autograd.

The samples are those of PyTorch's own tests (op_db, module_db). The table counts entries: exact (bit-equal), within
tolerance, refused, not applicable (eager autograd itself gives nothing to compare with), wrong. The exit code is 1 if
anything is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--only", metavar="TEXT", default="", help="entries whose name contains this")
    parser.add_argument("--samples", type=int, default=10, help="samples an entry, out of place and in place each")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--write", type=Path, metavar="PATH", help="write the page of the docs")


def run(arguments: argparse.Namespace) -> None:
    """Sweep, print, write; exit with 1 if anything is wrong."""
    from bench.operators.page import write  # PyTorch's lists take seconds to import
    from bench.operators.report import show
    from bench.operators.sweep import sweep
    from bench.operators.verdict import Verdict

    results = sweep(lambda name: arguments.only in name, arguments.samples, arguments.jobs)
    show(results)
    if arguments.write:
        write(arguments.write, results, arguments.samples)
    sys.exit(any(result.verdict is Verdict.WRONG for result in results))
