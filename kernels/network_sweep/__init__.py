"""Strict inference of a small network, convolutions and linear layers in a row: all T steps in one launch.

Mathematics, for layers l = 1..L, x = v_0 clamped, eta the step size, C the loss and c its factor, and a layer's
f_l(v) = pool_l(act_l(z_l)), z_l = v * W_l + b_l (a convolution) or v W_l^T + b_l (of the flattened v), and no pooling
where there is none:

    start      v_l = f_l(v_{l-1}), e_l = 0
    predict    e_l = v_l - f_l(v_{l-1});  d_l = act_l'(z_l) unpool(e_l)                              l = 2..L-1
               e_L = -c dC/df_L;  d_L = e_L act_L'(z_L)
    infer      g_l = W_{l+1}^T d_{l+1} - e_l;  m_l <- momentum m_l + g_l;  v_l <- v_l + eta m_l       l = 1..L-1
    learn      dW_l = k d_l v_{l-1},  db_l = k sum(d_l)                                               l = 1..L

in this order T times, then predict once more and learn: strict_sweep's order, options and loss (whose code it shares),
with free outputs and learn_errors as there. unpool puts e at the maximum of each window, or spreads it over it.

Launches: one for the sweep, one for all gradients. A program owns a few samples from the feed-forward pass to the last
step; samples never meet, so between half-steps a barrier of its own threads is enough. Values, errors and drives lie in
buffers of float32, a sample's row next to itself, which is to stay in the first- and second-level caches; weights are
streamed. Drives are stored at every position of the convolution, so that what goes back through a layer, and its
gradients, are plain convolutions. What is spared is as in strict_sweep: the first layer is predicted at the start and
once at the end, its error moves with its value, and nothing is done where the loss has not reached.

The layers are unrolled into one kernel with sizes, strides and tiles as constants: compiled once for a network, which
takes seconds; batch, T, eta, momentum and factors are run-time numbers. Hence for networks of a few layers.

Bytes: of the launch from and to memory once x, the weights, and the three buffers, 4 (2 V + D) a sample, for V values
and D positions before pooling; in a step, through the caches, for each program all weights but the first twice, and the
values and drives of a layer for each of its taps and tiles of columns.

Where not: large images (a sample's rows should stay in a multiprocessor's cache), batches below the number of
multiprocessors (the rest idle), groups, poolings that overlap or are padded, Adam on the values, a tolerance.

    reference.py       the same in plain torch, through the autograd engine
    layout.py          what a layer is, and where it lies
    plan.py            what is compiled in
    half_steps.py      predict and infer, as device functions; loss.py the loss and the energies
    kernel.py          network_sweep_kernel
    gradients.py       the kernel of the gradients: conv_error's tiles, of all layers
    launch.py          the launches; choice.py which networks are small enough
    operator.py        the operators pccompile::network_sweep and ::network_gradients; arguments.py what they refuse
    configurations.py  tiles, warps and stages per architecture
"""

from __future__ import annotations

from pccompile.kernels.network_sweep.layout import NetworkLayer
from pccompile.kernels.network_sweep.operator import NetworkSweep, network_gradients, network_sweep

__all__ = ["NetworkLayer", "NetworkSweep", "network_gradients", "network_sweep"]
