"""The launches of network_sweep: one for a sweep, one for all gradients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
from torch import Tensor

from pccompile.kernels.activations import ACTIVATIONS
from pccompile.kernels.arrivals import arrival_counters, release_lanes
from pccompile.kernels.conv_error.configurations import splits_for
from pccompile.kernels.devices import (
    Architecture,
    architecture_of,
    interpreted,
    launch_options,
    precision_of,
)
from pccompile.kernels.launches import count_launch
from pccompile.kernels.network_sweep.configurations import (
    CONFIGURATIONS,
    GRADIENTS,
    Configuration,
    samples_for,
)
from pccompile.kernels.network_sweep.gradients import network_gradients_kernel
from pccompile.kernels.network_sweep.kernel import network_sweep_kernel
from pccompile.kernels.network_sweep.layout import LayerKind, Layout, NetworkLayer, known_layout
from pccompile.kernels.network_sweep.plan import GradientPlan, LayerPlan, LayerShare, Plan
from pccompile.kernels.strict_sweep.configurations import GradientConfiguration
from pccompile.kernels.strict_sweep.launch import Buffers, Settings
from pccompile.kernels.tiles import needs_wide_offsets

__all__ = ["launch_network_gradients", "launch_network_sweep"]

_LEAST_DOT = 16  # the smallest side of a product's tile


def launch_network_sweep(
    x: Tensor,
    target: Tensor,
    layers: Sequence[NetworkLayer],
    settings: Settings,
    convolution_precision: str,
    buffers: Buffers,
    samples: int | None = None,
    configuration: Configuration | None = None,
) -> None:
    """Run a whole sweep into buffers that the caller owns. Arguments are not checked; the operator does.

    Args:
        x: (batch, channels, height, width), or (batch, in).
        target: (batch,) int64 for cross-entropy, (batch, outputs) for the squared error.
        layers: the network, of which something moves.
        settings: what the sweep is told.
        convolution_precision: "ieee" or "tf32", of float32 products of convolutions; settings has that of the others.
        buffers: of the layout's columns and drive columns; overwritten.
        samples: that a program owns, a power of two; None for as few as occupy the device.
        configuration: how all layers are cut up; None reads the architecture's table.

    Raises:
        UsageError: the tensors are not on a GPU, and the kernels are not interpreted.
    """
    batch, architecture = x.shape[0], architecture_of(x.device)
    if batch == 0:
        return
    kinds = tuple(layer.kind for layer in layers)
    layout = known_layout(tuple(x.shape[1:]), kinds, settings.free_output)
    table = CONFIGURATIONS[architecture]
    precisions = _precisions(kinds, settings.input_precision, convolution_precision)
    chosen = tuple(configuration or table[precision_of(x.dtype, precision)] for precision in precisions)
    block_batch = samples or samples_for(architecture, batch)
    biases = tuple(layer.weight if layer.bias is None else layer.bias for layer in layers)
    weights = tuple(layer.weight for layer in layers)
    plan = Plan(
        layers=_layer_plans(kinds, layout, x.stride(), block_batch, precisions, chosen),
        columns=layout.columns,
        drive_columns=layout.drive_columns,
        classes=layout.places[-1].width,
        loss=settings.loss,
        averaged=settings.averaged,
        free_output=settings.free_output,
        momentum=settings.momentum != 0,
        held=settings.learn_errors == "previous",
        record=settings.record,
        wide=needs_wide_offsets(x, target, *weights, *biases, *buffers),
        upcast=interpreted() and x.dtype is not torch.float32,
        block_batch=block_batch,
        block_out=chosen[0].block_columns,
    )
    warps, stages = max(each.warps for each in chosen), max(each.stages for each in chosen)
    count_launch("network_sweep")
    with torch.cuda.device_of(x):
        network_sweep_kernel[(triton.cdiv(batch, block_batch),)](
            x,
            target,
            weights,
            biases,
            *buffers,
            batch,
            settings.steps,
            *(target.stride() if target.dim() == 2 else (target.stride(0), 0)),
            float(settings.step_size),
            float(settings.momentum),
            float(settings.loss_factor),
            float(settings.negative_slope),
            settings.ignore_index,
            PLAN=plan,
            **launch_options(architecture, warps, stages),
        )


def launch_network_gradients(
    x: Tensor,
    values: Tensor,
    drives: Tensor,
    layers: Sequence[NetworkLayer],
    gradients: Tensor,
    factor: float,
    upstream: Tensor | None,
    input_precision: str,
    convolution_precision: str,
    configuration: GradientConfiguration | None = None,
) -> None:
    """Write factor times every dW and db, in one launch. Arguments are not checked; the operator does.

    Args:
        x: as of the sweep.
        values, drives: from it.
        layers: the network.
        gradients: as many elements as the layout says, overwritten.
        factor: of the gradients.
        upstream: a further factor on the device, (), float32, or None.
        input_precision, convolution_precision: "ieee" or "tf32", of float32 products.
        configuration: how the launch is cut up; None reads the architecture's table.

    Raises:
        UsageError: the tensors are not on a GPU, and the kernels are not interpreted.
    """
    architecture, sample = architecture_of(x.device), tuple(x.shape[1:])
    kinds = tuple(layer.kind for layer in layers)
    layout = known_layout(sample, kinds)
    if values.shape[1] != layout.columns:
        layout = known_layout(sample, kinds, free_output=True)
    precisions = _precisions(kinds, input_precision, convolution_precision)
    arithmetic = precision_of(x.dtype, "ieee" if "ieee" in precisions else "tf32")
    chosen = configuration or GRADIENTS[architecture][arithmetic]
    cut = (CONFIGURATIONS[architecture][arithmetic],) * len(layers)
    shares = _shares(kinds, layout, x.shape[0], chosen, architecture)
    programs = sum(share.tiles * share.splits for share in shares)
    slots = sum(share.tiles * share.splits for share in shares if share.splits > 1)
    partial = torch.empty(slots * chosen.block_out * (chosen.block_in + 1), dtype=torch.float32, device=x.device)
    count_launch("network_gradients")
    with torch.cuda.device_of(x):
        network_gradients_kernel[(programs,)](
            x,
            values,
            drives,
            gradients,
            partial,
            arrival_counters(x.device, shares[-1].arrived + shares[-1].tiles),
            drives if upstream is None else upstream,
            x.shape[0],
            float(factor),
            PLAN=GradientPlan(
                layers=_layer_plans(kinds, layout, x.stride(), 1, precisions, cut),
                shares=shares,
                upstream=upstream is not None,
                release_lanes=release_lanes(architecture, chosen.warps),
                wide=needs_wide_offsets(x, values, drives),
                upcast=interpreted() and x.dtype is not torch.float32,
                block_out=chosen.block_out,
                block_in=chosen.block_in,
                block_rows=chosen.block_rows,
            ),
            **launch_options(architecture, chosen.warps, chosen.stages),
        )


def _precisions(kinds: Sequence[LayerKind], linear: str, convolution: str) -> tuple[str, ...]:
    """How float32 products of each layer are formed."""
    return tuple(linear if kind.linear else convolution for kind in kinds)


@lru_cache(maxsize=256)
def _layer_plans(
    kinds: tuple[LayerKind, ...],
    layout: Layout,
    x_strides: tuple[int, ...],
    block_batch: int,
    precisions: tuple[str, ...],
    chosen: tuple[Configuration, ...],
) -> tuple[LayerPlan, ...]:
    plans: list[LayerPlan] = []
    sources = [0, *(place.own for place in layout.places)]
    for kind, place, source, precision, cut in zip(kinds, layout.places, sources, precisions, chosen, strict=False):
        geometry, sizes = kind.geometry, place.sizes
        _, channels, height, width, out = sizes[:5]
        stride = geometry.stride
        blocks = triton.cdiv(height, stride[0]) * triton.cdiv(width, stride[1])
        block_in, parent_out = cut.block_sum, cut.block_sum
        plans.append(
            LayerPlan(
                activation=kind.activation,
                slope_from_output=ACTIVATIONS[kind.activation].residual == "output",
                geometry=geometry.constants,
                pooling=geometry.pooling,
                padded_window=geometry.padded_window,
                sizes=sizes,
                has_bias=kind.bias_strides is not None,
                weight_strides=kind.weight_strides,
                bias_strides=kind.bias_strides or (0,),
                own=place.own,
                own_strides=_strides(layout.columns, place.image),
                own_drives=place.drives,
                drive_strides=_strides(layout.drive_columns, place.convolved),
                source=source,
                source_strides=_strides(layout.columns, (channels, height, width)) if plans else (*x_strides, 0, 0)[:4],
                input_precision=precision,
                flatten=channels < block_in,
                flatten_parent=out < parent_out,
                block_rows=max(
                    _block(block_batch * sizes[7] * sizes[8] * geometry.padded_window, cut.block_rows),
                    geometry.padded_window,
                ),
                block_out=_block(out, cut.block_columns),
                block_in=block_in,
                parent_rows=_block(block_batch * blocks, cut.block_rows),
                parent_in=_block(channels, cut.block_columns),
                parent_out=parent_out,
            )
        )
    return tuple(plans)


def _block(size: int, most: int) -> int:
    """A tile's side, no larger than what it covers needs."""
    side: int = max(min(triton.next_power_of_2(size), most), _LEAST_DOT)
    return side


def _strides(row: int, image: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Of images that lie flattened in rows."""
    _, height, width = image
    return row, height * width, width, 1


@lru_cache(maxsize=256)
def _shares(
    kinds: tuple[LayerKind, ...],
    layout: Layout,
    batch: int,
    chosen: GradientConfiguration,
    architecture: Architecture,
) -> tuple[LayerShare, ...]:
    """Programs are shared out so that each layer's positions are summed by as many as fill the device."""
    slot = chosen.block_out * (chosen.block_in + 1)
    partial, arrived, shares = 0, 0, []
    for kind, place in zip(kinds, layout.places, strict=True):
        geometry, (_, channels, *_) = kind.geometry, place.sizes
        in_tiles = max(triton.cdiv(geometry.taps * channels, chosen.block_in), 1)
        tiles = triton.cdiv(place.sizes[4], chosen.block_out) * in_tiles
        rows = triton.cdiv(batch * place.sizes[5] * place.sizes[6], chosen.block_rows)
        splits = splits_for(architecture, tiles, rows)
        shares.append(
            LayerShare(
                tiles,
                in_tiles,
                splits,
                partial,
                arrived,
                place.weight_gradient,
                place.bias_gradient,
                (channels * geometry.taps, geometry.taps, geometry.kernel[1], 1),
            )
        )
        partial += tiles * splits * slot if splits > 1 else 0
        arrived += tiles
    return tuple(shares)
