"""The recurrences, whose kernels share a table of configurations: an LSTM's with four gates, a GRU's with three.

Shapes are (gates, steps, batch, units). A recurrence and its error are timed together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.gpu.linear_operations import input_precision_of, random_tensors
from bench.gpu.tune import Launch, Operation
from pccompile.kernels.gru.kernel import launch_gru_recurrence, launch_gru_recurrence_error
from pccompile.kernels.lstm.kernel import launch_lstm_recurrence, launch_lstm_recurrence_error
from pccompile.kernels.recurrences import CONFIGURATIONS, SPACE

__all__ = ["RECURRENCES"]

SHAPES = tuple((gates, *layer) for gates in (3, 4) for layer in ((35, 20, 200), (64, 64, 512), (28, 512, 128)))


def _lstm(shape: tuple[int, ...], precision: str, device: str) -> Callable[[Any], Launch]:
    _, steps, batch, units = shape
    sizes = ((steps, batch, 4 * units), (4 * units, units), (batch, units), (steps, batch, units))
    drive, weight, first, error = random_tensors(precision, device, *sizes)
    weight = weight / units**0.5
    hiddens, cells = (drive.new_empty(steps + 1, batch, units) for _ in range(2))
    gates, drive_error = (drive.new_empty(drive.shape) for _ in range(2))
    first_errors = [first.new_empty(first.shape).float() for _ in range(2)]
    arithmetic = input_precision_of(precision)

    def launcher(configuration: Any) -> Launch:
        def run() -> None:
            launch_lstm_recurrence(drive, weight, first, first, hiddens, cells, gates, arithmetic, configuration)
            back = (error, None, None, weight, cells, gates, drive_error, *first_errors)
            launch_lstm_recurrence_error(*back, arithmetic, configuration)

        return Launch(run, (hiddens, cells, gates, drive_error, *first_errors))

    return launcher


def _gru(shape: tuple[int, ...], precision: str, device: str) -> Callable[[Any], Launch]:
    _, steps, batch, units = shape
    sizes = ((steps, batch, 3 * units), (3 * units, units), (batch, units), (steps, batch, units))
    drive, weight, first, error = random_tensors(precision, device, *sizes)
    weight = weight / units**0.5
    hiddens, gates = drive.new_empty(steps + 1, batch, units), drive.new_empty(steps, batch, 4 * units)
    drive_error, state_error = (drive.new_empty(drive.shape) for _ in range(2))
    first_error = first.new_empty(first.shape).float()
    arithmetic = input_precision_of(precision)

    def launcher(configuration: Any) -> Launch:
        def run() -> None:
            launch_gru_recurrence(drive, weight, None, first, hiddens, gates, arithmetic, configuration)
            back = (error, None, weight, hiddens, gates, drive_error, state_error, first_error)
            launch_gru_recurrence_error(*back, arithmetic, configuration)

        return Launch(run, (hiddens, gates, drive_error, state_error, first_error))

    return launcher


def _prepare(shape: tuple[int, ...], precision: str, device: str) -> Callable[[Any], Launch]:
    return (_lstm if shape[0] == 4 else _gru)(shape, precision, device)


RECURRENCES = Operation(SPACE, CONFIGURATIONS, SHAPES, lambda *_: None, _prepare)
