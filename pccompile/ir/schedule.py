"""The schedule: local updates, each with the range of steps in which it runs; `grammar` says what they do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["ACTION_ORDER", "Action", "Schedule", "Span", "Time", "Update"]


class Action(StrEnum):
    """What an update does; see `pccompile.ir.grammar`."""

    PREDICT = "Predict"
    COMPARE = "Compare"
    INFER = "Infer"
    RELAX = "Relax"
    LEARN = "Learn"
    DESCEND = "Descend"


ACTION_ORDER = {action: position for position, action in enumerate(Action)}


@dataclass(frozen=True, order=True)
class Time:
    """A step: `offset`, counted from step 0, or from step T if `from_end`. Every step before T orders before T."""

    from_end: bool
    offset: int

    def at(self, steps: int) -> int:
        """The step's number when inference runs `steps` steps."""
        return self.offset + steps if self.from_end else self.offset

    def __add__(self, steps: int) -> Time:
        return Time(self.from_end, self.offset + steps)

    @staticmethod
    def parse(text: str) -> Time:
        """The time that `str` printed: "3", "T", "T+1"."""
        from_end = text.startswith("T")
        return Time(from_end, int(text.removeprefix("T") or 0))

    def __str__(self) -> str:
        if not self.from_end:
            return str(self.offset)
        return f"T{self.offset:+d}" if self.offset else "T"


@dataclass(frozen=True)
class Span:
    """The half-open range of steps [start, stop) in which an update runs, once a step."""

    start: Time
    stop: Time

    @staticmethod
    def steps(start: int, stop: int) -> Span:
        """A span between two steps counted from step 0."""
        return Span(Time(False, start), Time(False, stop))

    @staticmethod
    def inference() -> Span:
        """[0, T): every step of inference."""
        return Span(Time(False, 0), Time(True, 0))

    @staticmethod
    def whole() -> Span:
        """[0, T+1): every step of inference and the one in which its result is read."""
        return Span(Time(False, 0), Time(True, 1))

    @staticmethod
    def final() -> Span:
        """[T, T+1): the step after inference."""
        return Span(Time(True, 0), Time(True, 1))

    def later(self, steps: int) -> Span:
        """The span moved by a number of steps."""
        return Span(self.start + steps, self.stop + steps)

    @property
    def empty(self) -> bool:
        """Whether the update never runs, whatever T is."""
        return self.stop <= self.start

    @property
    def single(self) -> bool:
        """Whether the update runs in one step exactly."""
        return self.stop == self.start + 1

    @property
    def last(self) -> Time:
        """The last step in which the update runs."""
        return self.stop + -1

    def __str__(self) -> str:
        return f"[{self.start}, {self.stop})"


@dataclass(frozen=True)
class Update:
    """One local update of one vertex and the steps in which it runs.

    `gain` names the factor of a Learn: "1", or "c(3)" for P[Binomial(T, step_size) >= 3]. `exact` marks an Infer or
    Relax whose step size is 1 whatever the rule's is (Z-IL, and the closed form of fixed prediction).
    """

    action: Action
    vertex: str
    span: Span
    gain: str = "1"
    exact: bool = False

    def __str__(self) -> str:
        gain = f" gain {self.gain}" if self.gain != "1" else ""
        return f"{self.action.value}({self.vertex}) @ {self.span}{gain}"


Schedule = tuple[Update, ...]
