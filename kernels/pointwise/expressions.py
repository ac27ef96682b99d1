"""Which ATen operators a generated kernel knows: a table from each to its Triton expression.

Expressions name the arguments of the operator's schema. Values are float32 (of every floating dtype), integers or
booleans; to the operator's operands apply PyTorch's rules of promotion, as `operands` says.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pccompile.errors import UsageError

__all__ = ["CASTS", "EXPRESSIONS", "Expression"]


@dataclass(frozen=True)
class Expression:
    """How an operator is written.

    Attributes:
        write: a template over the names of the schema's arguments, or a function of them: tensors are expressions,
            numbers literals, and everything else (None, texts) itself; `result` is the type of the result.
        operands: what tensors are cast to: the "result"'s dtype, their "promoted" dtype (comparisons), or "bool".
    """

    write: str | Callable[[dict[str, Any]], str]
    operands: Literal["result", "promoted", "bool"] = "result"


def _scaled(sign: str) -> Callable[[dict[str, Any]], str]:
    """self (+ or -) alpha * other."""
    return lambda a: f"{a['self']} {sign} {a['other']}" + ("" if a["alpha"] in ("1", "1.0") else f" * {a['alpha']}")


def _rounding_division(a: dict[str, Any]) -> str:
    if a["result"] != "tl.float32":
        raise UsageError("div of integers with a rounding mode", cure="leave it out of the run of pointwise operators")
    forms = {
        None: "{self} / {other}",
        "floor": "tl.floor({self} / {other})",
        "trunc": "tl.where({self} / {other} < 0, tl.ceil({self} / {other}), tl.floor({self} / {other}))",
    }
    return forms[a["rounding_mode"]].format(**a)


def _power(a: dict[str, Any]) -> str:
    exponent, x = float(a["exponent"]), str(a["self"])
    roots = {0.5: f"tl.sqrt({x})", -0.5: f"1.0 / tl.sqrt({x})"}
    if exponent in roots:
        return roots[exponent]
    if exponent.is_integer():
        if abs(exponent) > 8:
            raise UsageError(f"pow with the exponent {exponent:g}", cure="write it as a product of smaller powers")
        product = " * ".join([f"({x})"] * int(abs(exponent))) or f"tl.where({x} == {x}, 1.0, 1.0)"
        return f"1.0 / ({product})" if exponent < 0 else product
    return f"tl.exp2({exponent!r} * tl.log2({x}))"


def _clamp(a: dict[str, Any]) -> str:
    value = str(a["self"])
    for bound, compare in (("min", "<"), ("max", ">")):
        if a.get(bound) is not None:
            value = f"tl.where({value} {compare} {a[bound]}, {a[bound]}, {value})"
    return value


def _gelu(backward: bool) -> Callable[[dict[str, Any]], str]:
    def write(a: dict[str, Any]) -> str:
        name = {"none": "gelu", "tanh": "gelu_tanh"}[a["approximate"]]
        if backward:
            return f'{a["grad_output"]} * activation_slope({a["self"]}, 0.0, "{name}")'
        return f'activate({a["self"]}, 0.0, "{name}")'

    return write


def _softplus(backward: bool) -> Callable[[dict[str, Any]], str]:
    def write(a: dict[str, Any]) -> str:
        if float(a["beta"]) != 1 or float(a["threshold"]) != 20:
            raise UsageError("softplus with a beta or threshold of one's own", cure="use the defaults, 1 and 20")
        if backward:
            return f'{a["grad_output"]} * activation_slope({a["self"]}, 0.0, "softplus")'
        return f'activate({a["self"]}, 0.0, "softplus")'

    return write


def _elu(a: dict[str, Any]) -> str:
    return "tl.where({self} > 0, {self} * {scale}, expm1({self} * {input_scale}) * ({alpha} * {scale}))".format(**a)


def _elu_backward(a: dict[str, Any]) -> str:
    below = "{input_scale} * ({self_or_result} + {alpha} * {scale})"
    if not a["is_result"]:
        below = "({input_scale} * {alpha} * {scale}) * tl.exp({self_or_result} * {input_scale})"
    return ("{grad_output} * tl.where({self_or_result} <= 0, " + below + ", {scale})").format(**a)


def _constant(a: dict[str, Any]) -> str:
    return f"tl.full((1, 1), {a['fill_value']}, {a['result']})"


_ROWS: dict[str, str | Callable[[dict[str, Any]], str]] = {
    "add.Tensor add.Scalar": _scaled("+"),
    "sub.Tensor sub.Scalar": _scaled("-"),
    "rsub.Tensor rsub.Scalar": lambda a: _scaled("-")(a | {"self": a["other"], "other": a["self"]}),
    "mul.Tensor mul.Scalar": "{self} * {other}",
    "div.Tensor div.Scalar": "{self} / {other}",
    "div.Tensor_mode div.Scalar_mode": _rounding_division,
    "neg.default": "-{self}",
    "abs.default": "tl.abs({self})",
    "reciprocal.default": "1.0 / {self}",
    "exp.default": "tl.exp({self})",
    "exp2.default": "tl.exp2({self})",
    "expm1.default": "expm1({self})",
    "log.default": "tl.log({self})",
    "log2.default": "tl.log2({self})",
    "log1p.default": "log1p({self})",
    "sqrt.default": "tl.sqrt({self})",
    "rsqrt.default": "1.0 / tl.sqrt({self})",
    "sin.default": "tl.sin({self})",
    "cos.default": "tl.cos({self})",
    "erf.default": "tl.erf({self})",
    "floor.default": "tl.floor({self})",
    "ceil.default": "tl.ceil({self})",
    "sign.default sgn.default": "sign({self})",
    "pow.Tensor_Scalar": _power,
    "square.default": "{self} * {self}",
    "pow.Scalar": lambda a: f"tl.exp2({math.log2(float(a['self']))!r} * {a['exponent']})",
    "maximum.default": "larger({self}, {other})",
    "minimum.default": "smaller({self}, {other})",
    "clamp.default clamp.Tensor": _clamp,
    "clamp_min.default": "tl.where({self} < {min}, {min}, {self})",
    "clamp_max.default": "tl.where({self} > {max}, {max}, {self})",
    "addcmul.default": "{self} + {value} * {tensor1} * {tensor2}",
    "addcdiv.default": "{self} + {value} * {tensor1} / {tensor2}",
    "lerp.Scalar lerp.Tensor": "{self} + {weight} * ({end} - {self})",
    "full_like.default full.default": _constant,
    "zeros_like.default": lambda a: _constant(a | {"fill_value": 0}),
    "ones_like.default": lambda a: _constant(a | {"fill_value": 1}),
    "scalar_tensor.default": lambda a: _constant(a | {"fill_value": a["s"]}),
    "fill.Scalar": lambda a: _constant(a | {"fill_value": a["value"]}),
    "relu.default": "larger({self}, 0.0)",
    "leaky_relu.default": "tl.where({self} > 0, {self}, {self} * {negative_slope})",
    "tanh.default": 'activate({self}, 0.0, "tanh")',
    "sigmoid.default": 'activate({self}, 0.0, "sigmoid")',
    "silu.default": 'activate({self}, 0.0, "silu")',
    "gelu.default": _gelu(backward=False),
    "softplus.default": _softplus(backward=False),
    "elu.default": _elu,
    "hardtanh.default": lambda a: _clamp(a | {"min": a["min_val"], "max": a["max_val"]}),
    "mish.default": '{self} * activate(activate({self}, 0.0, "softplus"), 0.0, "tanh")',
    "hardsigmoid.default": "larger(smaller({self} + 3.0, 6.0), 0.0) / 6.0",
    "hardswish.default": "{self} * larger(smaller({self} + 3.0, 6.0), 0.0) / 6.0",
    "threshold_backward.default": "tl.where({self} <= {threshold}, 0.0, {grad_output})",
    "leaky_relu_backward.default": "tl.where({self} > 0, {grad_output}, {grad_output} * {negative_slope})",
    "tanh_backward.default": "{grad_output} * (1.0 - {output} * {output})",
    "sigmoid_backward.default": "{grad_output} * ({output} * (1.0 - {output}))",
    "silu_backward.default": '{grad_output} * activation_slope({self}, 0.0, "silu")',
    "gelu_backward.default": _gelu(backward=True),
    "softplus_backward.default": _softplus(backward=True),
    "elu_backward.default": _elu_backward,
    "hardtanh_backward.default": "tl.where(({self} <= {min_val}) | ({self} >= {max_val}), 0.0, {grad_output})",
    "mish_backward.default": "{grad_output} * mish_slope({self})",
    "hardsigmoid_backward.default": "tl.where(tl.abs({self}) < 3.0, {grad_output} / 6.0, 0.0)",
    "hardswish_backward.default": (
        "tl.where({self} <= -3.0, 0.0, tl.where({self} < 3.0, {grad_output} * ({self} / 3.0 + 0.5), {grad_output}))"
    ),
    "log_sigmoid_backward.default": '{grad_output} * activate(-({self}), 0.0, "sigmoid")',
    "native_dropout_backward.default": "{grad_output} * {mask} * {scale}",
}
_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_LOGICAL = {"and": "&", "or": "|", "xor": "^"}

# What changes a value's dtype at most: the value goes on as it is, cast to the result's dtype and rounded to it.
CASTS = frozenset(
    {
        "_to_copy.default",
        "convert_element_type.default",
        "clone.default",
        "alias.default",
        "detach.default",
    }
)

EXPRESSIONS: dict[str, Expression] = {
    **{name: Expression(write) for names, write in _ROWS.items() for name in names.split()},
    **{
        f"{name}.{kind}": Expression("{self} " + symbol + " {other}", "promoted")
        for name, symbol in _COMPARISONS.items()
        for kind in ("Tensor", "Scalar")
    },
    **{
        f"logical_{name}.default": Expression("{self} " + symbol + " {other}", "bool")
        for name, symbol in _LOGICAL.items()
    },
    **{f"bitwise_{name}.Tensor": Expression("{self} " + symbol + " {other}") for name, symbol in _LOGICAL.items()},
    "bitwise_not.default": Expression(lambda a: f"{a['self']} == 0" if a["result"] == "tl.int1" else f"~{a['self']}"),
    "logical_not.default": Expression("{self} == 0", "promoted"),
    "isnan.default": Expression("{self} != {self}", "promoted"),
    "where.self": Expression("tl.where({condition} != 0, {self}, {other})"),
    "where.ScalarOther": Expression("tl.where({condition} != 0, {self}, {other})"),
    "where.ScalarSelf": Expression("tl.where({condition} != 0, {self}, {other})"),
    "masked_fill.Scalar": Expression("tl.where({mask} != 0, {value}, {self})"),
    "masked_fill.Tensor": Expression("tl.where({mask} != 0, {value}, {self})"),
}
