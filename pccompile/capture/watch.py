"""What a forward does that a graph of operators cannot show: written into the graph, or refused by name.

`torch.no_grad` and `.data` are in no operator, so their effect is: under no_grad every result is detached where it is
made. Hooks on activations, derivatives taken inside the forward and assignments to `.data` have no such form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from pccompile.errors import CaptureError, Place

__all__ = ["REFUSED_METHODS", "Watch", "refuse_custom_functions"]

_HOOK = (
    "apply the hook's effect to the values instead, or write an operator: torch.library.custom_op, register_autograd"
)
_DERIVATIVE = "take the derivative outside the model, or write it out as operators of the forward"
_REFUSED: dict[Any, tuple[str, str]] = {
    torch.Tensor.register_hook: ("a hook on an activation would never fire", _HOOK),
    torch.Tensor.register_post_accumulate_grad_hook: ("a hook registered by the forward would never fire", _HOOK),
    torch.Tensor.retain_grad: (
        "the .grad of an activation would never be filled",
        "return the activation from the forward, and differentiate by it outside",
    ),
    torch.Tensor.backward: ("backward inside the forward would never run", _DERIVATIVE),
    torch.autograd.backward: ("backward inside the forward would never run", _DERIVATIVE),
    torch.autograd.grad: ("a derivative taken by autograd inside the forward would be lost", _DERIVATIVE),
    torch.Tensor.data.__set__: (  # type: ignore[attr-defined]
        "an assignment to .data would be lost",
        "write into the tensor under torch.no_grad: tensor.copy_(value)",
    ),
}
REFUSED_METHODS = {function.__name__: reason for function, reason in _REFUSED.items() if function.__name__[0] != "_"}
_IN_PLACE = frozenset(f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "pow", "floordiv", "mod"))


class Watch(TorchFunctionMode):
    """Active while a forward is traced: detaches what is made under no_grad, refuses what would be lost.

    Raises:
        CaptureError: names the function, what would be lost, and the cure.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function, as its effect is to appear in the graph."""
        kwargs = kwargs or {}
        if func is torch._C._set_grad_enabled:
            with torch._C.DisableTorchFunction():  # the tracer need not know: detach says it
                return func(*args, **kwargs)
        if func in _REFUSED:
            cause, cure = _REFUSED[func]
            name = "data = ..." if func.__name__ == "__set__" else func.__name__
            raise CaptureError(cause, Place(node=name), cure)
        if func == torch.Tensor.data.__get__:  # type: ignore[attr-defined]
            return args[0].detach()
        target = _written(func, args, kwargs)
        _refuse_constant(func, target)
        if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            return func(*args, **kwargs)
        if target is not None:
            _refuse_followed(func, target)
            args, kwargs = pytree.tree_map_only(
                torch.Tensor, lambda t: t if t is target else t.detach(), (args, kwargs)
            )
        given = {id(value) for value in pytree.tree_leaves((args, kwargs))}
        result = func(*args, **kwargs)
        return pytree.tree_map_only(torch.Tensor, lambda t: t if id(t) in given else t.detach(), result)


def _written(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The tensor that the function writes into, if it does."""
    name = getattr(func, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
    writes = in_place or name == "__setitem__" or name in _IN_PLACE
    return kwargs.get("out", args[0] if writes and args else None)


def _refuse_constant(func: Callable[..., Any], target: Any) -> None:
    """A real tensor among the tracer's is neither parameter nor buffer: an attribute, a global, part of a closure."""
    if isinstance(target, torch.Tensor) and not isinstance(target, FakeTensor | FunctionalTensor):
        raise CaptureError(
            f"the forward writes into a tensor of shape {tuple(target.shape)} that is no buffer of the model",
            Place(node=func.__name__),
            "register it: self.register_buffer(name, tensor)",
        )


def _refuse_followed(func: Callable[..., Any], target: Any) -> None:
    """Under no_grad a write changes a value and not its derivative, which a functional graph has no way to say."""
    if isinstance(target, torch.Tensor) and target.requires_grad:
        raise CaptureError(
            "a write under torch.no_grad into a tensor that autograd follows would change its derivative as well",
            Place(node=func.__name__),
            "write out of place, make the tensor a buffer, or move the write out of the forward",
        )


@contextmanager
def refuse_custom_functions() -> Iterator[None]:
    """While this lasts, applying a `torch.autograd.Function` raises; checkpointed functions are simply called.

    The functions that PyTorch's own operators are made of may be applied.

    Raises:
        CaptureError: names the function and the cure.
    """
    original = torch.autograd.Function.__dict__["apply"]
    base = torch.autograd.function._SingleLevelFunction

    def apply(function: type, *args: Any, **kwargs: Any) -> Any:
        name = f"{function.__module__}.{function.__qualname__}"
        if name == "torch.utils.checkpoint.CheckpointFunction":
            run, _preserves_random_state, *inputs = args
            return run(*inputs)
        if name.startswith(_INTERNAL):
            return original.__get__(None, function)(*args, **kwargs)
        raise _lost(function)

    def apply_bound_before(function: type, *args: Any) -> Any:
        """Where the original `apply` ends up: someone bound it early (`self.function = Function.apply`)."""
        if f"{function.__module__}.{function.__qualname__}".startswith(_INTERNAL):
            return super(base, function).apply(*args)  # type: ignore[misc]
        raise _lost(function)

    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[method-assign,assignment]
    base.apply = classmethod(apply_bound_before)
    try:
        yield
    finally:
        torch.autograd.Function.apply = original  # type: ignore[method-assign]
        del base.apply


def _lost(function: type) -> CaptureError:
    return CaptureError(
        f"the custom autograd function {function.__qualname__} would lose its backward",
        Place(node=f"{function.__qualname__}.apply"),
        "write it as an operator: torch.library.custom_op with register_autograd and register_fake",
    )


# The tracer's own and those behind PyTorch's operators, which reach the graph as operators; the hooks of `hooks.py`.
_INTERNAL = (
    *(f"torch.{name}." for name in ("_higher_order_ops", "_functorch", "_library", "_export", "_dynamo")),
    "torch.nn.modules._functions.BackwardHookFunction",
)
