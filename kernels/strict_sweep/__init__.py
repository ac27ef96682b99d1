"""Strict inference of a chain of linear layers: all T steps in one launch.

Mathematics, for layers l = 1..L, x = v_0 clamped, eta the step size, C the loss and c its factor:

    start      v_l = act_l(v_{l-1} W_l^T + b_l), e_l = 0
    predict    z_l = v_{l-1} W_l^T + b_l;  e_l = v_l - act_l(z_l);  d_l = e_l * act_l'(z_l)           l = 2..L-1
               z_L likewise;  e_L = -c dC/dmu_L;  d_L = e_L * act_L'(z_L)
    infer      g_l = d_{l+1} W_{l+1} - e_l;  m_l <- momentum m_l + g_l;  v_l <- v_l + eta m_l         l = 1..L-1
    learn      dW_l = k d_l^T v_{l-1},  db_l = k sum(d_l)                                             l = 1..L

in this order T times, then predict once more and learn. All predictions of a step read the same values, and all moves
the same errors (Jacobi). An output with a free value is a hidden layer like any other, with e = -c dC/dv from above.
learn_errors="previous" learns with the errors before the last move, and act' and v after it.

What is spared, without changing a bit of the result: the first prediction is constant, so that W_1 is read once and e_1
moves with v_1; the error that backpropagates the input is not computed; and at step t < L nothing is done in the layers
that the wavefront from the loss has not reached.

Forms of launch, which run the same functions on the same tiles and sum in the same order:

    batch_tiles   one launch for the whole sweep. A program owns a tile of the batch, and samples never meet: between
                  half-steps a barrier of its own threads is enough. Programs: tiles of the batch.
    cooperative   one launch for the whole sweep, on a grid that is resident as a whole. All programs share the tiles of
                  units of all layers, with a barrier of the grid after each half-step: an atomic counter of arrivals,
                  released and acquired. For small batches. Runs on a GPU only, as the interpreter would wait for ever.
    half_steps    L launches for the feed-forward pass, 3 for each step whatever L is (predict, loss, infer). The
                  baseline, and what tests of the other two and CUDA graphs use.

The gradients of all layers are one more launch (chain_gradients), as they sum over the batch: two launches a training
step. Nothing is added by atomics; results repeat bit for bit.

What is read: in a step, each program of batch_tiles streams each weight but the first twice, once to predict and once
to infer. One pass cannot do for both: d needs whole rows of z, so that a tile of W would have to wait for the rest of
its rows (linear_step has a layer whose rows fit into a program do so, but a program here keeps no layer). What can be
had is that the second time finds the weight in the cache. With all weights in L2 they come from memory once a launch.
Where they do not fit, batch_tiles goes layer by layer from the top down: predict l, then move it by d_{l+1} W_{l+1}.
So a weight is read for the second time when two others have been read since: from memory once a step, if three fit.
Simultaneous updates allow it, as no prediction of the step is left that reads v_l, and the sums are the same ones. A
cooperative grid would wait for all its programs once a layer instead of three times a step, and half_steps launch as
often; they predict from the bottom up and move from the top down, so that what the cache holds is met first: of all
weights, two times what does not fit comes from memory in a step.

The bytes from L2 in a step are programs * 2 s * sum of out * in, for s bytes an element, and about 40 per unit and
sample: values, errors and drives are float32, since steps of a small eta would be lost in half precision.

Compiled once for a set of activations, a loss, a dtype and the options that are constants of plan.Plan; depth, widths,
batch, T, eta, momentum and factors are run-time numbers. Layers lie side by side in buffers, at offsets that a table
gives with the addresses of the weights; the table stays on the device as long as the weights stay where they are.

Not covered: a tolerance that stops early (it is the batch's), Adam on the values, weighted or smoothed cross-entropy.

    reference.py       the same in plain torch
    layout.py          where layers lie, and the table
    plan.py            what is compiled in
    half_steps.py      predict and infer, as device functions; loss.py the loss and the energies
    kernel.py          strict_sweep_kernel, in one launch, and half_step_kernel
    gradients.py       the kernel of the gradients
    launch.py          the launches; choice.py which of them
    operator.py        the operators pccompile::strict_sweep and ::chain_gradients; arguments.py what they refuse
    configurations.py  tiles, warps and stages per architecture
"""

from __future__ import annotations

from pccompile.kernels.strict_sweep.operator import StrictSweep, chain_gradients, strict_sweep

__all__ = ["StrictSweep", "chain_gradients", "strict_sweep"]
