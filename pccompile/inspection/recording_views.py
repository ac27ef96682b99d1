"""A recording as a figure, as a table, and as TensorBoard's scalars."""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any

from pccompile.errors import MissingPackageError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from pccompile.inspection.recording import Frame, Recording

__all__ = ["by_layer", "plot", "to_pandas", "to_tensorboard"]


def plot(recording: Recording, frame: int = -1) -> Figure:
    """The figure of one training step; see `Recording.plot`."""
    if not recording.frames:
        raise UsageError("nothing has been recorded", cure="train inside the `with` block")
    figure_module = _load("matplotlib.figure")
    shown = recording.frames[frame]
    panels = 3 if shown.divergence else 2
    figure: Figure = figure_module.Figure(figsize=(5.2 * panels, 4.2), layout="constrained")
    axes = figure.subplots(1, panels)
    _plot_energy(axes[0], shown)
    _plot_errors(figure, axes[1], shown)
    if shown.divergence:
        _plot_divergence(axes[2], shown)
    return figure


def to_pandas(recording: Recording) -> DataFrame:
    """The tidy table; see `Recording.to_pandas`."""
    pandas = _load("pandas")
    rows = [
        (number, step, name, frame.program.vertex(name).level, norm, norm * norm / 2)
        for number, frame in enumerate(recording.frames)
        for name, norms in frame.errors.items()
        for step, norm in enumerate(norms)
    ]
    table: DataFrame = pandas.DataFrame(
        rows, columns=["training_step", "step", "vertex", "level", "error_norm", "energy"]
    )
    return table


def to_tensorboard(recording: Recording, writer: Any) -> None:
    """Write the scalars; see `Recording.to_tensorboard`."""
    own = not hasattr(writer, "add_scalar")
    target = _load("torch.utils.tensorboard").SummaryWriter(str(writer)) if own else writer
    for number, frame in enumerate(recording.frames):
        if frame.energy:
            target.add_scalar("energy/last step", frame.energy[-1], number)
        for name, norms in frame.errors.items():
            target.add_scalar(f"error/{name}", max((n for n in norms if not math.isnan(n)), default=0.0), number)
        for name, divergence in frame.divergence.items():
            target.add_scalar(f"divergence/{name}", divergence, number)
    if own:
        target.close()


def by_layer(names: list[str]) -> dict[str, list[str]]:
    """The names by the module that they are in, one level deep; two where there would be one layer alone."""
    for depth in (1, 2):
        layers: dict[str, list[str]] = {}
        for name in names:
            layers.setdefault(".".join(name.split(".")[:depth]), []).append(name)
        if len(layers) > 2:
            break
    return layers


def _plot_energy(axes: Any, frame: Frame) -> None:
    moving = [name for name in frame.errors if frame.program.vertex(name).moves]
    layers = by_layer(moving)
    colours = _load("matplotlib").colormaps["viridis"].resampled(max(len(layers), 2))
    for position, (layer, names) in enumerate(layers.items()):
        series = [[norm * norm / 2 for norm in frame.errors[name]] for name in names]
        total = [_sum(step) for step in zip(*series, strict=True)]
        axes.plot(total, label=layer, color=colours(position), marker="." if len(total) < 40 else None)
    if any(value > 0 for name in moving for value in frame.errors[name]):
        axes.set_yscale("symlog", linthresh=_smallest([frame.errors[name] for name in moving]) ** 2 / 2)
    axes.set(title="Energy of the errors, by layer", xlabel="step", ylabel="|e|² / 2")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(layers) <= 14:
        axes.legend(fontsize=7, frameon=False)


def _plot_errors(figure: Any, axes: Any, frame: Frame) -> None:
    names = list(frame.errors)
    rows = [[norm if norm > 0 else math.nan for norm in frame.errors[name]] for name in names]
    norm = _load("matplotlib.colors").LogNorm() if any(n > 0 for row in rows for n in row) else None
    image = axes.imshow(rows, aspect="auto", interpolation="nearest", cmap="magma", norm=norm)
    figure.colorbar(image, ax=axes, label="|e|")
    every = max(1, math.ceil(len(names) / 28))
    axes.set_yticks(range(0, len(names), every), names[::every], fontsize=6)
    axes.set(title="Errors", xlabel="step")
    axes.xaxis.get_major_locator().set_params(integer=True)


def _plot_divergence(axes: Any, frame: Frame) -> None:
    layers = by_layer(list(frame.divergence))
    worst = {layer: max(frame.divergence[name] for name in names) for layer, names in layers.items()}
    axes.barh(list(worst), list(worst.values()), color="#3b7dd8")
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    if any(worst.values()):
        axes.set_xscale("log")
        axes.set_xlabel("largest |g - g_autograd| / |g_autograd| of a parameter")
    else:
        axes.set_xticks([])
        axes.set_xlabel("every gradient equals autograd's bit for bit")
    axes.set_title("Divergence from autograd, by layer")


def _smallest(series: list[list[float]]) -> float:
    return min(norm for norms in series for norm in norms if norm > 0)


def _sum(values: tuple[float, ...]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) if known else math.nan


def _load(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = "tensorboard" if "tensorboard" in module else '"pccompile[viz]"'
        raise MissingPackageError(f"{module} is needed here: {error}", cure=f"pip install {package}") from error
