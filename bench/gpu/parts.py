"""The parts of the campaign, in their order."""

from __future__ import annotations

from collections.abc import Callable

from bench.gpu import training
from bench.gpu.agreement import SMALL, TOLERANCES, cases_of, check_agreement
from bench.gpu.check import files_of_tests, run_tests
from bench.gpu.launch_counts import COUNTED, count_model
from bench.gpu.operations import OPERATIONS
from bench.gpu.runner import CHECK, Part
from bench.gpu.tune import Operation, tune_operation
from bench.gpu.work import Work

__all__ = ["GROUPS", "all_parts", "chosen_parts"]

GROUPS = (CHECK, "launches", "time", "tune")
REPORT = "report"  # no part: the report alone, which every run ends with
CHAINS = ("mlp", "mlp-tanh", "mnist-cnn", "conv-tanh", "mlp-128", "mlp-256", "mlp-512")  # quick to compile: all rules


def all_parts() -> list[Part]:
    """Every part: checks first, then launches and times; tuning is done when it is asked for."""
    return [*_checks(), *_launches(), *_times(), *_tunings()]


def chosen_parts(names: list[str] | None) -> list[Part]:
    """The parts with these names or of these groups; all but tuning, where none are given.

    Raises:
        SystemExit: a name that does not exist.
    """
    everything = all_parts()
    if not names:
        return [part for part in everything if part.group != "tune"]
    known = {part.name for part in everything} | {*GROUPS, REPORT}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(
            f"there is no part {unknown[0]!r}; --parts lists them, and groups are {', '.join((*GROUPS, REPORT))}"
        )
    return [part for part in everything if part.name in names or part.group in names]


def _checks() -> list[Part]:
    tests = [
        Part(f"check-{path.stem.removeprefix('test_')}", CHECK, f"pytest {path.name}", 120.0, run_tests(path))
        for path in files_of_tests()
    ]
    return tests + [
        Part(
            f"check-{model}-{precision}",
            CHECK,
            f"{len(cases_of(model, precision))} cases of {model} against the eager back end, {precision}",
            8.0 * len(cases_of(model, precision)),
            check_agreement(model, precision),
        )
        for model in SMALL
        for precision in TOLERANCES
    ]


def _launches() -> list[Part]:
    return [
        Part(f"launches-{model}", "launches", f"kernels of a step of {model}", 200.0, count_model(model))
        for model in COUNTED
    ]


def _times() -> list[Part]:
    parts = []
    for name in training.MEASURED:
        together = [training.RULES] if name in CHAINS else [(rule,) for rule in training.RULES]
        for rules in together:
            label = f"time-{name}" if len(rules) > 1 else f"time-{name}-{rules[0]}"
            title = f"training steps of {name}, {', '.join(rules)}, beside autograd and torch.compile"
            parts.append(Part(label, "time", title, 300.0, training.time_model(name, rules)))
    return parts


def _tunings() -> list[Part]:
    return [
        Part(
            f"tune-{operation.name}-{precision}",
            "tune",
            f"configurations of {operation.name}, {precision}, on {len(operation.shapes)} shapes",
            480.0,
            _tuning(operation, precision),
        )
        for operation in OPERATIONS
        for precision in operation.precisions
    ]


def _tuning(operation: Operation, precision: str) -> Callable[[Work], None]:
    def run(work: Work) -> None:
        import torch

        from pccompile.kernels.devices import architecture_of

        tune_operation(operation, precision, architecture_of(torch.device("cuda")))(work)

    return run
