"""A layer of an LSTM over time: the recurrence, and its error, each with all time steps in one launch.

Mathematics, in torch's order of the gates, for x (steps, batch, inputs) and states h, c (batch, units):

    z_t = x_t W^T + b + h_(t-1) U^T                   (batch, 4 units)
    i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o)        g = tanh(z_g)
    c_t = f c_(t-1) + i g                 h_t = o tanh(c_t)

    dh  = e_t + d_(t+1) U                 e_t: the error at the output
    dc  = f_(t+1) dc_(t+1) + dh o (1 - tanh(c_t)^2)
    d_t = [dc g i (1 - i), dc c_(t-1) f (1 - f), dc i (1 - g^2), dh tanh(c_t) o (1 - o)]
    parent error = d W        dW = gain sum d_t^T x_t        dU = gain sum d_t^T h_(t-1)        db = gain sum d_t

Kept are the gates, the cells and the hidden states, in the inputs' dtype.

Launches: the prediction two, x W^T + b for all steps (linear_predict) and the recurrence; the error three, the
recurrence, then the parent's error with dW and db, and dU, each one product over all steps (linear_error). In both
recurrences a program owns a tile of the batch for all steps and streams U, so that no program waits for another:
results repeat bit for bit, and a launch has no more programs than batch / 16.

Bytes, with s bytes an element: U is read once a step for every 16 samples, from L2 where it fits; the prediction reads
4 s * units and writes 6 s * units a sample and step, the error reads 7 s * units and writes 4 s * units.

    reference.py  the recurrences in plain torch
    kernel.py     the Triton kernels and their launches
    operator.py   lstm_predict (differentiable) and lstm_error; pccompile::lstm_recurrence and ..._error;
                  ..._learned_error, whose gradients have a gain for each time step and gate

What recurrent layers share: `kernels/recurrences.py` for launches, with tiles, warps and stages per architecture,
`kernels/recurrence_tiles.py` in kernels, `kernels/recurrence_operators.py` for operators.
"""

from __future__ import annotations

from pccompile.kernels.lstm.operator import LSTMErrorSweep, LSTMPrediction, lstm_error, lstm_predict

__all__ = ["LSTMErrorSweep", "LSTMPrediction", "lstm_error", "lstm_predict"]
