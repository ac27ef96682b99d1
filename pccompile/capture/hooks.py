"""Hooks on modules: forward hooks are captured with the forward; backward hooks would never fire, and are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from pccompile.capture.source import source_of_function
from pccompile.errors import CaptureError, Place

__all__ = ["refuse_backward_hooks", "refuse_hooks_of_root"]

_CURE = (
    "remove the hook; tensor hooks on parameters (register_hook, register_post_accumulate_grad_hook) fire, and so do "
    "hooks on the compiled module itself"
)


def refuse_backward_hooks(model: nn.Module) -> None:
    """Refuse backward hooks on the model or a module in it, and global ones.

    Raises:
        CaptureError: names the module and the hook.
    """
    for kind in ("_backward_hooks", "_backward_pre_hooks"):
        for path, module in model.named_modules():
            _refuse(
                getattr(module, kind), f"a module's backward hook ({kind[1:]})", path or type(model).__name__, _CURE
            )
        _refuse(getattr(nn.modules.module, "_global" + kind), "a global backward hook of modules", None, _CURE)


def refuse_hooks_of_root(model: nn.Module) -> None:
    """Refuse forward hooks on the outermost module, which torch.fx.symbolic_trace passes over.

    Raises:
        CaptureError: names the hook.
    """
    for kind in ("_forward_hooks", "_forward_pre_hooks"):
        cause = "torch.fx does not trace hooks of the outermost module: the hook"
        _refuse(getattr(model, kind), cause, type(model).__name__, 'use capture="export", which traces it')


def _refuse(hooks: dict[int, Callable[..., Any]], what: str, module: str | None, cure: str) -> None:
    for hook in hooks.values():
        name = getattr(hook, "__qualname__", type(hook).__name__)
        place = Place(module, name, source_of_function(hook) or None)
        raise CaptureError(f"{what} would never fire", place, cure)
