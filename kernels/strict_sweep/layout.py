"""How a chain lies in memory: layers side by side in buffers of float32, and the table that the kernels read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate

import torch
from torch import Tensor

__all__ = ["ALIGNMENT", "Chain", "Field", "Layout"]

ALIGNMENT = 16  # columns; a layer starts at a multiple of it, so that its rows can be read in vectors
_TABLES_KEPT = 64


class Field(IntEnum):
    """The columns of the table: one row per layer, int64."""

    WEIGHT = 0  # address
    BIAS = 1  # address, or 0
    IN = 2
    OUT = 3
    WEIGHT_OUT_STRIDE = 4
    WEIGHT_IN_STRIDE = 5
    BIAS_STRIDE = 6
    PARENT = 7  # first column of the parent's values; the first layer's parent, the input, is not in the buffers
    OWN = 8  # first column of the layer's own values and errors
    ACTIVATION = 9  # index into Chain.distinct
    WEIGHT_GRADIENT = 10  # where the contiguous (out, in) begins in the buffer of all gradients
    BIAS_GRADIENT = 11  # likewise


@dataclass(frozen=True)
class Layout:
    """Where the layers lie, which depends on their widths alone.

    Attributes:
        starts: first column of each layer's values and errors; then, by a free output, that of the loss's errors.
        columns: columns of these buffers.
        weight_gradients: first element of each dW in the buffer of all gradients.
        bias_gradients: first element of each db, likewise.
        gradients: elements of that buffer.
    """

    starts: tuple[int, ...]
    columns: int
    weight_gradients: tuple[int, ...]
    bias_gradients: tuple[int, ...]
    gradients: int

    @classmethod
    def of(cls, shapes: Sequence[torch.Size], free_output: bool = False) -> Layout:
        """The layout of layers whose weights have these shapes, (out, in)."""
        outs = [out for out, _ in shapes]
        starts = _ends(-(-out // ALIGNMENT) * ALIGNMENT for out in (*outs, *outs[-1:] * free_output))
        gradients = _ends([*(out * in_features for out, in_features in shapes), *outs])
        count = len(shapes)
        return cls(tuple(starts[:-1]), starts[-1], tuple(gradients[:count]), tuple(gradients[count:-1]), gradients[-1])


def _ends(sizes: Iterable[int]) -> list[int]:
    """Where pieces of these sizes begin if they lie side by side, and where the last one ends."""
    return [0, *accumulate(sizes)]


@dataclass(frozen=True)
class Chain:
    """Linear layers, each the next one's input: v_l is predicted by act_l(v_{l-1} W_l^T + b_l).

    Attributes:
        weights: (out, in) each.
        biases: (out,) each, or None.
        activations: a key of pccompile.kernels.ACTIVATIONS each.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    activations: tuple[str, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Outputs of each layer."""
        return tuple(weight.shape[0] for weight in self.weights)

    @property
    def distinct(self) -> tuple[str, ...]:
        """The activations that occur, each once."""
        return tuple(dict.fromkeys(self.activations))

    @property
    def aligned(self) -> bool:
        """Whether every weight's rows can be read in vectors of 16 bytes."""
        return all(
            weight.data_ptr() % 16 == 0
            and weight.stride(1) == 1
            and weight.stride(0) % 16 == 0
            and all(size % 16 == 0 for size in weight.shape)
            for weight in self.weights
        )

    def table(self) -> Tensor:
        """(layers, fields) int64, on the weights' device; kept for the next launch with the same weights."""
        distinct = self.distinct
        layout = Layout.of([weight.shape for weight in self.weights])
        rows = []
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            row = {
                Field.WEIGHT: weight.data_ptr(),
                Field.BIAS: 0 if bias is None else bias.data_ptr(),
                Field.IN: weight.shape[1],
                Field.OUT: weight.shape[0],
                Field.WEIGHT_OUT_STRIDE: weight.stride(0),
                Field.WEIGHT_IN_STRIDE: weight.stride(1),
                Field.BIAS_STRIDE: 0 if bias is None else bias.stride(0),
                Field.PARENT: layout.starts[layer - 1] if layer else 0,
                Field.OWN: layout.starts[layer],
                Field.ACTIVATION: distinct.index(self.activations[layer]),
                Field.WEIGHT_GRADIENT: layout.weight_gradients[layer],
                Field.BIAS_GRADIENT: layout.bias_gradients[layer],
            }
            rows.append(tuple(row[field] for field in Field))
        return _on_device(tuple(rows), self.weights[0].device)


_tables: OrderedDict[tuple[tuple[tuple[int, ...], ...], torch.device], Tensor] = OrderedDict()


def _on_device(rows: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """The table, copied to the device once as long as it is among those used last."""
    key = rows, device
    if key not in _tables:
        _tables[key] = torch.tensor(rows, dtype=torch.int64).to(device)
        if len(_tables) > _TABLES_KEPT:
            _tables.popitem(last=False)
    _tables.move_to_end(key)
    return _tables[key]
