"""Records what launch functions hand to Triton on tensors of the meta device, as Triton would specialise it.

A folder of kernels has a module `launches_OPERATION.py` beside this one, with its LAUNCHES by name: each calls launch
functions on tensors that a Case makes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TYPES = {
    "float32": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
    "int64": "i64",
    "int32": "i32",
    "int8": "i8",
    "bool": "i1",
}


@dataclass(frozen=True)
class Case:
    """A launch of an operation, by its name in the operation's LAUNCHES, for an architecture.

    Attributes:
        operation: whose module LAUNCHES are.
        launch: which of these.
        architecture: for which it is compiled.
        dtype: of the tensors.
        precision: of the products: "half", "tf32" or "ieee", the key of the configuration tables.
        activation: a key of pccompile.kernels.ACTIVATIONS, where there is one.
        turn: counts the operation's cases, whatever their half precision is, for what takes turns over them.
        warps: instead of the configuration's, where a number is given.
    """

    operation: str
    launch: str
    architecture: str
    dtype: str
    precision: str
    activation: str = ""
    turn: int = 0
    warps: int = 0

    def __str__(self) -> str:
        fields = (self.operation, self.launch, self.architecture, self.dtype, self.precision, self.activation)
        return "-".join(filter(None, fields))

    @property
    def input_precision(self) -> str:
        """What launch functions take."""
        return "ieee" if self.precision == "half" else self.precision

    def empty(self, *size: int, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
        """A tensor of the case's dtype, unless another is given."""
        import torch

        return torch.empty(size, dtype=dtype or getattr(torch, self.dtype), device="meta", **options)


@dataclass(frozen=True)
class Launch:
    """How an operation is launched, and for what that is compiled.

    Attributes:
        run: calls launch functions on tensors that the case makes.
        products: tensor-core instructions that each of its kernels has at least, in reduced precision.
        precisions: in which it is compiled on each architecture. Where none are given, all of them if it has products;
            otherwise bfloat16 and float32 take turns.
        architectures: for which it is compiled. Where none are given, all of them if it has products; otherwise, tiles
            being the same on all of them, AMD's and one of NVIDIA's, which take turns.
        activation: of which it is told; "each" where all of them take turns.
    """

    run: Callable[[Case], None]
    products: int = 0
    precisions: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    activation: str = ""


# int64 offsets: the same code for all architectures of a vendor.
WIDE: dict[str, Any] = {"precisions": ("half",), "architectures": ("sm_90", "gfx942")}


@dataclass(frozen=True)
class Launched:
    """One kernel as it was launched: signature, constants, attributes and options, as Triton's compiler takes them."""

    kernel: Any
    signature: dict[str, Any]
    constants: dict[tuple[int, ...], object]
    attributes: dict[tuple[int, ...], list[list[object]]]
    options: dict[str, object]


def recorded(launch: Launch, case: Case) -> list[Launched]:
    """The kernels that are launched, on a device of the case's architecture."""
    with _recording(case.architecture) as launched:
        launch.run(case)
    if case.warps:
        for each in launched:
            each.options["num_warps"] = case.warps
    return launched


@contextmanager
def _recording(architecture: str) -> Iterator[list[Launched]]:
    from triton.runtime import JITFunction

    launched: list[Launched] = []

    def record(kernel, *arguments, grid, warmup, **options):
        constants = {name: options.pop(name) for name in list(options) if name in kernel.arg_names}
        positional = [name for name in kernel.arg_names if name not in constants]
        launched.append(_specialised(kernel, dict(zip(positional, arguments, strict=True)), constants, options))

    modules = [module for name, module in sys.modules.items() if name.startswith("pccompile.kernels.")]
    with ExitStack() as stack:
        stack.enter_context(patch.object(JITFunction, "run", record))
        for module in modules:
            if "architecture_of" in vars(module):
                stack.enter_context(patch.object(module, "architecture_of", lambda _: architecture))
        yield launched


def _specialised(kernel, arguments, constants, options) -> Launched:
    launched = Launched(kernel, {}, {}, {}, options)
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            launched.signature[name] = "constexpr"
            launched.constants[(index,)] = constants[name]
        else:
            launched.signature[name] = _type_of(arguments[name], (index,), launched)
    return launched


def _type_of(value, path, launched):
    """As Triton would specialise it: integers that are one are constants, multiples of 16 and tensors are aligned."""
    if isinstance(value, tuple):
        return tuple(_type_of(each, (*path, place), launched) for place, each in enumerate(value))
    if isinstance(value, float):
        return "fp32"
    if isinstance(value, int):
        if value == 1:
            launched.constants[path] = 1
            return "constexpr"
        if value % 16 == 0:
            launched.attributes[path] = [["tt.divisibility", 16]]
        return "i32" if abs(value) < 2**31 else "i64"
    launched.attributes[path] = [["tt.divisibility", 16]]
    return "*" + TYPES[str(value.dtype).removeprefix("torch.")]
