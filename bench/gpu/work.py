"""What a part of the campaign has done so far: a JSON file that is written after every item, so that none is lost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

__all__ = ["OutOfTime", "Outcome", "Status", "Work", "attempt"]


class Status(StrEnum):
    """How far a part has come."""

    DONE = "done"
    FAILED = "failed"
    UNFINISHED = "unfinished"


class OutOfTime(Exception):
    """What is left does not fit into this run; the next one goes on."""


@dataclass(frozen=True)
class Outcome:
    """How a run of a part ended.

    Attributes:
        message: what failed, or what is left.
        items: how many items there are now.
        seconds: how long it took.
    """

    status: Status
    message: str = ""
    items: int = 0
    seconds: float = 0.0


@dataclass
class Work:
    """A part under way.

    Attributes:
        path: the part's JSON file.
        key: what the results hold for (state.Key as a dict); a file with another one is begun again.
        until: when to stop, on the monotonic clock.
        items: results by name.
        failures: what was found to be wrong.
    """

    path: Path
    key: dict[str, Any]
    until: float = float("inf")
    items: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @classmethod
    def resumed(cls, path: Path, key: dict[str, Any], seconds: float = float("inf")) -> Work:
        """Go on where a file ends, or begin."""
        work = cls(path, key, time.monotonic() + seconds)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["key"] == key:
                work.items = content["items"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return work

    @property
    def folder(self) -> Path:
        """That of the whole campaign."""
        return self.path.parent.parent

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.monotonic()

    def begin(self, seconds: float = 0.0) -> None:
        """Something begins that takes about so long.

        Raises:
            OutOfTime: it does not fit.
        """
        if self.left < seconds:
            raise OutOfTime(f"{max(self.left, 0):.0f} s left")

    def add(self, name: str, item: Any) -> None:
        """Keep an item."""
        self.items[name] = item
        self.save()

    def fail(self, message: str) -> None:
        """Something is wrong; the part goes on, and fails."""
        self.failures.append(message)
        print(f"WRONG: {message}", flush=True)

    def save(self, outcome: Outcome | None = None) -> None:
        """Write the file, all of it or nothing."""
        content: dict[str, Any] = {"key": self.key, "items": self.items, "failures": self.failures}
        if outcome is not None:
            content |= {"status": outcome.status, "message": outcome.message, "seconds": outcome.seconds}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        written = self.path.with_suffix(".writing")
        written.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        written.replace(self.path)


def attempt(run: Callable[[Work], None], work: Work) -> Outcome:
    """Run a part, and say in its file how it ended."""
    start = time.monotonic()

    def ended(status: Status, message: str = "") -> Outcome:
        outcome = Outcome(status, message, len(work.items), time.monotonic() - start)
        work.save(outcome)
        return outcome

    try:
        run(work)
    except OutOfTime as error:
        if not work.failures:
            return ended(Status.UNFINISHED, str(error))
    except Exception as error:
        work.failures.append(f"{type(error).__name__}: {' '.join(str(error).split())[:2000]}")
    if work.failures:
        return ended(Status.FAILED, "; ".join(work.failures)[:4000])
    return ended(Status.DONE)
