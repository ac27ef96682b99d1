"""Launches of batch_norm to compile: an image, channels last, features; and the ends of residual blocks."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from recorded import Case, Launch

from pccompile.kernels.batch_norm.error import ErrorBranch, launch_batch_norm_error
from pccompile.kernels.batch_norm.predict import Branch, launch_batch_norm_predict
from pccompile.kernels.devices import ARCHITECTURES
from pccompile.kernels.results import SweepResults


def _launch(case: Case, outer: int, channels: int, inner: int, last: bool = False) -> None:
    """A normalisation by itself, whose results are added to."""
    x = _images(case, outer, channels, inner, last)
    weight, running = case.empty(channels), case.empty(channels, dtype=torch.float32)
    launch_batch_norm_predict(_branch(case, x), x)
    results = SweepResults(x, weight, weight, accumulate_parent=True, accumulate_weight=True, accumulate_bias=True)
    launch_batch_norm_error(x, ErrorBranch(x, weight, running, running, *results))


def _block(case: Case, outer: int, channels: int, inner: int, last: bool = False, twice: bool = False) -> None:
    """The end of a residual block: with a skip that may be normalised too, an activation, an average."""
    x = _images(case, outer, channels, inner, last)
    weight, kept = case.empty(channels), case.empty(channels, dtype=torch.float32)
    other = _branch(case, x) if twice else None
    launch_batch_norm_predict(
        _branch(case, x),
        x,
        other=other,
        addend=None if twice else x,
        pooled=case.empty(outer, channels),
        activation=case.activation,
    )
    back = ErrorBranch(x, weight, kept, kept, x, weight, weight)
    after = case.empty(outer, channels, 1).expand(outer, channels, inner)
    launch_batch_norm_error(
        after,
        back,
        other=back if twice else None,
        residual=x,
        d=None if twice else x,
        error_factor=1 / inner,
        activation=case.activation,
    )


def _images(case: Case, outer: int, channels: int, inner: int, last: bool) -> torch.Tensor:
    x = case.empty(*((outer, inner, channels) if last else (outer, channels, inner)))
    return x.mT if last else x


def _branch(case: Case, x: torch.Tensor) -> Branch:
    weight, running = case.empty(x.shape[1]), case.empty(x.shape[1], dtype=torch.float32)
    batches = case.empty(dtype=torch.int64)
    statistics = (running, running)
    return Branch(x, weight, weight, *statistics, *statistics, *statistics, 0.1, 1e-5, batches, batches)


_PLAIN: dict[str, Any] = {"activation": "each"}  # of which it makes no use
_BLOCK: dict[str, Any] = {"activation": "each", "architectures": ARCHITECTURES}

LAUNCHES = {
    "image": Launch(partial(_launch, outer=256, channels=64, inner=56 * 56), **_PLAIN),
    "channels_last": Launch(partial(_launch, outer=256, channels=64, inner=56 * 56, last=True), **_PLAIN),
    "features": Launch(partial(_launch, outer=256, channels=1024, inner=1), **_PLAIN),
    "wide": Launch(partial(_launch, outer=4096, channels=256, inner=56 * 56), **_PLAIN),
    "skip": Launch(partial(_block, outer=256, channels=512, inner=7 * 7), **_BLOCK),
    "skip_last": Launch(partial(_block, outer=256, channels=512, inner=7 * 7, last=True), **_BLOCK),
    "two": Launch(partial(_block, outer=256, channels=512, inner=7 * 7, twice=True), **_BLOCK),
    "two_last": Launch(partial(_block, outer=256, channels=512, inner=7 * 7, last=True, twice=True), **_BLOCK),
    "two_wide": Launch(partial(_block, outer=65536, channels=1024, inner=7 * 7, twice=True), **_PLAIN),
}
