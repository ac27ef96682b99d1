"""What a network of layers is, and how it lies in memory: layers side by side in buffers of float32."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import prod

from torch import Tensor

from pccompile.kernels.convolution_geometry import Form, Geometry
from pccompile.kernels.strict_sweep.layout import ALIGNMENT

__all__ = [
    "PLAIN",
    "LayerKind",
    "Layout",
    "NetworkLayer",
    "Place",
    "gradients_by_layer",
    "known_layout",
    "layout_of",
]

PLAIN: Form = ((1, 1), (0, 0), (1, 1), 1)


@dataclass(frozen=True)
class LayerKind:
    """A layer without its numbers: what it is compiled for, and what its place depends on.

    Attributes:
        weight_shape: (out, channels, kernel height, kernel width), or (out, in) of a linear layer.
        weight_strides: (out, channel, row, column), 0 for those that there are not.
        bias_strides: (out,), or None where there is no bias.
        activation, form, pool, window: as of NetworkLayer.
    """

    weight_shape: tuple[int, ...]
    weight_strides: tuple[int, ...]
    bias_strides: tuple[int, ...] | None
    activation: str
    form: Form
    pool: str
    window: tuple[int, int, int, int]

    @property
    def linear(self) -> bool:
        """Whether it is no convolution."""
        return len(self.weight_shape) == 2

    @property
    def geometry(self) -> Geometry:
        """A linear layer's is that of one pixel."""
        kernel = (1, 1) if self.linear else (self.weight_shape[2], self.weight_shape[3])
        return Geometry(kernel, *self.form, self.pool, self.window[:2], self.window[2:])


@dataclass(frozen=True)
class NetworkLayer:
    """A layer, linear or a convolution, that pool(act(x * W + b)) or act(x W^T + b) predicts.

    Attributes:
        weight: (out, channels, kernel height, kernel width), or (out, in) of a linear layer, which reads images
            flattened.
        bias: (out,), or None.
        activation: a key of pccompile.kernels.ACTIVATIONS.
        form: a convolution's stride, padding, dilation and groups, which are 1.
        pool: "none", "max" or "average": of what a convolution's activation gives.
        window: height and width of the pooling's window, then of its stride.
    """

    weight: Tensor
    bias: Tensor | None = None
    activation: str = "identity"
    form: Form = PLAIN
    pool: str = "none"
    window: tuple[int, int, int, int] = (1, 1, 1, 1)

    @property
    def linear(self) -> bool:
        """Whether it is no convolution."""
        linear: bool = self.weight.dim() == 2
        return linear

    @property
    def kind(self) -> LayerKind:
        """All of it but the numbers."""
        return LayerKind(
            tuple(self.weight.shape),
            (*self.weight.stride(), 0, 0)[:4],
            None if self.bias is None else self.bias.stride(),
            self.activation,
            self.form,
            self.pool,
            self.window,
        )


@dataclass(frozen=True)
class Place:
    """Where one layer lies.

    Attributes:
        sizes: the tiles' sizes (convolution_tiles), with 0 for the batch.
        own: first column of its values and errors.
        drives: first column of its drives: a position each for those of the convolution, whether pooled or not.
        weight_gradient, bias_gradient: its first elements in the buffer of all gradients.
    """

    sizes: tuple[int, ...]
    own: int
    drives: int
    weight_gradient: int
    bias_gradient: int

    @property
    def image(self) -> tuple[int, int, int]:
        """(out, height, width) of its values."""
        return self.sizes[4], self.sizes[7], self.sizes[8]

    @property
    def convolved(self) -> tuple[int, int, int]:
        """(out, height, width) of its drives."""
        return self.sizes[4], self.sizes[5], self.sizes[6]

    @property
    def width(self) -> int:
        """Columns of its values."""
        return prod(self.image)


@dataclass(frozen=True)
class Layout:
    """Where the layers lie.

    Attributes:
        places: of each layer.
        columns: of the buffers of values and errors; behind a free output lie the loss's errors.
        drive_columns: of that of drives.
        gradients: elements of the buffer of all gradients.
    """

    places: tuple[Place, ...]
    columns: int
    drive_columns: int
    gradients: int


def layout_of(sample: Sequence[int], layers: Sequence[NetworkLayer], free_output: bool = False) -> Layout:
    """The layout of a network.

    Args:
        sample: shape of one input: (channels, height, width), or (in,).
        layers: in feed-forward order; they fit one another.
        free_output: the last layer has a free value.
    """
    return _layout(tuple(sample), tuple(layer.kind for layer in layers), free_output)


@lru_cache(maxsize=256)
def known_layout(sample: tuple[int, ...], kinds: tuple[LayerKind, ...], free_output: bool = False) -> Layout:
    """`layout_of` layers of these kinds, worked out once: for tensors with data, whose sizes are numbers."""
    return _layout(sample, kinds, free_output)


def _layout(sample: tuple[int, ...], kinds: tuple[LayerKind, ...], free_output: bool) -> Layout:
    sizes = _sizes(sample, kinds)
    widths = [prod((one[4], *one[7:])) for one in sizes]
    owns = _ends(_aligned(width) for width in (*widths, *widths[-1:] * free_output))
    drives = _ends(_aligned(prod(one[4:7])) for one in sizes)
    shapes = [kind.weight_shape for kind in kinds]
    gradients = _ends([*map(prod, shapes), *(shape[0] for shape in shapes)])
    places = zip(sizes, owns, drives, gradients[: len(kinds)], gradients[len(kinds) :], strict=False)
    return Layout(tuple(Place(*place) for place in places), owns[-1], drives[-1], gradients[-1])


def gradients_by_layer(
    flat: Tensor, layers: Sequence[NetworkLayer], layout: Layout
) -> tuple[list[Tensor], list[Tensor]]:
    """The buffer of all gradients as dW and db of every layer."""
    pairs = list(zip(layout.places, (layer.weight for layer in layers), strict=True))
    matrices = [flat.narrow(0, place.weight_gradient, w.numel()).view(w.shape) for place, w in pairs]
    return matrices, [flat.narrow(0, place.bias_gradient, w.shape[0]) for place, w in pairs]


def _sizes(image: tuple[int, ...], kinds: Sequence[LayerKind]) -> list[tuple[int, ...]]:
    """Of each layer: 0, channels, height, width, outputs, convolved height and width, pooled likewise."""
    found = []
    for kind in kinds:
        image = (prod(image), 1, 1) if kind.linear else image
        geometry, out = kind.geometry, kind.weight_shape[0]
        pooled = geometry.pooled(*image[1:])
        found.append((0, *image, out, *geometry.convolved(*image[1:]), *pooled))
        image = (out, *pooled)
    return found


def _aligned(width: int) -> int:
    aligned: int = -(-width // ALIGNMENT) * ALIGNMENT
    return aligned


def _ends(sizes: Iterable[int]) -> list[int]:
    """Where pieces of these sizes begin if they lie side by side, and where the last one ends."""
    return [0, *accumulate(sizes)]
