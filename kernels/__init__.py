"""Triton kernels, a folder per operation: reference, kernel, operator, configurations. Usable without the compiler.

    linear_predict   mu = act(x W^T + b)                                   one launch
    linear_error     the parent's error, dW and db from a layer's error    one launch
    linear_step      e = v - act(x W^T + b), and the parent's error        one launch
    strict_sweep     T steps of strict inference of a chain of layers      one launch, and one for all gradients
    conv_predict     mu = pool(act(conv2d(x, W) + b))                      one launch
    conv_error       the parent's error, dW and db from a layer's error    one launch
    conv_step        e = v - mu, what it carries back, and the move of x   one launch
    network_sweep    T steps of strict inference of a small network        one launch, and one for all gradients
    cross_entropy    the loss vertex: its prediction, and its error        one launch each
    row_norm         layer and RMS normalisation: prediction, and error    one launch each
    batch_norm       batch normalisation: prediction, and error            one launch each
    embedding_error  the gradient of an embedding table                    one launch after a sort
    rnn, lstm, gru   a layer over time: prediction, and error              all steps in one launch
    pointwise        any run of pointwise operators, generated             one launch

Beside the folders, what operations share: the activations and their derivatives (activations.py), how programs are laid
over tiles (tiles.py; for convolutions convolution_geometry.py on the host, convolution_tiles.py in kernels), products
and sums of tiles (products.py, reductions.py), what recurrent layers have in common (recurrences.py for launches,
recurrence_tiles.py in kernels, recurrence_operators.py for operators), statistics of a stream (moments.py), sums over
programs in a fixed order (arrivals.py), which table of configurations a device reads (devices.py), how tables that a
tuner measured are laid over the shipped ones (tables.py), what a kernel refuses (arguments.py), where results go
(results.py) and how launches are counted (launches.py). Kernels take float32, bfloat16 and float16, accumulate in
float32, and repeat bit for bit.

Without a GPU they run under Triton's interpreter: set TRITON_INTERPRET=1 before Triton is imported.
"""

from __future__ import annotations

from pccompile.kernels.activations import ACTIVATIONS, Activation
from pccompile.kernels.batch_norm import (
    BatchNormPrediction,
    batch_norm_error,
    batch_norm_error_into,
    batch_norm_predict,
)
from pccompile.kernels.conv_error import conv_error, conv_error_into
from pccompile.kernels.conv_predict import ConvPrediction, conv_predict
from pccompile.kernels.conv_step import ConvStep, conv_step
from pccompile.kernels.convolution_geometry import Pool
from pccompile.kernels.cross_entropy import LossPrediction, cross_entropy_error, cross_entropy_predict
from pccompile.kernels.embedding_error import embedding_error, embedding_error_into
from pccompile.kernels.gru import GRUErrorSweep, GRUPrediction, gru_error, gru_predict
from pccompile.kernels.launches import counting_launches
from pccompile.kernels.linear_error import ErrorSweep, linear_error, linear_error_into
from pccompile.kernels.linear_predict import Prediction, linear_predict
from pccompile.kernels.linear_step import LayerStep, linear_step, linear_step_into
from pccompile.kernels.lstm import LSTMErrorSweep, LSTMPrediction, lstm_error, lstm_predict
from pccompile.kernels.network_sweep import NetworkLayer, NetworkSweep, network_gradients, network_sweep
from pccompile.kernels.pointwise import Pointwise, pointwise
from pccompile.kernels.rnn import RNNErrorSweep, RNNPrediction, rnn_error, rnn_predict
from pccompile.kernels.row_norm import (
    NormErrorSweep,
    NormPrediction,
    layer_norm_predict,
    rms_norm_predict,
    row_norm_error,
    row_norm_error_into,
)
from pccompile.kernels.strict_sweep import StrictSweep, chain_gradients, strict_sweep

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "BatchNormPrediction",
    "ConvPrediction",
    "ConvStep",
    "ErrorSweep",
    "GRUErrorSweep",
    "GRUPrediction",
    "LSTMErrorSweep",
    "LSTMPrediction",
    "LayerStep",
    "LossPrediction",
    "NetworkLayer",
    "NetworkSweep",
    "NormErrorSweep",
    "NormPrediction",
    "Pointwise",
    "Pool",
    "Prediction",
    "RNNErrorSweep",
    "RNNPrediction",
    "StrictSweep",
    "batch_norm_error",
    "batch_norm_error_into",
    "batch_norm_predict",
    "chain_gradients",
    "conv_error",
    "conv_error_into",
    "conv_predict",
    "conv_step",
    "counting_launches",
    "cross_entropy_error",
    "cross_entropy_predict",
    "embedding_error",
    "embedding_error_into",
    "gru_error",
    "gru_predict",
    "layer_norm_predict",
    "linear_error",
    "linear_error_into",
    "linear_predict",
    "linear_step",
    "linear_step_into",
    "lstm_error",
    "lstm_predict",
    "network_gradients",
    "network_sweep",
    "pointwise",
    "rms_norm_predict",
    "rnn_error",
    "rnn_predict",
    "row_norm_error",
    "row_norm_error_into",
    "strict_sweep",
]
