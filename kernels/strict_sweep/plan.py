"""What a strict sweep is compiled for, as against what it is told at run time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["LOSSES", "GradientPlan", "Loss", "Phase", "Plan"]

Loss = Literal["cross_entropy", "squared_error"]
LOSSES: tuple[Loss, ...] = ("cross_entropy", "squared_error")
Phase = Literal["first", "start", "predict", "held", "loss", "infer", "finish"]


@dataclass(frozen=True)
class Plan:
    """The constants of one compiled kernel. Depth, widths, batch, steps and step size are none of them.

    Attributes:
        activations: those that occur in the chain, each once.
        slopes_from_output: for each, whether its derivative is read from act(z) rather than from z.
        loss: of the output.
        averaged: the loss is the mean over the samples that have one.
        free_output: the output has a free value, and the loss reads that (an identity towards the loss is the output).
        momentum: values descend with momentum.
        held: learn with the errors of the step before.
        record: write the energy of every sample in every step.
        aligned: weights may be read in vectors of 16 bytes.
        input_precision: "ieee" or "tf32", of float32 products.
        wide: int64 offsets.
        upcast: the interpreter's bfloat16 dot is wrong: multiply in float32.
        block_batch, block_out: the tile of values that a program holds at a time.
        block_sum: terms summed per iteration.
    """

    activations: tuple[str, ...]
    slopes_from_output: tuple[bool, ...]
    loss: Loss
    averaged: bool
    free_output: bool
    momentum: bool
    held: bool
    record: bool
    aligned: bool
    input_precision: str
    wide: bool
    upcast: bool
    block_batch: int
    block_out: int
    block_sum: int


@dataclass(frozen=True)
class GradientPlan:
    """The constants of the kernel of the gradients.

    Attributes:
        upstream: there is a further factor on the device.
        input_precision, wide, upcast: as for Plan.
        block_out, block_in: the tile of dW that a program owns.
        block_batch: rows summed per iteration.
    """

    upstream: bool
    input_precision: str
    wide: bool
    upcast: bool
    block_out: int
    block_in: int
    block_batch: int
