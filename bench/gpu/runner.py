"""Runs parts one after the other, each in a process of its own: resumed, refused after failures, ended in time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.gpu.state import ROOT, State
from bench.gpu.work import Outcome, Status, Work

__all__ = ["CHECK", "GRACE", "PART_SECONDS", "Part", "missing_checks", "run_parts", "start"]

PART_SECONDS = 500.0  # after this a part begins nothing more
GRACE = 30.0  # after so much more its process is ended
CHECK = "check"

Launch = Callable[["Part", State, float], Outcome]


@dataclass(frozen=True)
class Part:
    """A piece of the campaign.

    Attributes:
        name: on the command line.
        group: which of check, tune, time and launches it belongs to.
        title: what it would run.
        seconds: how long it takes, roughly; an estimate, not a measurement.
        run: does it.
    """

    name: str
    group: str
    title: str
    seconds: float
    run: Callable[[Work], None]


def run_parts(
    chosen: Sequence[Part],
    checks: Sequence[Part],
    state: State,
    launch: Launch,
    limit: float | None = None,
    ignore_failures: bool = False,
    say: Callable[[str], None] = print,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Run what is not done yet.

    Args:
        chosen: the parts, in their order.
        checks: all the parts that have to be done before anything is timed.
        state: what is done; it is written after each part.
        launch: runs a part for at most so many seconds.
        limit: seconds for all of this run; None: no limit.
        ignore_failures: time although checks have failed or have not run.
        say: is told.
        clock: seconds.

    Returns:
        The exit code: 0, all that was chosen is done; 1, something failed or was refused; 3, the time was up.
    """
    end = clock() + limit if limit is not None else float("inf")
    code, late = 0, False
    for part in chosen:
        if state.status(part.name) is Status.DONE:
            say(f"{part.name}: done before")
            continue
        lacking = [] if part.group == CHECK or ignore_failures else missing_checks(checks, state)
        if lacking:
            say(f"{part.name}: refused, for nothing is timed before {', '.join(lacking)}")
            code = 1
            continue
        status = _run(part, state, launch, end, say, clock)
        if status is Status.FAILED:
            code = 1
        late = late or (status is not Status.DONE and status is not Status.FAILED)
    if late:
        say("not all is done: the same command goes on")
    return code or (3 if late else 0)


def missing_checks(checks: Sequence[Part], state: State) -> list[str]:
    """The checks that failed or are not done, in words."""
    words = {None: "has run", Status.UNFINISHED: "is finished", Status.FAILED: "passes (it failed)"}
    found = [(part.name, state.status(part.name)) for part in checks]
    return [f"{name} {words[status]}" for name, status in found if status is not Status.DONE]


def _run(
    part: Part, state: State, launch: Launch, end: float, say: Callable[[str], None], clock: Callable[[], float]
) -> Status | None:
    """Launch a part until it is done, fails, makes no more progress, or the time is up (None: it did not begin)."""
    items, status = -1, None
    while True:
        seconds = min(PART_SECONDS, end - clock() - GRACE)
        if seconds < min(part.seconds, PART_SECONDS) / 4:
            say(f"{part.name}: left for the next run")
            return status
        say(f"{part.name}: {part.title}")
        outcome = launch(part, state, seconds)
        state.put(part.name, outcome)
        status = outcome.status
        say(f"{part.name}: {status.value} after {outcome.seconds:.0f} s{outcome.message and ': ' + outcome.message}")
        if status is not Status.UNFINISHED:
            return status
        if outcome.items <= items:
            say(f"{part.name}: no progress")
            return status
        items = outcome.items


def start(part: Part, state: State, seconds: float) -> Outcome:
    """Run a part in a process of its own, which is ended, with its children, if it does not end in time."""
    folder = state.folder / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    record, log = folder / f"{part.name}.json", folder / f"{part.name}.log"
    command = [sys.executable, "-m", "bench.gpu.worker", part.name, str(state.folder), str(seconds)]
    begun = time.monotonic()
    before = _items(record)
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=_environment(), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(seconds + GRACE)
            late = False
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            late = True
    took = time.monotonic() - begun
    if late:
        count = _items(record)
        status = Status.UNFINISHED if count > before else Status.FAILED
        return Outcome(status, f"ended after {seconds + GRACE:.0f} s: {_tail(log)}", count, took)
    if process.returncode == 0:
        content = json.loads(record.read_text(encoding="utf-8"))
        return Outcome(Status(content["status"]), content["message"], len(content["items"]), took)
    return Outcome(Status.FAILED, f"exit status {process.returncode}: {_tail(log)}", _items(record), took)


def _environment() -> dict[str, str]:
    """Without the interpreter; with this checkout's `bench`, whatever the working directory."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH"))))
    return {**kept, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def _items(record: Path) -> int:
    try:
        return len(json.loads(record.read_text(encoding="utf-8"))["items"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _tail(log: Path) -> str:
    return " ".join(log.read_text(encoding="utf-8", errors="replace").split())[-1500:]
