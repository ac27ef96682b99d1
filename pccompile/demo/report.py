"""What a run leaves: the table on the screen, and results, figure and programs in a folder."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from pccompile.demo.figure import LINES, draw_learning_curves
from pccompile.demo.options import Options
from pccompile.demo.training import Divergence, RuleResult

__all__ = ["Comparison", "results_table", "save"]


@dataclass(frozen=True)
class Comparison:
    """Rules trained side by side: what was asked for, and what came of it.

    Attributes:
        data, model: as the report calls them.
        train_samples, test_samples, parameters: their numbers.
        options: how every rule trained.
        results: one per rule, in the order asked for.
    """

    data: str
    model: str
    train_samples: int
    test_samples: int
    parameters: int
    options: Options
    results: Sequence[RuleResult]


def results_table(comparison: Comparison) -> Table:
    """The comparison as a table, a row per rule."""
    options = comparison.options
    table = Table(
        title=f"{comparison.model} on {comparison.data}",
        caption=(
            f"{options.epochs} epochs of {comparison.train_samples} samples, batch {options.batch_size}, "
            f"{options.optimizer} {options.learning_rate:g}, seed {options.seed}; "
            f"inference: {options.steps} steps of {options.step_size:g}. "
            "Divergence: the relative error of the gradient against autograd's."
        ),
    )
    table.add_column("rule")
    for heading in (
        "test\naccuracy",
        "test\nloss",
        "divergence,\nfirst step",
        "divergence,\nlast step",
        "seconds\na step",
    ):
        table.add_column(heading, justify="right")
    for result in comparison.results:
        final = result.evaluations[-1]
        table.add_row(
            LINES[result.rule].label,
            "-" if final.accuracy is None else f"{final.accuracy:.1%}",
            f"{final.loss:.4f}",
            _divergence_cell(result.first),
            _divergence_cell(result.last),
            f"{result.seconds_per_step:.4f}",
        )
    return table


def save(comparison: Comparison, folder: Path) -> list[Path]:
    """Write `results.json`, `learning_curves.png` and a `program-RULE.txt` for every rule that has a program.

    Args:
        comparison: what to write.
        folder: an existing folder; files of these names in it are replaced.

    Returns:
        The files written.
    """
    results = folder / "results.json"
    results.write_text(json.dumps(_as_json(comparison), indent=2, allow_nan=False) + "\n")
    curves = folder / "learning_curves.png"
    draw_learning_curves(comparison.results, f"{comparison.model} on {comparison.data}", curves)
    programs = []
    for result in comparison.results:
        if result.program is not None:
            programs.append(folder / f"program-{result.rule}.txt")
            programs[-1].write_text(f"{result.program.rstrip()}\n\n# lowered to Python\n\n{result.code}\n")
    return [results, curves, *programs]


def _divergence_cell(divergence: Divergence | None) -> str:
    if divergence is None:
        return "-"
    return "bit-equal" if divergence.bit_equal else f"{divergence.relative_error:.1e}"


def _as_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison, and what is needed to run it again, in JSON's types."""
    content = {
        "versions": {
            "pccompile": _installed_version(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": {
            "platform": platform.platform(),
            "torch_threads": torch.get_num_threads(),
            "device": _device_name(comparison.options.device),
        },
        "seed": comparison.options.seed,
        "options": asdict(comparison.options),
        "data": {
            "name": comparison.data,
            "train_samples": comparison.train_samples,
            "test_samples": comparison.test_samples,
        },
        "model": {"name": comparison.model, "parameters": comparison.parameters},
        "rules": [_rule_as_json(result) for result in comparison.results],
    }
    plain = _without_infinities(content)
    assert isinstance(plain, dict)
    return plain


def _rule_as_json(result: RuleResult) -> dict[str, Any]:
    final = result.evaluations[-1]
    return {
        "rule": result.rule,
        "test_accuracy": final.accuracy,
        "test_loss": final.loss,
        "divergence": {
            "first_step": asdict(result.first) if result.first else None,
            "last_step": asdict(result.last) if result.last else None,
        },
        "seconds_per_step": result.seconds_per_step,
        "training_losses": result.losses,
        "epochs": [
            {"epoch": epoch, "test_loss": evaluation.loss, "test_accuracy": evaluation.accuracy}
            for epoch, evaluation in enumerate(result.evaluations)
        ],
    }


def _without_infinities(content: Any) -> Any:
    """JSON has no NaN and no infinity: they become the words "nan", "inf" and "-inf", which float() reads."""
    if isinstance(content, float) and not math.isfinite(content):
        return str(content)
    if isinstance(content, dict):
        return {key: _without_infinities(part) for key, part in content.items()}
    if isinstance(content, list):
        return [_without_infinities(part) for part in content]
    return content


def _installed_version() -> str | None:
    try:
        return metadata.version("pccompile")
    except metadata.PackageNotFoundError:
        return None


def _device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return device
