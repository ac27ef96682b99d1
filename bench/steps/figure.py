"""A run as a picture: each contestant's time by autograd's, a panel for each rule."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.steps.report import TITLES
from bench.steps.results import Results, Row

__all__ = ["draw"]

# colours that the colour-blind tell apart; the markers differ too
COLOURS = ("#0072b2", "#e69f00", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#666666", "#8c510a", "#999933")
MARKERS = "osD^vPX<>"


def draw(results: Results, path: Path) -> None:
    """Draw the ratios and save the figure; the ending of `path` gives the format."""
    timed = [row for row in results.rows if results.ratio(row, results.eager(row.model)) is not None]
    rules = [rule for rule in TITLES if any(row.rule == rule and row.backend != "eager" for row in timed)]
    rules = [rule for rule in rules if rule != "autograd"] or rules
    models = [model.name for model in results.models]
    backends = list(dict.fromkeys(row.backend for row in timed if row.rule in rules))
    looks = {name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(backends)}
    width = max(7.0, 3.2 * len(rules) + 2.2)
    height = 1.8 + len(models) * max(0.45, 0.16 * len(backends))
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # needs no display
    if not rules:
        figure.text(0.5, 0.5, "nothing was timed", ha="center")
        figure.savefig(path, dpi=150)
        return
    panels = figure.subplots(1, len(rules), sharey=True, squeeze=False)[0]
    for axes, rule in zip(panels, rules, strict=True):
        _panel(axes, results, [row for row in timed if row.rule == rule], models, looks)
        axes.set_title(TITLES[rule], fontsize=10)
    panels[0].set_yticks(range(len(models)), models)
    panels[0].set_ylim(len(models) - 0.5, -0.5)
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=int(width / 1.8), frameon=False, fontsize=9
    )
    where = results.machine.get("gpu") or results.machine["processor"]
    figure.suptitle(f"time of a training step by autograd's (left of 1 is quicker)\n{where}", fontsize=11)
    figure.savefig(path, dpi=150)


def _panel(axes: Axes, results: Results, rows: list[Row], models: list[str], looks: dict[str, tuple[str, str]]) -> None:
    """Dots at the medians, bars between the quartiles, a tick where torch.compile'd autograd is."""
    present = [name for name in looks if any(row.backend == name for row in rows)]
    for place, name in enumerate(present):
        colour, marker = looks[name]
        mine = [row for row in rows if row.backend == name]
        shift = (place - (len(present) - 1) / 2) * 0.7 / max(1, len(present))
        places = [models.index(row.model) + shift for row in mine]
        scales = [(results.eager(row.model), row.quartiles) for row in mine]
        triples = [[q / eager.median for q in quartiles] for eager, quartiles in scales if eager and quartiles]
        middles = [triple[1] for triple in triples]
        spread = [[m - t[0] for m, t in zip(middles, triples, strict=True)], [t[2] - t[1] for t in triples]]
        axes.errorbar(middles, places, xerr=spread, fmt=marker, color=colour, markersize=5, linewidth=1.2, label=name)
    for index, model in enumerate(models):
        compiled = results.compiled(model)
        ratio = results.ratio(compiled, results.eager(model)) if compiled else None
        if ratio is not None:
            label = "autograd under torch.compile" if index == 0 else None
            axes.plot([ratio, ratio], [index - 0.45, index + 0.45], color="#888888", linestyle=":", label=label)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 3, 5, 7) if high < 5 * low else (1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", alpha=0.3)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    for boundary in range(1, len(models)):
        axes.axhline(boundary - 0.5, color="black", alpha=0.08, linewidth=0.8)
