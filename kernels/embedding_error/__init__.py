"""The gradient of an embedding table, in one launch after a sort.

Mathematics, for errors e (uses, columns) at the rows i (uses,) of a table (rows, columns):

    dE[r] += gain * sum over u with i[u] = r of e[u]          nothing at padding_idx

The prediction is a gather, one launch as it is (torch.nn.functional.embedding).

Launches: one, and those of torch.sort, which brings equal indices together and keeps the order of their uses. There is
a program for every use; the one at a row's first use sums that row's errors in that order, and the others return. No
atomics: results repeat bit for bit. Where the gradient does not exist yet, it is filled with zeros first.

Bytes, with s bytes an element: reads s * uses * columns, and reads and writes s * columns for every row that is used.

    reference.py       the same in plain torch
    kernel.py          the Triton kernel and its launch
    operator.py        embedding_error and embedding_error_into, the operators pccompile::embedding_error and ..._into
    configurations.py  tiles and warps
"""

from __future__ import annotations

from pccompile.kernels.embedding_error.operator import embedding_error, embedding_error_into

__all__ = ["embedding_error", "embedding_error_into"]
