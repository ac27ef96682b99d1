"""Triton kernels, a folder per operation: reference, kernel, operator, configurations. Usable without the compiler.

    linear_predict   mu = act(x W^T + b)                                   one launch
    linear_error     the parent's error, dW and db from a layer's error    one launch
    linear_step      e = v - act(x W^T + b), and the parent's error        one launch
    strict_sweep     T steps of strict inference of a chain of layers      one launch, and one for all gradients

Beside the folders, what all operations share: the activations and their derivatives (activations.py), how programs are
laid over tiles (tiles.py), products and reductions of tiles (products.py, reductions.py), which table of configurations
a device reads (devices.py) and what a kernel refuses (arguments.py). Kernels take float32, bfloat16 and float16,
accumulate in float32, and repeat bit for bit.

Without a GPU they run under Triton's interpreter: set TRITON_INTERPRET=1 before Triton is imported.
"""

from __future__ import annotations

from pccompile.kernels.activations import ACTIVATIONS, Activation
from pccompile.kernels.linear_error import ErrorSweep, linear_error, linear_error_into
from pccompile.kernels.linear_predict import Prediction, linear_predict
from pccompile.kernels.linear_step import LayerStep, linear_step, linear_step_into
from pccompile.kernels.strict_sweep import StrictSweep, chain_gradients, strict_sweep

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "ErrorSweep",
    "LayerStep",
    "Prediction",
    "StrictSweep",
    "chain_gradients",
    "linear_error",
    "linear_error_into",
    "linear_predict",
    "linear_step",
    "linear_step_into",
    "strict_sweep",
]
