"""Which networks are small enough for one launch."""

from __future__ import annotations

from collections.abc import Sequence

from pccompile.kernels.network_sweep.layout import Layout, NetworkLayer

__all__ = ["MOST_LAYERS", "SAMPLE_BYTES", "WEIGHT_BYTES", "too_large"]

# Layers are unrolled, and compiled for as long; a sample's rows should stay in a multiprocessor's first-level cache or
# its share of the second level's, and all weights in the latter. Starting values, not yet measured.
MOST_LAYERS = 8
SAMPLE_BYTES = 256 * 1024
WEIGHT_BYTES = 16 * 1024 * 1024


def too_large(layers: Sequence[NetworkLayer], layout: Layout) -> str:
    """Why a network is not swept in one launch; "" if it is.

    Args:
        layers: in feed-forward order.
        layout: theirs.
    """
    if len(layers) > MOST_LAYERS:
        return f"there are {len(layers)} layers, more than {MOST_LAYERS}"
    sample = 4 * (2 * layout.columns + layout.drive_columns)
    if sample > SAMPLE_BYTES:
        return f"a sample's values, errors and drives are {-(-sample // 1024)} KiB, more than {SAMPLE_BYTES >> 10}"
    weights = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)
    if weights > WEIGHT_BYTES:
        return f"the weights are {-(-weights // 2**20)} MiB, more than {WEIGHT_BYTES >> 20}"
    return ""
