"""The campaign for a machine with an NVIDIA or AMD GPU: correctness first, then launches and times; tuning on demand.

It is cut into parts of less than nine minutes, each in a process of its own. What is done is kept in the output folder
for this commit and GPU: the same command goes on where the last one ended. Nothing is timed before every check has
passed. Exit codes: 0, done; 1, something is wrong, or was refused; 2, there is no GPU; 3, the time was up.
docs/benchmarks.md says how to read what comes out.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.gpu.runner import Part
    from bench.gpu.state import Key

__all__ = ["add_arguments", "run"]

NO_GPU = "python -m bench gpu: PyTorch sees no NVIDIA or AMD GPU here (--dry-run lists what would run)"
RESULTS = Path("bench/results")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--part", nargs="+", metavar="NAME", help="only these, or groups: check, launches, time, tune, report"
    )
    parser.add_argument("--parts", action="store_true", help="list the parts, and which are done")
    parser.add_argument("--dry-run", action="store_true", help="list what would run, with estimated times")
    parser.add_argument("--fresh", action="store_true", help="forget which of the chosen parts are done")
    parser.add_argument("--ignore-failures", action="store_true", help="time although checks have not passed")
    parser.add_argument(
        "--limit", type=float, metavar="SECONDS", help="for this run, at least 60; the next one goes on"
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="bench/results/DATE-GPU unless given")
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="no run: the report of what a folder has")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="a page of the docs to put the figures in")


def run(arguments: argparse.Namespace) -> None:
    """Run the chosen parts, write the report, exit."""
    if arguments.report:
        from bench.gpu.report import write_report

        print(write_report(arguments.report, arguments.write))
        return
    if arguments.dry_run:
        from bench.gpu.parts import chosen_parts

        print(listing(chosen_parts(arguments.part)))
        return
    import torch  # takes seconds

    if not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        sys.exit(2)
    sys.exit(_campaign(arguments))


def listing(parts: Sequence[Part], done: frozenset[str] = frozenset()) -> str:
    """Name, estimated minutes and title of parts, and their sum."""
    width = max((len(part.name) for part in parts), default=0)
    lines = [
        f"{part.name:<{width}} {part.seconds / 60:>6.1f} min  {'done' if part.name in done else '    '}  {part.title}"
        for part in parts
    ]
    total = sum(part.seconds for part in parts if part.name not in done) / 60
    return "\n".join([*lines, f"{len(parts)} parts, about {total:.0f} minutes (estimated, not measured)"])


def _campaign(arguments: argparse.Namespace) -> int:
    from bench.gpu.parts import all_parts, chosen_parts
    from bench.gpu.report import write_report
    from bench.gpu.runner import CHECK, run_parts, start
    from bench.gpu.state import Key, State
    from bench.gpu.work import Status

    key = Key.here()
    folder = arguments.output or folder_for(key, RESULTS)
    state, chosen = State.at(folder, key), chosen_parts(arguments.part)
    if arguments.parts:
        print(listing(chosen, frozenset(p.name for p in chosen if state.status(p.name) is Status.DONE)))
        return 0
    state.command = shlex.join(["python", "-m", "bench", *sys.argv[1:]])
    state.date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    state.ignored = state.ignored or arguments.ignore_failures
    if arguments.fresh:
        for part in chosen:
            state.forget(part.name)
    state.save()
    checks = [part for part in all_parts() if part.group == CHECK]
    code = run_parts(chosen, checks, state, start, arguments.limit, arguments.ignore_failures, _say)
    print(write_report(folder, arguments.write))
    return code


def folder_for(key: Key, results: Path) -> Path:
    """The folder that has this key's state, or a new one named after the date and the GPU."""
    from dataclasses import asdict

    from bench.gpu.state import State

    for path in sorted(results.glob("*/state.json"), reverse=True):
        state = State.read(path.parent)
        if state is not None and state.key == asdict(key):
            return path.parent
    name = "-".join(key.device.lower().replace("/", " ").split())
    made = results / f"{time.strftime('%Y-%m-%d', time.gmtime())}-{name}"
    number = 2
    while made.exists():
        made = made.with_name(f"{made.name.removesuffix(f'-run-{number - 1}')}-run-{number}")
        number += 1
    return made


def _say(what: str) -> None:
    print(what, flush=True)
