"""Looks for the quickest configuration of each cell of an operation's table, by going from neighbour to neighbour.

A cell is an architecture's, a precision's and a size's. Its shapes are those that the shipped table gives to it; what
is minimised is the geometric mean, over its shapes, of a configuration's time by the shipped one's, both timed in
turn. A configuration that does not compile, cannot be launched, or whose results differ from the shipped one's, is left
out with a note.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.gpu.candidates import neighbours
from bench.gpu.timing import Timer, event_medians
from bench.gpu.work import Work
from pccompile.kernels.tables import FORMAT, Space

__all__ = [
    "Launch",
    "Operation",
    "Tuned",
    "named",
    "relative_error",
    "results_of",
    "tune_cell",
    "tune_operation",
    "write_table",
]

ROUNDS = 6
GAIN = 0.98  # a configuration has to be so much quicker to be taken
CELL_SECONDS = 60.0
NOTE = 200  # characters of what the compiler says
ERRORS = {"half": 2e-2, "tf32": 5e-3, "ieee": 1e-5}  # RMS of the difference by RMS of the shipped one's result


@dataclass(frozen=True)
class Launch:
    """A launch that is ready.

    Attributes:
        run: launches.
        results: the tensors that it writes.
        expected: what they should hold, by the reference in plain torch.
    """

    run: Callable[[], object]
    results: Sequence[torch.Tensor]
    expected: Callable[[], Sequence[torch.Tensor]]


@dataclass(frozen=True)
class Operation:
    """What can be tuned.

    Attributes:
        space: the operation's.
        table: its configurations by architecture, precision and, in most tables, size.
        shapes: those that it is tuned for.
        size_of: the size whose configuration a shape gets on an architecture, in a precision; None where the table has
            no sizes.
        prepare: tensors of a shape, in a precision, on a device, and the launch on them for a configuration.
        awkward: small shapes that fit no tile, on which a size's configurations are checked wherever they are chosen.
    """

    space: Space
    table: Mapping[Any, Mapping[str, Any]]
    shapes: Sequence[tuple[int, ...]]
    size_of: Callable[[str, str, tuple[int, ...]], str | None]
    prepare: Callable[[tuple[int, ...], str, str], Callable[[Any], Launch]]
    awkward: Mapping[Any, Sequence[tuple[int, ...]]]

    @property
    def name(self) -> str:
        """The operation's."""
        return self.space.operation

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those that it has configurations for."""
        return tuple(next(iter(self.table.values())))

    def cells(self, architecture: str, precision: str) -> Mapping[str | None, Any]:
        """The shipped configurations by size; None is the size of a table without sizes."""
        found = self.table[architecture][precision]
        return found if isinstance(found, Mapping) else {None: found}


@dataclass(frozen=True)
class Tuned:
    """What was found for a cell.

    Attributes:
        configuration: the quickest.
        ratio: its time by the shipped one's, a geometric mean over the shapes; below one is quicker.
        tried: how many configurations were launched.
        refused: why others could not be, or that they gave something else, by their fields.
        shapes: seconds by shape, of the shipped one and of the quickest.
    """

    configuration: Any
    ratio: float
    tried: int
    refused: dict[str, str]
    shapes: dict[str, tuple[float, float]]


def tune_cell(
    shipped: Any,
    space: Space,
    launchers: Mapping[str, Callable[[Any], Launch]],
    architecture: str,
    precision: str,
    timer: Timer = event_medians,
    begin: Callable[[], None] = lambda: None,
) -> Tuned:
    """The quickest configuration for some shapes.

    Args:
        shipped: the configuration to begin with, and to compare with.
        space: the operation's.
        launchers: for each shape, by name, the launch of a configuration.
        architecture, precision: of the cell.
        timer: times launches in turn.
        begin: is called before each round, and raises where there is no time for it.
    """
    best, best_ratio, seen = shipped, 1.0, {shipped}
    refused: dict[str, str] = {}
    shapes: dict[str, tuple[float, float]] = {}
    expected = {shape: results_of(launcher(shipped)) for shape, launcher in launchers.items()}
    for _ in range(ROUNDS):
        begin()
        around = [c for c in neighbours(best, space, architecture, precision) if c not in seen]
        if not around:
            break
        seen.update(around)
        ratios: dict[Any, list[tuple[float, float]]] = {candidate: [] for candidate in around}
        for shape, launcher in launchers.items():
            tried = {candidate: _usable(launcher, candidate, expected[shape], precision) for candidate in ratios}
            refused |= {str(candidate): f"{shape}: {why}" for candidate, why in tried.items() if isinstance(why, str)}
            launches = {candidate: launch for candidate, launch in tried.items() if isinstance(launch, Launch)}
            ratios = {candidate: ratios[candidate] for candidate in launches}
            timed = {"shipped": launcher(shipped).run}
            timed |= {str(index): launches[candidate].run for index, candidate in enumerate(ratios)}
            seconds = timer(timed)
            for index, candidate in enumerate(ratios):
                ratios[candidate].append((seconds["shipped"], seconds[str(index)]))
        means = {candidate: _mean_ratio(pairs) for candidate, pairs in ratios.items()}
        quickest = min(means, key=means.__getitem__, default=None)
        if quickest is None or means[quickest] > GAIN * best_ratio:
            break
        best, best_ratio = quickest, means[quickest]
        shapes = dict(zip(launchers, ratios[quickest], strict=True))
    return Tuned(best, best_ratio, len(seen) - 1, refused, shapes)


def tune_operation(
    operation: Operation, precision: str, architecture: str, device: str = "cuda"
) -> Callable[[Work], None]:
    """A part that tunes an operation in a precision, a cell at a time, and writes its table."""

    def run(work: Work) -> None:
        for size, shipped in operation.cells(architecture, precision).items():
            name = str(size)
            if name in work.items:
                continue
            work.begin(CELL_SECONDS)
            shapes = [s for s in operation.shapes if operation.size_of(architecture, precision, s) == size]
            if not shapes:
                work.add(name, {"left_out": "no shape of the list has this size"})
                continue
            launchers = {named(shape): operation.prepare(shape, precision, device) for shape in shapes}
            tuned = tune_cell(shipped, operation.space, launchers, architecture, precision, begin=work.begin)
            found = {**asdict(tuned), "architecture": architecture, "precision": precision, "size": size}
            work.add(name, found)
            torch.cuda.empty_cache()
        write_table(operation.name, work.folder)

    return run


def write_table(operation: str, folder: Path) -> Path | None:
    """Write what all parts found for an operation as the table that the kernels read; None: nothing was quicker."""
    records = sorted((folder / "parts").glob(f"tune-{operation}-*.json"))
    items = [item for path in records for item in json.loads(path.read_text(encoding="utf-8"))["items"].values()]
    entries = [item for item in items if "configuration" in item and item["ratio"] < 1.0]
    if not entries:
        return None
    path = folder / "tuned" / f"{operation}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, "operation": operation, "entries": entries}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def named(shape: tuple[int, ...]) -> str:
    """A shape in one word."""
    return "x".join(map(str, shape))


def results_of(launch: Launch) -> list[torch.Tensor]:
    """What a launch writes, not a number where it writes nothing."""
    for result in launch.results:
        result.fill_(torch.nan)
    launch.run()
    return [result.clone() for result in launch.results]


def _usable(
    launcher: Callable[[Any], Launch], candidate: Any, expected: Sequence[torch.Tensor], precision: str
) -> Launch | str:
    """The launch of a candidate, or why there is none: it fails, or gives something else."""
    try:
        launch = launcher(candidate)
        found = results_of(launch)
    except Exception as error:  # out of resources, or what the compiler cannot do
        return f"{type(error).__name__}: {' '.join(str(error).split())[:NOTE]}"
    errors = [relative_error(a, b) for a, b in zip(found, expected, strict=True)]
    if all(error <= ERRORS[precision] for error in errors):
        return launch
    return f"its results differ by {', '.join(f'{error:.1e}' for error in errors)}"


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """RMS of the difference by RMS of what is expected; the former alone where that is zero."""
    difference, scale = (found.double() - expected.double()).norm(), expected.double().norm()
    return float(difference / scale) if scale > 0 else float(difference)


def _mean_ratio(pairs: Sequence[tuple[float, float]]) -> float:
    return math.exp(sum(math.log(new / old) for old, new in pairs) / len(pairs))
