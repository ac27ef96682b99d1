"""What a run found, as data; to JSON and back."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from bench.steps.exactness import Agreement

__all__ = ["FORMAT", "ModelFacts", "Results", "Row", "Status", "load", "save"]

FORMAT = 1


class Status(StrEnum):
    """How it ended for a contestant."""

    MEASURED = "measured"
    WRONG = "wrong gradients"
    RAISED = "raised"
    LEFT_OUT = "left out"


@dataclass
class Row:
    """One contestant on one model; what was not measured is None.

    Attributes:
        seconds: of a training step, one number for each block of steps.
        reason: the exception, or why it was left out.
        peak_bytes: of a training step, beyond what is there before it.
        launches, kernels: launch calls, and kernels run, of a training step on a GPU.
        cold_seconds, warm_seconds: until the first training step is done, with empty and with filled caches on disk.
        flops: of a training step under this rule.
    """

    model: str
    rule: str
    backend: str
    status: Status = Status.LEFT_OUT
    reason: str | None = None
    agreement: Agreement | None = None
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    launches: int | None = None
    kernels: int | None = None
    cold_seconds: float | None = None
    warm_seconds: float | None = None
    flops: int | None = None

    @property
    def quartiles(self) -> tuple[float, float, float] | None:
        """Lower quartile, median and upper quartile of the seconds."""
        if not self.seconds:
            return None
        if len(self.seconds) == 1:
            return (self.seconds[0],) * 3
        lower, middle, upper = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return lower, middle, upper

    @property
    def median(self) -> float | None:
        """The median of the seconds."""
        return self.quartiles[1] if self.quartiles else None


@dataclass
class ModelFacts:
    """A model of the run; ceiling is that of torch.mm in its dtype, in operations a second, measured with the model."""

    name: str
    title: str
    parameters: int
    ceiling: float
    dtype: str = "float32"


@dataclass
class Results:
    """A run."""

    command: str
    date: str
    machine: dict[str, Any]
    versions: dict[str, str]
    options: dict[str, Any]
    models: list[ModelFacts] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def wrong(self) -> list[Row]:
        """The rows whose gradients are wrong."""
        return [row for row in self.rows if row.status is Status.WRONG]

    def eager(self, model: str) -> Row | None:
        """Autograd as it is, on a model."""
        return next((r for r in self._autograd(model) if r.backend == "eager"), None)

    def compiled(self, model: str) -> Row | None:
        """Autograd under torch.compile, on a model: the quickest of its modes."""
        timed = [r for r in self._autograd(model) if r.backend != "eager" and r.seconds]
        return min(timed, key=lambda row: row.median or 0.0, default=None)

    def ratio(self, row: Row, other: Row | None) -> float | None:
        """The row's median by another's; below one is quicker."""
        if row.median is None or other is None or other.median is None:
            return None
        return row.median / other.median

    def share_of_ceiling(self, row: Row) -> float | None:
        """Operations a second of a row by those of torch.mm."""
        facts = next((m for m in self.models if m.name == row.model), None)
        if row.median is None or row.flops is None or facts is None:
            return None
        return row.flops / row.median / facts.ceiling

    def _autograd(self, model: str) -> list[Row]:
        return [row for row in self.rows if row.model == model and row.rule == "autograd"]


def save(results: Results, path: Path) -> None:
    """Write a run as JSON; medians, quartiles and ratios are added for whoever reads it."""
    content = {"format": FORMAT, **asdict(results)}
    for row, found in zip(results.rows, content["rows"], strict=True):
        lower, median, upper = row.quartiles or (None, None, None)
        found["derived"] = {
            "lower_quartile": lower,
            "median": median,
            "upper_quartile": upper,
            "ratio_to_autograd": results.ratio(row, results.eager(row.model)),
            "ratio_to_torch_compile": results.ratio(row, results.compiled(row.model)),
            "share_of_ceiling": results.share_of_ceiling(row),
        }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> Results:
    """Read a run.

    Raises:
        ValueError: the file is of another format.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.pop("format", None) != FORMAT:
        raise ValueError(f"{path} is not a run of this benchmark (format {FORMAT})")
    rows = [_row(found) for found in content.pop("rows")]
    models = [ModelFacts(**found) for found in content.pop("models")]
    return Results(models=models, rows=rows, **content)


def _row(found: dict[str, Any]) -> Row:
    known = {f.name for f in fields(Row)}
    values = {name: value for name, value in found.items() if name in known}
    values["status"] = Status(values["status"])
    if values["agreement"] is not None:
        agreement = values["agreement"]
        values["agreement"] = Agreement(**{**agreement, "wrong": tuple(agreement["wrong"])})
    return Row(**values)
