"""The operations that are tuned."""

from __future__ import annotations

from bench.gpu.conv_operations import CONV_ERROR, CONV_PREDICT, CONV_STEP
from bench.gpu.linear_operations import LINEAR_ERROR, LINEAR_PREDICT, LINEAR_STEP
from bench.gpu.recurrent_operations import RECURRENCES
from bench.gpu.streamed_operations import BATCH_NORM, CROSS_ENTROPY, EMBEDDING_ERROR, POINTWISE, ROW_NORM
from bench.gpu.sweep_operations import CHAIN_GRADIENTS, NETWORK_GRADIENTS, NETWORK_SWEEP, STRICT_SWEEP
from bench.gpu.tune import Operation

__all__ = ["OPERATIONS"]

OPERATIONS: tuple[Operation, ...] = (
    LINEAR_PREDICT,
    LINEAR_ERROR,
    LINEAR_STEP,
    STRICT_SWEEP,
    CHAIN_GRADIENTS,
    NETWORK_SWEEP,
    NETWORK_GRADIENTS,
    CONV_PREDICT,
    CONV_ERROR,
    CONV_STEP,
    ROW_NORM,
    BATCH_NORM,
    CROSS_ENTROPY,
    EMBEDDING_ERROR,
    POINTWISE,
    RECURRENCES,
)
