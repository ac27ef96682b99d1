"""The operations that are tuned."""

from __future__ import annotations

from bench.gpu.conv_operations import ConvError, ConvPredict
from bench.gpu.linear_operations import LinearError, LinearPredict
from bench.gpu.tune import Operation

__all__ = ["OPERATIONS"]

OPERATIONS: tuple[Operation, ...] = (LinearPredict(), LinearError(), ConvPredict(), ConvError())
