"""Networks of convolutions and linear layers on the meta device."""

from __future__ import annotations

from recorded import Case
from torch import Tensor

from pccompile.kernels.network_sweep.layout import NetworkLayer

_TWICE = (2, 2, 2, 2)
_STRIDED = ((2, 2), (1, 1), (1, 1), 1)


def meta_network(case: Case, batch: int, which: str) -> tuple[Tensor, list[NetworkLayer]]:
    """The input and the layers: "pooled", the CNN of `pccompile demo` on MNIST; "strided", convolutions of stride 2;
    "average", eight layers with a pooled one between convolutions."""
    activation, image = case.activation or "gelu", (1, 28, 28)
    if which == "pooled":
        layers = [
            _layer(case, activation, 10, 1, 3, 3, pool="max", window=_TWICE),
            _layer(case, activation, 5, 10, 3, 3),
            _layer(case, activation, 50, 605),
            _layer(case, activation, 30, 50),
            _layer(case, "identity", 10, 30),
        ]
    elif which == "strided":
        layers = [
            _layer(case, activation, 16, 1, 3, 3, form=_STRIDED),
            _layer(case, activation, 32, 16, 3, 3, form=_STRIDED),
            _layer(case, "identity", 10, 1568),
        ]
    else:
        layers = [
            _layer(case, activation, 8, 1, 5, 5),
            _layer(case, activation, 64, 8, 3, 3, pool="average", window=_TWICE),
            *(_layer(case, activation, 64, 64, 3, 3) for _ in range(3)),
            _layer(case, activation, 128, 1600),
            _layer(case, activation, 64, 128),
            _layer(case, "identity", 16, 64),
        ]
    return case.empty(batch, *image), layers


def _layer(case: Case, activation: str, *shape: int, **options: object) -> NetworkLayer:
    return NetworkLayer(case.empty(*shape), case.empty(shape[0]), activation, **options)  # type: ignore[arg-type]
