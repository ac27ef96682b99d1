"""Triton kernels, a folder per operation: reference, kernel, operator, configurations. Usable without the compiler.

    linear_predict   mu = act(x W^T + b)                                   one launch
    linear_error     the parent's error, dW and db from a layer's error    one launch
    conv_predict     mu = pool(act(conv2d(x, W) + b))                      one launch
    conv_error       the parent's error, dW and db from a layer's error    one launch
    conv_step        e = v - mu, what it carries back, and the move of x   one launch

Beside the folders, what all operations share: the activations and their derivatives (activations.py), how programs are
laid over tiles (tiles.py), which table of configurations a device reads (devices.py) and what a kernel refuses
(arguments.py); and what the convolutions share (convolution_geometry.py on the host, convolution_tiles.py in kernels).
Kernels take float32, bfloat16 and float16, accumulate in float32, and repeat bit for bit.

Without a GPU they run under Triton's interpreter: set TRITON_INTERPRET=1 before Triton is imported.
"""

from __future__ import annotations

from pccompile.kernels.activations import ACTIVATIONS, Activation
from pccompile.kernels.conv_error import conv_error, conv_error_into
from pccompile.kernels.conv_predict import ConvPrediction, conv_predict
from pccompile.kernels.conv_step import ConvStep, conv_step
from pccompile.kernels.convolution_geometry import Pool
from pccompile.kernels.linear_error import ErrorSweep, linear_error, linear_error_into
from pccompile.kernels.linear_predict import Prediction, linear_predict

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "ConvPrediction",
    "ConvStep",
    "ErrorSweep",
    "Pool",
    "Prediction",
    "conv_error",
    "conv_error_into",
    "conv_predict",
    "conv_step",
    "linear_error",
    "linear_error_into",
    "linear_predict",
]
