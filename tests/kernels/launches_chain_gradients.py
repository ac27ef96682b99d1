"""Launches of a strict sweep's gradients to compile."""

from __future__ import annotations

from functools import partial

import torch
from meta_chains import meta_chain
from recorded import Case, Launch

from pccompile.kernels.strict_sweep.launch import launch_chain_gradients
from pccompile.kernels.strict_sweep.layout import Layout


def _launch(case: Case, batch: int) -> None:
    x, chain = meta_chain(case, batch)
    layout = Layout.of([weight.shape for weight in chain.weights])
    values = case.empty(batch, layout.columns, dtype=torch.float32)
    gradients, upstream = case.empty(layout.gradients), case.empty(dtype=torch.float32)
    launch_chain_gradients(x, values, values, chain, gradients, 1.0, upstream, case.input_precision)


LAUNCHES = {
    "only": Launch(partial(_launch, batch=8192), products=1),
    "wide": Launch(partial(_launch, batch=2**22), products=1, precisions=("half",), architectures=("sm_90",)),
}
