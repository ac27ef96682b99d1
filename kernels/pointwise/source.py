"""Writes the source of a Triton kernel for a graph of pointwise operators."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from pccompile.errors import Place, UsageError
from pccompile.kernels.pointwise.expressions import CASTS, EXPRESSIONS

__all__ = ["DTYPES", "Written", "operator_name", "write_source"]

_TYPES = {
    torch.float32: "tl.float32",
    torch.bfloat16: "tl.float32",
    torch.float16: "tl.float32",
    torch.int64: "tl.int64",
    torch.int32: "tl.int32",
    torch.int16: "tl.int16",
    torch.int8: "tl.int8",
    torch.uint8: "tl.uint8",
    torch.bool: "tl.int1",
}
DTYPES = frozenset(_TYPES)
_ROUNDED = {torch.bfloat16: "tl.bfloat16", torch.float16: "tl.float16"}
_HEADER = """import triton
import triton.language as tl

from pccompile.kernels.activations import activate, activation_slope
from pccompile.kernels.pointwise.functions import expm1, larger, log1p, mish_slope, sign, smaller
from pccompile.kernels.arrivals import arrives_last, fold_rows
from pccompile.kernels.reductions import sum_of
from pccompile.kernels.tiles import tile_indices

"""


@dataclass(frozen=True)
class Written:
    """What a kernel computes: its values in order, each with its dtype, and which of them are its outputs.

    Attributes:
        inputs: the placeholders that are tensors.
        numbers: those that are numbers.
        steps: the nodes computed, in order.
        outputs: the nodes written, or whose sum is written.
        sums: for each output, whether it is summed.
        dtypes: of every node, as PyTorch has it; float32 for numbers.
    """

    inputs: tuple[Node, ...]
    numbers: tuple[Node, ...]
    steps: tuple[Node, ...]
    outputs: tuple[Node, ...]
    sums: tuple[bool, ...]
    dtypes: dict[Node, torch.dtype]


def operator_name(node: Node) -> str:
    """An ATen operator's name without its namespace, such as "add.Tensor"."""
    return str(node.target).partition(".")[2] if isinstance(node.target, torch._ops.OpOverload) else str(node.target)


def _literal(value: float, dtype: torch.dtype) -> str:
    if not dtype.is_floating_point:
        return repr(int(value))
    return repr(float(value)) if math.isfinite(value) else f'float("{float(value)}")'


def _cast(name: str, given: torch.dtype, wanted: torch.dtype) -> str:
    if _TYPES[given] == _TYPES[wanted]:
        return name
    return f"({name} != 0)" if wanted is torch.bool else f"{name}.to({_TYPES[wanted]})"


def _arguments(node: Node) -> dict[str, Any]:
    """The node's arguments by the names of its schema, defaults included."""
    assert isinstance(node.target, torch._ops.OpOverload)
    schema = node.target._schema.arguments
    given = dict(zip((argument.name for argument in schema), node.args, strict=False)) | node.kwargs
    return {argument.name: given.get(argument.name, argument.default_value) for argument in schema}


def _expression(node: Node, names: dict[Node, str], dtypes: dict[Node, torch.dtype]) -> str:
    operator, result = operator_name(node), dtypes[node]
    arguments = _arguments(node)
    if operator in CASTS:
        source = arguments["a" if "a" in arguments else "self"]
        value = _cast(names[source], dtypes[source], result)
        rounds = result in _ROUNDED and dtypes[source] is not result
        return f"{value}.to({_ROUNDED[result]}).to(tl.float32)" if rounds else value
    row = EXPRESSIONS.get(operator)
    if row is None:
        raise UsageError(
            f"no Triton expression for the operator {node.target}",
            Place(node=node.name),
            cure="leave it out of the run of pointwise operators, or add it to pccompile.kernels.pointwise.expressions",
        )
    wanted = result
    if row.operands == "bool":
        wanted = torch.bool
    elif row.operands == "promoted":
        wanted = torch.bool
        for value in arguments.values():
            if isinstance(value, Node):
                wanted = torch.promote_types(wanted, dtypes[value])
            elif isinstance(value, float):
                wanted = torch.promote_types(wanted, torch.float32)
            elif type(value) is int:
                wanted = torch.promote_types(wanted, torch.int64)
    written: dict[str, Any] = {"result": _TYPES[result]}
    for name, value in arguments.items():
        if isinstance(value, Node):
            condition = name in ("condition", "mask") and operator != "native_dropout_backward.default"
            written[name] = names[value] if condition else _cast(names[value], dtypes[value], wanted)
        elif isinstance(value, (int, float)) and type(value) is not bool:
            written[name] = _literal(value, wanted)
        else:
            written[name] = value
    return row.write.format(**written) if isinstance(row.write, str) else row.write(written)


def _check_numbers(written: Written) -> None:
    """Numbers that the run provides take part in arithmetic, and choose no form of an operator."""
    for number in written.numbers:
        for reader in written.steps:
            places = {name for name, value in _arguments(reader).items() if value is number}
            if not places <= {"self", "other", "alpha"}:
                raise UsageError(
                    f"{reader.target} with a number that the run provides",
                    Place(node=reader.name),
                    cure="leave it out of the run of pointwise operators",
                )


def _indices(prefix: str, dimensions: int) -> Iterable[str]:
    """The index along every merged dimension, from the index in their product."""
    yield f"    {prefix}_rest = {prefix}"
    for d in reversed(range(1, dimensions)):
        yield f"    {prefix}_{d} = {prefix}_rest % {prefix}_size_{d}"
        yield f"    {prefix}_rest = {prefix}_rest // {prefix}_size_{d}"
    yield f"    {prefix}_0 = {prefix}_rest"


def _offsets(tensor: str, group: str, dimensions: int) -> str:
    return " + ".join(f"{group}_{d} * {tensor}_{group}_stride_{d}" for d in range(dimensions))


def write_source(written: Written, kept: int, reduced: int) -> str:
    """The kernel, called `pointwise`, with so many kept and reduced dimensions; none reduced where nothing is summed.

    Its arguments are the pointers of inputs and outputs, the graph's numbers, the pointers of partial sums and of the
    counters of arrivals, how many kept and reduced elements and blocks of a share there are, the sizes of all
    dimensions but the first of each kind, and the strides of inputs and outputs along the kept and, but for sums, the
    reduced ones.

    Raises:
        UsageError: an operator has no Triton expression.
    """
    _check_numbers(written)
    inputs = [f"in{i}" for i in range(len(written.inputs))]
    outputs = [f"out{i}" for i in range(len(written.outputs))]
    full = [name for name, summed in zip(outputs, written.sums, strict=True) if not summed]
    summed = [name for name in outputs if name not in full]
    numbers = [f"number{i}" for i in range(len(written.numbers))]
    parameters = [f"{name}_ptr" for name in inputs + outputs] + numbers
    if reduced:
        parameters += ["partial_ptr", "arrivals_ptr"]
    parameters += ["kept_elements"] + (["reduced_elements", "blocks"] if reduced else [])
    parameters += [f"kept_size_{d}" for d in range(1, kept)] + [f"reduced_size_{d}" for d in range(1, reduced)]
    for name in inputs + outputs:
        parameters += [f"{name}_kept_stride_{d}" for d in range(kept)]
        if name not in summed:
            parameters += [f"{name}_reduced_stride_{d}" for d in range(reduced)]
    constants = ["WIDE", "BLOCK_KEPT"] + (["BLOCK_REDUCED", "SHARES", "RELEASE_LANES"] if reduced else [])
    parameters += [f"{name}: tl.constexpr" for name in constants]

    def pointer(name: str) -> str:
        kept_part = f"({_offsets(name, 'kept', kept)})[None, :]"
        reduced_part = f" + ({_offsets(name, 'reduced', reduced)})[:, None]" if reduced else ""
        return f"{name}_ptr + {kept_part}{reduced_part}"

    body = []
    names = dict(zip(written.numbers, numbers, strict=True))
    for name, node in zip(inputs, written.inputs, strict=True):
        dtype = written.dtypes[node]
        loaded = f"tl.load({pointer(name)}, mask=within, other=0)"
        body.append(f"{name} = {loaded} != 0" if dtype is torch.bool else f"{name} = {loaded}.to({_TYPES[dtype]})")
        names[node] = name
    for i, node in enumerate(written.steps):
        body.append(f"v{i} = {_expression(node, names, written.dtypes)}  # {operator_name(node)}")
        names[node] = f"v{i}"
    for name, node in zip(outputs, written.outputs, strict=True):
        if name in full:
            # A constant has one element until it is broadcast.
            value = f"tl.where(within, {names[node]}, 0)"
            body.append(f"tl.store({pointer(name)}, {value}.to({name}_ptr.dtype.element_ty), mask=within)")
        else:
            body.append(
                f"{name}_sum += tl.where(within, {_cast(names[node], written.dtypes[node], torch.float32)}, 0.0)"
            )

    lines = ["    kept = tile_indices(tl.program_id(0), BLOCK_KEPT, WIDE)", *_indices("kept", kept)]
    if not reduced:
        lines += ["    within = (kept < kept_elements)[None, :]", *(f"    {line}" for line in body)]
    else:
        lines += ["    share = tl.program_id(1)"]
        lines += [f"    {name}_sum = tl.full((BLOCK_REDUCED, BLOCK_KEPT), 0.0, tl.float32)" for name in summed]
        lines += ["    for block in range(0, blocks):"]
        lines += ["        reduced = tile_indices(share * blocks + block, BLOCK_REDUCED, WIDE)"]
        lines += [f"    {line}" for line in _indices("reduced", reduced)]
        lines += ["        within = (reduced < reduced_elements)[:, None] & (kept < kept_elements)[None, :]"]
        lines += [f"        {line}" for line in body]
        lines += _finish(summed, kept)
    text = "\n".join(lines)
    signature = "".join(f"    {parameter},\n" for parameter in parameters)
    return f"{_HEADER}\n@triton.jit\ndef pointwise(\n{signature}):\n{text}\n"


def _finish(summed: list[str], kept: int) -> Iterable[str]:
    """The share's partial sums, and their sum by the last share to arrive."""
    yield "    inside = kept < kept_elements"
    yield "    shares = tl.num_programs(1)"
    for i, name in enumerate(summed):
        place = f"({i} * shares + share).to(tl.int64) * kept_elements + kept"
        yield f"    tl.store(partial_ptr + {place}, sum_of({name}_sum, 0), mask=inside)"
    yield "    if arrives_last(arrivals_ptr + tl.program_id(0), shares, RELEASE_LANES):"
    for i, name in enumerate(summed):
        yield f"        {name}_first = partial_ptr + ({i} * shares).to(tl.int64) * kept_elements"
        yield (
            f"        {name}_total = fold_rows({name}_first, kept_elements, kept, inside, shares, SHARES, BLOCK_KEPT)"
        )
        yield (
            f"        tl.store({name}_ptr + {_offsets(name, 'kept', kept)}, "
            f"{name}_total.to({name}_ptr.dtype.element_ty), mask=inside)"
        )
