"""Kernels that were counted, each count beside its target; what is missing, with the command that measures it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from bench.gpu.launch_counts import COUNTED, RULES
from bench.gpu.models import GPU_MODELS
from bench.gpu.parts import not_measured
from bench.gpu.targets import launch_target, parametric_layers
from bench.steps.report import TITLES, table_line

__all__ = ["launch_table"]

HEADER = ("model", "rule", "back end", "kernels", "copies", "fills", "target", "", "launch calls")
ALIGNED = (*["---"] * 3, *["---:"] * 4, "---", "---:")
RULE_TITLES = {
    **TITLES,
    "autograd": "Backpropagation",
    "levelled-1": TITLES["levelled"].replace("n = 20", "n = 1"),
}
VERDICTS = {True: "met", False: "not met", None: "no target"}


def launch_table(counted: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each model, rule and back end; where nothing was counted, one for each rule that has a target.

    Args:
        counted: what was counted, by part.
    """
    lines = [line for model in COUNTED for line in _lines(model, counted.get(f"launches-{model}", {}))]
    return "\n".join(map(table_line, (HEADER, ALIGNED, *lines)))


def _lines(model: str, items: Mapping[str, Any]) -> list[tuple[str, ...]]:
    found = []
    for case, item in items.items():
        rule, backend = case.split(" ", 1)
        found.append((model, RULE_TITLES[rule], backend, *_cells(item)))
    counted = {case.split(" ", 1)[0] for case in items}
    layers = _layers(model)
    for rule in RULES:
        target = launch_target(model, rule)
        if target is not None and rule not in counted:
            missing = not_measured(f"launches-{model}")
            found.append((model, RULE_TITLES[rule], missing, "", "", "", target.words(layers), "", ""))
    return found


def _cells(item: Mapping[str, Any]) -> tuple[str, ...]:
    if "raised" in item:
        return ("", "", "", "", item["raised"][:200], "")
    counts = (str(item[name]) for name in ("kernels", "copies", "fills"))
    return (*counts, item["target"] or "", VERDICTS[item["met"]], str(item["launches"]))


def _layers(model: str) -> int:
    """Layers with parameters, of a model whose parameters take no memory."""
    with torch.device("meta"):
        return parametric_layers(GPU_MODELS[model].build())
