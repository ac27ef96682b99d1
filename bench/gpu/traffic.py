"""Bytes that each kernel moves, by arithmetic, for one example shape each: the figures of docs/kernels.md.

`minimum`: every operand read once and every result written once, with nothing in between kept. `kernel`: what the
kernel reads and writes where what programs share comes from the L2 cache; `through_cache`, where it is given, is what
its programs load in all, by the shipped tiles of sm_90. `unfused`: one operator after the other, each reading and
writing. Numbers are of bfloat16, s = 2 bytes, but for what is float32 by definition.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod

from bench.steps.report import table_line
from pccompile.demo.models import cnn
from pccompile.kernels.linear_error import configurations as error_configurations
from pccompile.kernels.linear_predict import configurations as predict_configurations
from pccompile.kernels.linear_step import configurations as step_configurations
from pccompile.kernels.network_sweep import configurations as network_configurations
from pccompile.kernels.network_sweep.layout import NetworkLayer, layout_of
from pccompile.kernels.row_norm import configurations as norm_configurations
from pccompile.kernels.strict_sweep import configurations as sweep_configurations

__all__ = ["EXAMPLES", "Traffic", "example_traffic", "traffic_table"]

S = 2  # bytes of an element in bfloat16
MIB = 2**20


@dataclass(frozen=True)
class Traffic:
    """Bytes of one launch.

    Attributes:
        kernel: the operation.
        shape: of the example, in words.
        minimum, moved: bytes from and to memory, at least and by the kernel.
        unfused: those of the operators that it replaces; None where that is no fixed list.
        through_cache: bytes that its programs load; None where no program loads what another one does.
    """

    kernel: str
    shape: str
    minimum: int
    moved: int
    unfused: int | None = None
    through_cache: int | None = None


def linear_predict(batch: int, inputs: int, out: int) -> Traffic:
    """With relu, whose derivative is read from its output."""
    x, weight, y = batch * inputs, out * inputs, batch * out
    chosen = predict_configurations.configuration_for("sm_90", "half", batch, out)
    loaded = x * -(-out // chosen.block_out) + weight * -(-batch // chosen.block_batch)
    moved = S * (x + weight + out + y)
    return Traffic(
        "linear_predict", _linear(batch, inputs, out, "relu"), moved, moved, moved + 2 * S * y, S * (loaded + out)
    )


def linear_error(batch: int, inputs: int, out: int) -> Traffic:
    """With relu: a residual is read beside the error; everything is computed, nothing accumulated."""
    x, weight, y = batch * inputs, out * inputs, batch * out
    results = x + weight + out
    chosen = error_configurations.configuration_for("sm_90", "half", batch, out, inputs)
    in_tiles = -(-inputs // chosen.parent_in), -(-inputs // chosen.gradient_in)
    loaded = 2 * y * sum(in_tiles) + weight * -(-batch // chosen.parent_batch) + x * -(-out // chosen.gradient_out)
    return Traffic(
        "linear_error",
        _linear(batch, inputs, out, "relu"),
        S * (2 * y + weight + x + results),
        S * (2 * 2 * y + weight + x + results),
        S * (2 * y + y + 3 * y + weight + x + results),
        S * loaded,
    )


def linear_step(batch: int, inputs: int, out: int) -> Traffic:
    """v and e beside x, W, b and the drive; in wide layers d is kept, and W read again, by tiles or groups of tiles."""
    x, weight, y = batch * inputs, out * inputs, batch * out
    chosen = step_configurations.configuration_for("sm_90", "half", inputs)
    programs = -(-batch // chosen.block_batch)
    minimum = moved = S * (x + weight + out + 2 * y + x)
    loaded, which = S * weight * programs, "whole rows"
    if isinstance(chosen, step_configurations.Tiled):
        group = step_configurations.outputs_at_a_time("sm_90", chosen, batch, out, inputs, S)
        out_tiles, in_tiles, groups = -(-out // chosen.block_out), -(-inputs // chosen.block_in), -(-out // group)
        moved += 2 * S * y
        loaded = 2 * loaded + S * (x * out_tiles + y * in_tiles) + 4 * x * (groups - 1)
        which = f"tiles, {groups} groups" if groups > 1 else "tiles"
    return Traffic(
        "linear_step",
        _linear(batch, inputs, out, which),
        minimum,
        moved,
        S * (x + weight + out + y) + 5 * S * y + 3 * S * y + S * (y + weight + x),  # product, act, compare, d, product
        loaded,
    )


def strict_sweep(batch: int, widths: tuple[int, ...], steps: int) -> Traffic:
    """Values, errors and drives are float32: about 40 bytes a unit and sample go through the cache in a step."""
    weights = [a * b for a, b in pairwise(widths)]
    units = sum(widths[1:])
    chosen = sweep_configurations.configuration_for("sm_90", "half", batch)
    programs = -(-batch // chosen.block_batch)
    once = S * (batch * widths[0] + sum(weights) + units) + 2 * 4 * batch * units
    loaded = steps * (programs * 2 * S * sum(weights[1:]) + 40 * batch * units)
    shape = f"{'-'.join(map(str, widths))}, batch {batch}, T = {steps}"
    return Traffic("strict_sweep", shape, once, once, None, loaded)


def network_sweep(batch: int, steps: int) -> Traffic:
    """The CNN of `pccompile demo` on MNIST: a value is read for each tap that meets it, and so is a drive."""
    layers = _mnist_cnn()
    layout = layout_of((1, 28, 28), layers)
    weights, biases = ([layer.weight.shape for layer in layers], sum(layer.weight.shape[0] for layer in layers))
    tile = network_configurations.CONFIGURATIONS["sm_90"]["half"].block_columns
    programs = -(-batch // network_configurations.samples_for("sm_90", batch))
    buffers = 4 * batch * (2 * layout.columns + layout.drive_columns)
    once = S * (batch * 28 * 28 + sum(shape.numel() for shape in weights) + biases) + buffers
    gathered, read = 0, 0
    for shape, place in list(zip(weights, layout.places, strict=True))[1:]:  # the first is predicted at the ends alone
        _, channels, *_ = place.sizes
        met = prod(place.convolved[1:]) * shape.numel() // (shape[0] * channels)  # positions times taps
        gathered += 4 * batch * met * (channels * -(-shape[0] // tile) + shape[0] * -(-channels // tile))
        read += programs * 2 * S * shape.numel()
    shape_in_words = f"MNIST CNN (2 conv, 3 linear), batch {batch}, T = {steps}"
    return Traffic("network_sweep", shape_in_words, once, once, None, steps * (gathered + read))


def _mnist_cnn() -> list[NetworkLayer]:
    """Layers without numbers."""
    modules = [module for module in cnn((1, 28, 28), 10) if any(True for _ in module.parameters())]
    pooled = {"pool": "max", "window": (2, 2, 2, 2)}
    weights = [module.weight.detach().to("meta") for module in modules]
    return [NetworkLayer(weight, **(pooled if index == 0 else {})) for index, weight in enumerate(weights)]


def conv_predict(batch: int, channels: int, size: int, out: int) -> Traffic:
    """3 x 3, stride 1, relu, and a maximum of 2 x 2 behind it."""
    x, weight, y = _convolution(batch, channels, size, out)
    moved = S * (x + weight + out) + (S + 1) * y // 4
    unfused = moved + S * (3 * y + y // 4) + 8 * y // 4
    return Traffic("conv_predict", _images(batch, channels, size, out, "max 2 x 2"), moved, moved, unfused)


def conv_error(batch: int, channels: int, size: int, out: int) -> Traffic:
    """The error of the same: error, residual and argmax exist at the maxima only."""
    x, weight, y = _convolution(batch, channels, size, out)
    pooled, rest = (2 * S + 1) * y // 4, S * (x + weight) + S * (x + weight + out)
    unfused = S * (y // 4 + y) + 8 * y // 4 + S * 3 * y + S * 3 * y + rest  # unpool, d, three readings of d
    return Traffic(
        "conv_error", _images(batch, channels, size, out, "max 2 x 2"), pooled + rest, 2 * pooled + rest, unfused
    )


def conv_step(batch: int, channels: int, size: int, out: int) -> Traffic:
    """3 x 3, stride 1, relu, without pooling: e, the residual and the feedback are written."""
    x, weight, y = _convolution(batch, channels, size, out)
    moved = S * (x + weight + y) + S * (2 * y + x)
    return Traffic("conv_step", _images(batch, channels, size, out, ""), moved, moved, moved + 2 * S * (2 * y + x))


def cross_entropy_predict(rows: int, classes: int) -> Traffic:
    """Targets are int64; a row's logarithm of the sum is kept as float32."""
    moved = S * rows * classes + 8 * rows + 4 * rows
    return Traffic("cross_entropy, prediction", f"{rows} x {classes}", moved, moved, moved + S * rows * classes)


def cross_entropy_error(rows: int, classes: int) -> Traffic:
    """Unfused: the loss's derivative is written, and read with log_softmax's output."""
    moved = 2 * S * rows * classes + 8 * rows + 4 * rows
    return Traffic("cross_entropy, error", f"{rows} x {classes}", moved, moved, moved + 2 * S * rows * classes)


def row_norm_predict(rows: int, columns: int) -> Traffic:
    """Layer normalisation: mean and reciprocal deviation are kept as float32."""
    moved = 2 * S * rows * columns + 2 * S * columns + 8 * rows
    return Traffic("row_norm, prediction", f"{rows} x {columns}", moved, moved)


def row_norm_error(rows: int, columns: int) -> Traffic:
    """Each program's share of dw and db is float32, written and read once, and so are the groups'."""
    programs = norm_configurations.programs_for(
        rows, norm_configurations.configuration_for("sm_90", "half", rows, columns)
    )
    groups = -(-programs // norm_configurations.GROUP)
    minimum = 3 * S * rows * columns + 3 * S * columns + 8 * rows
    return Traffic("row_norm, error", f"{rows} x {columns}", minimum, minimum + 16 * (programs + groups) * columns)


def batch_norm_predict(batch: int, channels: int, size: int) -> Traffic:
    """The second reading comes from cache where a channel's elements fit; counted here."""
    elements = batch * channels * size * size
    return Traffic(
        "batch_norm, prediction", f"{batch} x {channels} x {size} x {size}", 2 * S * elements, 3 * S * elements
    )


def batch_norm_error(batch: int, channels: int, size: int) -> Traffic:
    """The same for error and x."""
    elements = batch * channels * size * size
    return Traffic("batch_norm, error", f"{batch} x {channels} x {size} x {size}", 3 * S * elements, 5 * S * elements)


def batch_norm_block_predict(batch: int, channels: int, size: int, normalised: bool) -> Traffic:
    """relu(normalised + skip); each normalised tensor is read twice. Unfused: 3 passes a normalisation, 3 a sum, 2."""
    elements = batch * channels * size * size
    name = f"batch_norm, prediction with a {'normalised ' if normalised else ''}skip"
    moved, unfused = (5, 11) if normalised else (4, 8)
    shape = f"{batch} x {channels} x {size} x {size}"
    return Traffic(name, shape, 3 * S * elements, moved * S * elements, unfused * S * elements)


def batch_norm_block_error(batch: int, channels: int, size: int, normalised: bool) -> Traffic:
    """The error of the same: a skip that is not normalised gets d, which is written once and read once."""
    elements = batch * channels * size * size
    name = f"batch_norm, error with a {'normalised ' if normalised else ''}skip"
    minimum, moved, unfused = (6, 10, 13) if normalised else (5, 7, 8)
    shape = f"{batch} x {channels} x {size} x {size}"
    return Traffic(name, shape, minimum * S * elements, moved * S * elements, unfused * S * elements)


def embedding_error(uses: int, columns: int, rows_used: int) -> Traffic:
    """After the sort, whose indices are int64, as is its permutation."""
    minimum = S * uses * columns + S * rows_used * columns + 8 * uses
    moved = S * uses * columns + 2 * S * rows_used * columns + 16 * uses
    return Traffic("embedding_error", f"{uses} uses of {rows_used} rows of {columns}", minimum, moved)


def pointwise(elements: int) -> Traffic:
    """silu(a) * b: two operators."""
    return Traffic(
        "pointwise", f"silu(a) * b, {elements} elements", 3 * S * elements, 3 * S * elements, 5 * S * elements
    )


def recurrence(kernel: str, gates: int, read_and_written: int, steps: int, batch: int, units: int) -> Traffic:
    """Elements a unit and step; U once where it stays in cache, loaded once a step for every 16 samples."""
    weight = gates * units * units
    moved = S * (read_and_written * steps * batch * units + weight)
    loaded = S * weight * steps * -(-batch // 16)
    return Traffic(f"{kernel}, prediction", f"{steps} steps, batch {batch}, {units} units", moved, moved, None, loaded)


def example_traffic(kernel: str) -> list[Traffic]:
    """The examples of a kernel."""
    return [traffic for traffic in EXAMPLES if traffic.kernel.split(",")[0] == kernel]


def traffic_table() -> str:
    """All examples, in MiB."""
    header = ("kernel", "example", "minimum", "kernel", "× minimum", "unfused", "loaded through L2")
    lines = [table_line(header), table_line(["---", "---", *["---:"] * 5])]
    for traffic in EXAMPLES:
        cells = (_mib(traffic.minimum), _mib(traffic.moved), f"{traffic.moved / traffic.minimum:.2f}")
        more = (_mib(traffic.unfused), _mib(traffic.through_cache))
        lines.append(table_line((traffic.kernel, traffic.shape, *cells, *more)))
    return "\n".join(lines)


def _mib(found: int | None) -> str:
    if found is None:
        return ""
    mib = found / MIB
    return f"{mib:,.0f}" if mib >= 100 else f"{mib:.3g}"


def _linear(batch: int, inputs: int, out: int, which: str) -> str:
    return f"batch {batch}, {inputs} to {out}, {which}"


def _images(batch: int, channels: int, size: int, out: int, pool: str) -> str:
    return ", ".join(filter(None, (f"batch {batch}, {channels} to {out} channels, {size} x {size}, 3 x 3", pool)))


def _convolution(batch: int, channels: int, size: int, out: int) -> tuple[int, int, int]:
    """Elements of x, the weight and act(z)."""
    return batch * channels * size * size, out * channels * 9, batch * out * size * size


EXAMPLES = (
    linear_predict(8192, 4096, 4096),
    linear_predict(64, 784, 256),
    linear_error(8192, 4096, 4096),
    linear_error(64, 784, 256),
    linear_step(64, 256, 256),
    linear_step(512, 1024, 1024),
    linear_step(512, 4096, 4096),
    linear_step(512, 4096, 16384),
    strict_sweep(64, (784, 256, 256, 10), 20),
    network_sweep(64, 20),
    conv_predict(64, 64, 32, 128),
    conv_error(64, 64, 32, 128),
    conv_step(64, 64, 32, 128),
    cross_entropy_predict(1024, 50257),
    cross_entropy_error(1024, 50257),
    row_norm_predict(8192, 768),
    row_norm_error(8192, 768),
    batch_norm_predict(32, 128, 16),
    batch_norm_error(32, 128, 16),
    *(batch_norm_block_predict(32, 128, 16, normalised) for normalised in (False, True)),
    *(batch_norm_block_error(32, 128, 16, normalised) for normalised in (False, True)),
    embedding_error(8192, 768, 4096),
    pointwise(8192 * 3072),
    recurrence("rnn", 1, 1 + 1, 64, 32, 128),
    recurrence("lstm", 4, 4 + 6, 64, 32, 128),
    recurrence("gru", 3, 3 + 5, 64, 32, 128),
)
