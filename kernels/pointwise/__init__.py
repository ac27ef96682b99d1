"""Any run of pointwise operators as one generated kernel.

A torch.fx graph of pointwise ATen operators (arithmetic, activations and their backward operators, comparisons,
`where`, casts) becomes the source of a Triton kernel: every operator one line, from a table. Inputs are broadcast
against one another by strides of zero, numbers are arguments; what the graph returns, any number of results, may be
summed over dimensions, as errors are over those along which a parent was broadcast. Values stay float32 from the first
load to the last store, and are rounded between only where the graph casts: more exact than eager mode, which rounds
after every operator.

Launches: one. A program owns a tile of elements. Where there are sums, it owns a share of those of a few results; the
last share of a result to arrive adds up the partial sums in the order of the shares: results repeat bit for bit.

Bytes: every input that is not broadcast is read once, every output written once. Unfused, every operator reads and
writes as much.

    expressions.py     the table: ATen operator -> Triton expression
    functions.py       elementwise functions that Triton has not
    space.py           dimensions merged, ordered, and divided into kept and summed ones
    source.py          the source of a kernel
    plan.py            dtypes, shapes and sums of a graph for inputs of a kind, and its compiled kernel
    kernel.py          the launch
    operator.py        pointwise(graph), and the operator pccompile::pointwise
    reference.py       the same in plain torch
    configurations.py  tiles and warps
"""

from __future__ import annotations

from pccompile.kernels.pointwise.operator import Pointwise, pointwise, supports

__all__ = ["Pointwise", "pointwise", "supports"]
