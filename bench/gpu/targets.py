"""What the campaign has to find: the most that a training step may take, and the most kernels that it may launch.

The report shows each target beside what was measured. A figure is a ratio of times (of a step by that of autograd, of
autograd under the quickest mode of torch.compile, or of jpc, in the same run), or a share of the speed of a large
matrix product. The quickest of pccompile's back ends counts.
"""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass

from torch import nn

__all__ = [
    "AUTOGRAD",
    "CEILING",
    "COMPILED",
    "JPC",
    "LAUNCHES",
    "TIMES",
    "LaunchTarget",
    "TimeTarget",
    "launch_target",
    "parametric_layers",
    "time_target",
]

AUTOGRAD, COMPILED, JPC, CEILING = "× autograd", "× torch.compile", "× jpc", "of torch.mm"

_SIGNS = {"≤": operator.le, "<": operator.lt, "≥": operator.ge}


@dataclass(frozen=True)
class TimeTarget:
    """A bound of a figure of training steps.

    Attributes:
        models: names of the models that it holds for.
        rule: that of the steps.
        figure: one of `AUTOGRAD`, `COMPILED`, `JPC` (ratios of times) and `CEILING` (a share of operations a second).
        sign: how a figure has to compare with the bound: "≤", "<" or "≥".
    """

    models: tuple[str, ...]
    rule: str
    figure: str
    sign: str
    bound: float

    def is_met(self, found: float) -> bool:
        """Whether a figure that was measured is within the bound."""
        return bool(_SIGNS[self.sign](found, self.bound))

    def __str__(self) -> str:
        return f"{self.sign} {self.bound:.0%}" if self.figure == CEILING else f"{self.sign} {self.bound:.2f}"


@dataclass(frozen=True)
class LaunchTarget:
    """A bound of the kernels that a training step launches, without the optimizer's.

    Attributes:
        models: names of the models that it holds for.
        rules: those of the steps (`bench.gpu.launch_counts.RULES`).
        per_layer: for each module with parameters of its own.
        besides: for each step.
        sweep: what the name of a kernel contains of which there has to be exactly one: all steps of inference; "" for
            rules that have none.
    """

    models: tuple[str, ...]
    rules: tuple[str, ...]
    per_layer: int
    besides: int
    sweep: str = ""

    def bound(self, layers: int) -> int:
        """The most kernels of a step of a model with so many layers that have parameters."""
        return self.per_layer * layers + self.besides

    def words(self, layers: int) -> str:
        """The bound, and what else has to hold."""
        return f"≤ {self.bound(layers)}{', 1 for the sweep' if self.sweep else ''}"

    def is_met(self, layers: int, kernels: Counter[str]) -> bool:
        """Whether so many kernels, by name, are within it."""
        sweeps = sum(times for name, times in kernels.items() if self.sweep and self.sweep in name)
        return kernels.total() <= self.bound(layers) and sweeps == bool(self.sweep)


MLPS = ("mlp", "mlp-tanh", "mlp-128", "mlp-256", "mlp-512")
SMALL = ("mnist-cnn", "cifar-cnn", "char-lstm", "gpt-6")

TIMES = (
    TimeTarget(MLPS, "zil", AUTOGRAD, "≤", 0.5),
    TimeTarget(MLPS, "zil", COMPILED, "≤", 0.95),
    TimeTarget(SMALL, "zil", AUTOGRAD, "≤", 0.6),
    TimeTarget((*SMALL, "resnet18-128"), "zil", COMPILED, "≤", 1.0),
    TimeTarget(("mlp-large",), "zil", CEILING, "≥", 0.9),
    TimeTarget(("mlp", "mlp-tanh"), "strict", AUTOGRAD, "<", 1.0),
    TimeTarget(("mlp-tanh",), "strict", JPC, "≤", 1 / 5),
    TimeTarget(("mnist-cnn",), "strict", AUTOGRAD, "<", 5.0),
)

CHAINS = ("mlp", "mnist-cnn", "cifar-cnn")  # where the graph as it is has levels of its own

LAUNCHES = (  # a layer's prediction and its error; the loss's likewise
    LaunchTarget((*CHAINS, "resnet18-128"), ("zil", "levelled", "levelled-1"), per_layer=2, besides=2),
    LaunchTarget(CHAINS, ("fixed",), per_layer=2, besides=2),
    # a layer's prediction; the loss, all steps of inference, all gradients
    LaunchTarget(("mlp", "mnist-cnn"), ("strict",), per_layer=1, besides=3, sweep="_sweep_kernel"),
)


def time_target(model: str, rule: str, figure: str) -> TimeTarget | None:
    """The target of a figure; None where there is none."""
    fitting = (target for target in TIMES if (target.rule, target.figure) == (rule, figure))
    return next((target for target in fitting if model in target.models), None)


def launch_target(model: str, rule: str) -> LaunchTarget | None:
    """The target of a step's kernels; None where there is none."""
    return next((target for target in LAUNCHES if model in target.models and rule in target.rules), None)


def parametric_layers(model: nn.Module) -> int:
    """Modules with parameters of their own."""
    return sum(any(True for _ in module.parameters(recurse=False)) for module in model.modules())
