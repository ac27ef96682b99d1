"""The recurrences, whose kernels share a table of configurations: an LSTM's with four gates, a GRU's with three, an
RNN's with one.

Shapes are (gates, steps, batch, units). A recurrence and its error are timed together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from bench.gpu.linear_operations import exact, input_precision_of, random_tensors
from bench.gpu.tune import Launch, Operation
from pccompile.kernels.gru.kernel import launch_gru_recurrence, launch_gru_recurrence_error
from pccompile.kernels.gru.reference import gru_recurrence_error_reference, gru_recurrence_reference
from pccompile.kernels.lstm.kernel import launch_lstm_recurrence, launch_lstm_recurrence_error
from pccompile.kernels.lstm.reference import lstm_recurrence_error_reference, lstm_recurrence_reference
from pccompile.kernels.recurrences import CONFIGURATIONS, SPACE
from pccompile.kernels.rnn.kernel import launch_rnn_recurrence, launch_rnn_recurrence_error
from pccompile.kernels.rnn.reference import rnn_recurrence_error_reference, rnn_recurrence_reference

__all__ = ["RECURRENCES"]

SHAPES = tuple((gates, *layer) for gates in (3, 4) for layer in ((35, 20, 200), (64, 64, 512), (28, 512, 128)))
AWKWARD = tuple((gates, 3, 19, 45) for gates in (1, 3, 4))


def _lstm(shape: tuple[int, ...], precision: str, device: str) -> Callable[[Any], Launch]:
    _, steps, batch, units = shape
    sizes = ((steps, batch, 4 * units), (4 * units, units), (batch, units), (steps, batch, units))
    drive, weight, first, error = random_tensors(precision, device, *sizes)
    weight = weight / units**0.5
    hiddens, cells = (drive.new_empty(steps + 1, batch, units) for _ in range(2))
    gates, drive_error = (drive.new_empty(drive.shape) for _ in range(2))
    first_errors = [first.new_empty(first.shape).float() for _ in range(2)]
    arithmetic = input_precision_of(precision)

    def expected() -> Sequence[Tensor]:
        d, w, start, e = exact(drive, weight, first, error)
        found = lstm_recurrence_reference(d, w, start, start)
        return *found, *lstm_recurrence_error_reference(e, None, None, w, *found[1:])

    def launcher(configuration: Any) -> Launch:
        def run() -> None:
            launch_lstm_recurrence(drive, weight, first, first, hiddens, cells, gates, arithmetic, configuration)
            back = (error, None, None, weight, cells, gates, drive_error, *first_errors)
            launch_lstm_recurrence_error(*back, arithmetic, configuration)

        return Launch(run, (hiddens, cells, gates, drive_error, *first_errors), expected)

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

    def expected() -> Sequence[Tensor]:
        d, w, start, e = exact(drive, weight, first, error)
        found = gru_recurrence_reference(d, w, None, start)
        return *found, *gru_recurrence_error_reference(e, None, w, *found)

    def launcher(configuration: Any) -> Launch:
        def run() -> None:
            launch_gru_recurrence(drive, weight, None, first, hiddens, gates, arithmetic, configuration)
            back = (error, None, weight, hiddens, gates, drive_error, state_error, first_error)
            launch_gru_recurrence_error(*back, arithmetic, configuration)

        return Launch(run, (hiddens, gates, drive_error, state_error, first_error), expected)

    return launcher


def _rnn(shape: tuple[int, ...], precision: str, device: str) -> Callable[[Any], Launch]:
    _, steps, batch, units = shape
    sizes = ((steps, batch, units), (units, units), (batch, units), (steps, batch, units))
    drive, weight, first, error = random_tensors(precision, device, *sizes)
    weight = weight / units**0.5
    hiddens, drive_error = drive.new_empty(steps + 1, batch, units), drive.new_empty(drive.shape)
    first_error = first.new_empty(first.shape).float()
    options = "tanh", input_precision_of(precision)

    def expected() -> Sequence[Tensor]:
        d, w, start, e = exact(drive, weight, first, error)
        found = rnn_recurrence_reference(d, w, start, "tanh")
        return found, *rnn_recurrence_error_reference(e, None, w, found, "tanh")

    def launcher(configuration: Any) -> Launch:
        def run() -> None:
            launch_rnn_recurrence(drive, weight, first, hiddens, *options, configuration)
            back = (error, None, weight, hiddens, drive_error, first_error)
            launch_rnn_recurrence_error(*back, *options, configuration)

        return Launch(run, (hiddens, drive_error, first_error), expected)

    return launcher


def _prepare(shape: tuple[int, ...], precision: str, device: str) -> Callable[[Any], Launch]:
    return {1: _rnn, 3: _gru, 4: _lstm}[shape[0]](shape, precision, device)


RECURRENCES = Operation(SPACE, CONFIGURATIONS, SHAPES, lambda *_: None, _prepare, {None: AWKWARD})
