"""A layer of torch.nn.RNN over time: the recurrence, and its error, each with all time steps in one launch.

Mathematics, for x (steps, batch, inputs) and states h (batch, units), with act = tanh or relu:

    h_t = act(x_t W^T + b + h_(t-1) U^T)

    d_t = (e_t + d_(t+1) U) act'(z_t)                 e_t: the error at the output; act' is read from h_t
    parent error = d W        dW = gain sum d_t^T x_t        dU = gain sum d_t^T h_(t-1)        db = gain sum d_t

Kept are the hidden states, in the inputs' dtype.

Launches: the prediction two, x W^T + b for all steps (linear_predict) and the recurrence; the error three, the
recurrence, then the parent's error with dW and db, and dU, each for all steps at once (linear_error). Which program
does what, and so that results repeat bit for bit, is as for the LSTM (`kernels/lstm`).

Bytes, with s bytes an element: U is read once a step for every 16 samples, from L2 where it fits; the prediction reads
2 s * units and writes s * units a sample and step, the error reads 2 s * units and writes s * units.

    reference.py  the recurrences in plain torch
    kernel.py     the Triton kernels and their launches
    operator.py   rnn_predict (differentiable) and rnn_error; pccompile::rnn_recurrence and ..._error;
                  ..._learned_error, whose gradients have a gain for each time step and gate

What recurrent layers share: `kernels/recurrences.py` for launches, with tiles, warps and stages per architecture,
`kernels/recurrence_tiles.py` in kernels, `kernels/recurrence_operators.py` for operators.
"""

from __future__ import annotations

from pccompile.kernels.rnn.operator import RNNErrorSweep, RNNPrediction, rnn_error, rnn_predict

__all__ = ["RNNErrorSweep", "RNNPrediction", "rnn_error", "rnn_predict"]
