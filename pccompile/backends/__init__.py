"""What executes a lowered program.

eager    local derivatives from the autograd engine, one vertex at a time: every operator PyTorch differentiates
aten     flat graphs of ATen operators with explicit derivatives
inductor those graphs compiled by torch's Inductor
triton   those graphs with this package's kernels in the places of the nodes that they compute
auto     the fastest of these, measured once
literal  the reference evaluator, for `optimize=False`
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from pccompile.backends.aten import AtenBackend
from pccompile.backends.auto import AutoBackend
from pccompile.backends.eager import EagerBackend
from pccompile.backends.inductor import with_inductor
from pccompile.backends.kernels import TritonBackend
from pccompile.backends.literal import LiteralBackend
from pccompile.backends.report import BackendReport

__all__ = ["BACKENDS", "AtenBackend", "BackendReport", "EagerBackend", "LiteralBackend"]

BACKENDS: dict[str, Callable[..., Any]] = {
    "eager": EagerBackend,
    "aten": AtenBackend,
    "inductor": partial(AtenBackend, compile_graph=with_inductor, reorders=True),
    "triton": TritonBackend,
    "auto": AutoBackend,
}
