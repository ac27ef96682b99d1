"""A layer of a GRU over time: the recurrence, and its error, each with all time steps in one launch.

Mathematics, in torch's order of the gates, for x (steps, batch, inputs) and states h (batch, units):

    y_t = x_t W^T + b                     q_t = h_(t-1) U^T + c               (batch, 3 units) each
    r, z = sigmoid(y_r + q_r), sigmoid(y_z + q_z)         n = tanh(y_n + r q_n)
    h_t = n + z (h_(t-1) - n)

    dh  = e_t + dh_(t+1) z_(t+1) + s_(t+1) U              e_t: the error at the output
    dn  = dh (1 - z) (1 - n^2)
    d_t = [dn q_n r (1 - r), dh (h_(t-1) - n) z (1 - z), dn]
    s_t = [the same, the same, dn r]
    parent error = d W        dW = gain sum d_t^T x_t         db = gain sum d_t
                              dU = gain sum s_t^T h_(t-1)     dc = gain sum s_t

Kept are r, z, n and q_n, and the hidden states, in the inputs' dtype.

Launches: the prediction two, x W^T + b for all steps (linear_predict) and the recurrence; the error three, the
recurrence, then the parent's error with dW and db, and dU with dc, each for all steps at once (linear_error). Which
program does what, and so that results repeat bit for bit, is as for the LSTM (`kernels/lstm`).

Bytes, with s bytes an element: U is read once a step for every 16 samples, from L2 where it fits; the prediction reads
3 s * units and writes 5 s * units a sample and step, the error reads 6 s * units and writes 6 s * units.

    reference.py  the recurrences in plain torch
    kernel.py     the Triton kernels and their launches
    operator.py   gru_predict (differentiable) and gru_error; pccompile::gru_recurrence and ..._error;
                  ..._learned_error, whose gradients have a gain for each time step and gate

What recurrent layers share: `kernels/recurrences.py` for launches, with tiles, warps and stages per architecture,
`kernels/recurrence_tiles.py` in kernels, `kernels/recurrence_operators.py` for operators.
"""

from __future__ import annotations

from pccompile.kernels.gru.operator import GRUErrorSweep, GRUPrediction, gru_error, gru_predict

__all__ = ["GRUErrorSweep", "GRUPrediction", "gru_error", "gru_predict"]
