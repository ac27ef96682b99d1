"""Which form of launch a sweep takes: by counting what each would do, or by timing them on the tensors at hand."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Sequence

import torch

from pccompile.kernels.devices import PROCESSORS, Architecture
from pccompile.kernels.strict_sweep.configurations import Configuration
from pccompile.kernels.strict_sweep.launch import Form

__all__ = ["estimated_iterations", "fastest_form", "likely_form"]

# What waiting costs, in iterations of a product's loop. Starting values, not yet measured.
_BARRIER = 8
_LAUNCH = 24
_REPETITIONS = 5

_fastest: dict[Hashable, Form] = {}


def estimated_iterations(
    form: Form, architecture: Architecture, configuration: Configuration, batch: int, shapes: Sequence[tuple[int, int]]
) -> float:
    """Iterations of a product's loop that follow one another in a step, counting what is waited for.

    Args:
        form: of the launch.
        architecture: for its number of multiprocessors.
        configuration: the tiles.
        batch: rows.
        shapes: (out, in) of each weight.
    """
    processors = PROCESSORS[architecture]
    row_tiles = -(-batch // configuration.block_batch)
    per_row_tile, longest = 0, 0
    for out, in_features in shapes[1:]:  # the first layer's weight is read once, before the steps
        for columns, terms in ((out, in_features), (in_features, out)):
            iterations = -(-terms // configuration.block_sum)
            per_row_tile += -(-columns // configuration.block_out) * iterations
            longest = max(longest, iterations)
    if form == "batch_tiles":
        return float(per_row_tile * -(-row_tiles // processors))
    shared: float = max(per_row_tile * row_tiles / processors, 2 * longest)
    return shared + 3 * (_BARRIER if form == "cooperative" else _LAUNCH)


def likely_form(
    architecture: Architecture, configuration: Configuration, batch: int, shapes: Sequence[tuple[int, int]]
) -> Form:
    """The form with the fewest estimated iterations: the same for the same sizes, whatever the machine's mood.

    Under the interpreter always tiles of the batch: with one processor there is nothing to share.
    """
    forms: tuple[Form, ...] = ("batch_tiles", "cooperative", "half_steps")
    return min(forms, key=lambda form: estimated_iterations(form, architecture, configuration, batch, shapes))


def fastest_form(key: Hashable, forms: Sequence[Form], run: Callable[[Form], object], device: torch.device) -> Form:
    """The form whose sweep takes the least time, found by running each of them; remembered for the same key.

    Args:
        key: what the answer depends on: sizes, dtype, device, settings.
        forms: those that can run.
        run: one whole sweep.
        device: where it runs.
    """
    if key not in _fastest:
        _fastest[key] = min(forms, key=lambda form: _seconds(lambda: run(form), device))
    return _fastest[key]


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """Median time of a run; the first one, which compiles, does not count."""

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times = []
    for _ in range(_REPETITIONS + 1):
        finish()
        start = time.perf_counter()
        run()
        finish()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
