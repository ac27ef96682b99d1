"""Triton kernels, a folder per operation: reference, kernel, operator, configurations. Usable without the compiler.

    linear_predict   mu = act(x W^T + b)                                   one launch
    linear_error     the parent's error, dW and db from a layer's error    one launch

Beside the folders, what all operations share: the activations and their derivatives (activations.py), how programs are
laid over tiles (tiles.py), which table of configurations a device reads (devices.py), how tables that a tuner measured
are laid over the shipped ones (tables.py) and what a kernel refuses (arguments.py). Kernels take float32, bfloat16 and
float16, accumulate in float32, and repeat bit for bit.

Without a GPU they run under Triton's interpreter: set TRITON_INTERPRET=1 before Triton is imported.
"""

from __future__ import annotations

from pccompile.kernels.activations import ACTIVATIONS, Activation
from pccompile.kernels.linear_error import ErrorSweep, linear_error, linear_error_into
from pccompile.kernels.linear_predict import Prediction, linear_predict

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "ErrorSweep",
    "Prediction",
    "linear_error",
    "linear_error_into",
    "linear_predict",
]
