"""The figure of the learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pccompile.demo.training import RuleResult

__all__ = ["draw_learning_curves", "smooth"]


@dataclass(frozen=True)
class Line:
    """How a rule's curves look; a higher `order` is drawn later."""

    label: str
    color: str
    style: str
    width: float
    order: int


# Colours that the colour-blind tell apart. Autograd is wide and pale below the others, Z-IL dashed above
# them: curves that coincide are all seen.
LINES = {
    "autograd": Line("autograd", "#bbbbbb", "-", 6.0, 2),
    "zil": Line("Z-IL", "#0072b2", "--", 2.0, 4),
    "fixed-prediction": Line("fixed prediction", "#e69f00", "-", 1.8, 3),
    "strict": Line("strict", "#d55e00", "-", 1.8, 3),
    "incremental": Line("incremental", "#009e73", "-", 1.8, 3),
}


def draw_learning_curves(results: Sequence[RuleResult], title: str, path: Path) -> None:
    """Draw training loss over steps and the test score over epochs, and save the figure.

    The test score is the accuracy where there is one, else the loss.

    Args:
        results: one per rule, of the same run.
        title: above both panels.
        path: where to; its ending gives the format.
    """
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)  # needs no display
    figure.suptitle(title)
    loss_axes, score_axes = figure.subplots(1, 2)
    _draw_losses(loss_axes, results)
    _draw_scores(score_axes, results)
    for axes in (loss_axes, score_axes):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def smooth(numbers: Sequence[float], window: int) -> list[float]:
    """The mean of each number and up to `window - 1` before it."""
    sums = list(accumulate(numbers, initial=0.0))
    starts = (max(0, end - window) for end in range(1, len(sums)))
    return [(sums[end] - sums[start]) / (end - start) for end, start in enumerate(starts, 1)]


def _draw_losses(axes: Axes, results: Sequence[RuleResult]) -> None:
    window = max(1, min(len(result.losses) for result in results) // 10)
    for result in results:
        line = LINES[result.rule]
        steps = range(1, len(result.losses) + 1)
        axes.plot(
            steps,
            smooth(result.losses, window),
            line.style,
            color=line.color,
            linewidth=line.width,
            label=line.label,
            zorder=line.order,
        )
    axes.set_xlabel("training step")
    axes.set_ylabel("training loss" if window == 1 else f"training loss, mean of {window} steps")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_scores(axes: Axes, results: Sequence[RuleResult]) -> None:
    has_accuracy = all(result.evaluations[0].accuracy is not None for result in results)
    for result in results:
        line = LINES[result.rule]
        scores = [
            100 * (evaluation.accuracy or 0.0) if has_accuracy else evaluation.loss for evaluation in result.evaluations
        ]
        axes.plot(
            range(len(scores)),
            scores,
            line.style,
            color=line.color,
            linewidth=line.width,
            marker="o",
            markersize=line.width + 2,
            label=line.label,
            zorder=line.order,
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel("test accuracy, %" if has_accuracy else "test loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
