"""`python -m bench.gpu.worker PART FOLDER SECONDS`: one part of the campaign, in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.gpu.parts import all_parts
from bench.gpu.state import State
from bench.gpu.work import Work, attempt
from bench.steps.machine import set_up

__all__ = ["main"]


def main(name: str, folder: str, seconds: str) -> None:
    """Run the part; how it ended stands in its JSON file."""
    state = State.read(Path(folder))
    if state is None:
        raise SystemExit(f"{folder} has no state.json")
    part = next(part for part in all_parts() if part.name == name)
    set_up("cuda", 2)
    work = Work.resumed(Path(folder) / "parts" / f"{name}.json", state.key, float(seconds))
    outcome = attempt(part.run, work)
    print(f"{outcome.status}: {outcome.message}")


if __name__ == "__main__":
    main(*sys.argv[1:])
