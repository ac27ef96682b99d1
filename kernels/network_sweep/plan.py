"""What a network sweep is compiled for: the whole network's geometry, and how each layer is cut up."""

from __future__ import annotations

from dataclasses import dataclass

from pccompile.kernels.strict_sweep.plan import Loss

__all__ = ["GradientPlan", "LayerPlan", "LayerShare", "Plan"]


@dataclass(frozen=True)
class LayerPlan:
    """One layer's constants; a linear layer is a convolution of images of one pixel.

    Attributes:
        activation: a key of pccompile.kernels.ACTIVATIONS.
        slope_from_output: its derivative is read from act(z) rather than from z.
        geometry, pooling, padded_window: GEOMETRY, POOLING and PADDED_WINDOW of convolution_tiles.
        sizes: the tiles' sizes, but for the batch, which is 0.
        has_bias: there is one.
        weight_strides, bias_strides: the parameters'.
        own: first column of its values and errors.
        own_strides: of these as images.
        own_drives: first column of its drives.
        drive_strides: of these as images, a position each for those of the convolution.
        source: first column of what it reads; the first layer reads the input instead.
        source_strides: of what it reads as images; of the input, where it is the first.
        input_precision: "ieee" or "tf32", of float32 products.
        flatten: channels of several taps are summed side by side, going forward.
        flatten_parent: outputs are, going back.
        block_rows: positions predicted at a time.
        block_out: outputs predicted at a time.
        block_in: channels (and taps) summed per iteration, going forward.
        parent_rows: positions of what it reads that are moved at a time.
        parent_in: channels that are.
        parent_out: outputs (and taps) summed per iteration, going back.
    """

    activation: str
    slope_from_output: bool
    geometry: tuple[int, ...]
    pooling: tuple[str, int, int, int, int]
    padded_window: int
    sizes: tuple[int, ...]
    has_bias: bool
    weight_strides: tuple[int, ...]
    bias_strides: tuple[int, ...]
    own: int
    own_strides: tuple[int, ...]
    own_drives: int
    drive_strides: tuple[int, ...]
    source: int
    source_strides: tuple[int, ...]
    input_precision: str
    flatten: bool
    flatten_parent: bool
    block_rows: int
    block_out: int
    block_in: int
    parent_rows: int
    parent_in: int
    parent_out: int


@dataclass(frozen=True)
class Plan:
    """The constants of one compiled sweep. Batch, steps, step size, momentum and the loss's factor are none of them.

    Attributes:
        layers: in feed-forward order.
        columns: of values and errors.
        drive_columns: of drives.
        classes: columns of the output's values.
        loss, averaged, free_output, momentum, held, record, wide, upcast: as of strict_sweep's Plan.
        block_batch: samples that a program owns.
        block_out: columns of the loss, and of sums of errors, at a time.
    """

    layers: tuple[LayerPlan, ...]
    columns: int
    drive_columns: int
    classes: int
    loss: Loss
    averaged: bool
    free_output: bool
    momentum: bool
    held: bool
    record: bool
    wide: bool
    upcast: bool
    block_batch: int
    block_out: int

    @property
    def depth(self) -> int:
        """Layers."""
        return len(self.layers)


@dataclass(frozen=True)
class LayerShare:
    """How one layer's gradients are shared among programs.

    Attributes:
        tiles: of dW.
        in_tiles: tiles of dW along its second dimension.
        splits: programs that share the sum of a tile.
        partial: its first element in the workspace of partial sums.
        arrived: its first counter of arrivals.
        weight_gradient, bias_gradient: its first elements in the buffer of all gradients.
        weight_gradient_strides: of dW.
    """

    tiles: int
    in_tiles: int
    splits: int
    partial: int
    arrived: int
    weight_gradient: int
    bias_gradient: int
    weight_gradient_strides: tuple[int, ...]


@dataclass(frozen=True)
class GradientPlan:
    """The constants of the kernel of the gradients.

    Attributes:
        layers: in feed-forward order.
        shares: likewise.
        upstream: there is a further factor on the device.
        release_lanes: of arrivals.arrives_last.
        wide, upcast: as for Plan.
        block_out, block_in: the tile of dW that a program owns.
        block_rows: positions summed per iteration.
    """

    layers: tuple[LayerPlan, ...]
    shares: tuple[LayerShare, ...]
    upstream: bool
    release_lanes: int
    wide: bool
    upcast: bool
    block_out: int
    block_in: int
    block_rows: int

    @property
    def depth(self) -> int:
        """Layers."""
        return len(self.layers)
