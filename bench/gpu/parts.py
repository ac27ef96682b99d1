"""The parts of the campaign, in their order."""

from __future__ import annotations

from collections.abc import Callable

from bench.gpu import training
from bench.gpu.agreement import CHECKED, TOLERANCES, cases_of, check_agreement
from bench.gpu.check import files_of_tests, run_tests
from bench.gpu.launch_counts import COUNTED, count_model
from bench.gpu.models import GPU_MODELS
from bench.gpu.operations import OPERATIONS
from bench.gpu.runner import CHECK, Part
from bench.gpu.shipped import check_shipped
from bench.gpu.tune import Operation, tune_operation
from bench.gpu.work import Work

__all__ = ["COMMAND", "GROUPS", "all_parts", "chosen_parts", "not_measured", "timed"]

COMMAND = "python -m bench gpu"
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


def not_measured(part: str) -> str:
    """In words, with the command that measures it."""
    return f"not measured: `{COMMAND} --part {part}`"


def timed() -> list[tuple[str, str, str]]:
    """Each model and rule that is timed, and the name of the part that does it."""
    return [(model, rule, name) for model, rules, name in _time_parts() for rule in rules]


def _checks() -> list[Part]:
    tests = [
        Part(f"check-{path.stem.removeprefix('test_')}", CHECK, f"pytest {path.name}", 120.0, run_tests(path))
        for path in files_of_tests()
    ]
    shipped = [
        Part(
            f"check-shipped-{operation.name}",
            CHECK,
            f"every shipped configuration of {operation.name} against its reference",
            120.0,
            check_shipped(operation),
        )
        for operation in OPERATIONS
    ]
    models = [
        Part(
            f"check-{model}-{precision}",
            CHECK,
            f"{len(cases_of(model, precision))} cases of {model} against the eager back end, {precision}",
            8.0 * len(cases_of(model, precision)),
            check_agreement(model, precision),
        )
        for model in CHECKED
        for precision in TOLERANCES
    ]
    return tests + shipped + models


def _launches() -> list[Part]:
    return [
        Part(f"launches-{model}", "launches", f"kernels of a step of {model}", 300.0, count_model(model))
        for model in COUNTED
    ]


def _times() -> list[Part]:
    return [
        Part(
            name,
            "time",
            f"training steps of {model}, {', '.join(rules)}, beside autograd and torch.compile",
            300.0,
            training.time_model(model, rules),
        )
        for model, rules, name in _time_parts()
    ]


def _time_parts() -> list[tuple[str, tuple[str, ...], str]]:
    """Models, the rules that a part times them under, and its name: what takes long to compile is split by rule."""
    return [
        (model, rules, f"time-{model}" if model in CHAINS else f"time-{model}-{rules[0]}")
        for model in GPU_MODELS
        for rules in ([training.RULES] if model in CHAINS else [(rule,) for rule in training.RULES])
    ]


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
