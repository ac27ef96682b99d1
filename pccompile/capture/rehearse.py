"""Run a model's own forward without consequences: to initialise lazy modules, to let caches fill, to compare with.

Afterwards buffers, random states, the model's Python state and its gradients are what they were before.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils import _pytree as pytree

from pccompile.capture.source import describe, is_users
from pccompile.capture.state import Change, PythonState
from pccompile.capture.structure import Structure
from pccompile.errors import PythonStateError

__all__ = ["initialise_lazy_modules", "line_that_changes", "random_states_kept", "rehearsal", "settles", "with_line"]

_PATIENCE = 10.0  # seconds to look for a line


@contextmanager
def rehearsal(
    model: nn.Module, loss_fn: Any = None, written: Iterable[torch.Tensor] | None = None
) -> Iterator[PythonState]:
    """What happens inside leaves no trace in parameters, buffers, random states and Python objects; gradients on.

    Hooks on parameters are not called meanwhile.

    Args:
        written: the parameters that may be written into; by default all.

    Yields:
        The Python state before.
    """
    owners = [model, *([loss_fn] if isinstance(loss_fn, nn.Module) else [])]
    tensors = [t for owner in owners for t in (*owner.parameters(), *owner.buffers())]
    parameters = [p for owner in owners for p in owner.parameters()] if written is None else list(written)
    changing = [*parameters, *(buffer for owner in owners for buffer in owner.buffers())]
    saved = [(tensor, tensor.detach().clone()) for tensor in changing]
    registered = [(module, dict(module._buffers)) for owner in owners for module in owner.modules()]
    hooked = [(t, t._backward_hooks) for t in tensors if t._backward_hooks]
    state = PythonState(model, loss_fn)
    with ExitStack() as stack:
        stack.enter_context(random_states_kept())
        stack.enter_context(torch.enable_grad())
        try:
            for tensor, _ in hooked:
                tensor._backward_hooks = None
            yield state
        finally:
            for tensor, hooks in hooked:
                tensor._backward_hooks = hooks
            state.restore()
            for module, buffers in registered:
                for name, buffer in buffers.items():
                    module._buffers[name] = buffer
            with torch.no_grad():
                for tensor, value in saved:
                    if not torch.equal(tensor, value):  # a write counts as one, for autograd
                        tensor.copy_(value)


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Put torch's random states back afterwards, on the CPU and on every GPU in use."""
    states = _random_states()
    try:
        yield
    finally:
        _set_random_states(states)


def _random_states() -> list[torch.Tensor]:
    """The states of torch's generators: the CPU's, then those of the GPUs in use."""
    used = torch.cuda.is_available() and torch.cuda.is_initialized()
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if used else ())]


def _set_random_states(states: list[torch.Tensor]) -> None:
    """Put back what `_random_states` returned."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(states[1:])


def initialise_lazy_modules(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Initialise modules that wait for their first input (nn.LazyLinear and the like), by one forward pass.

    Their parameters are drawn from the random stream as they would be at the first call of the model itself; nothing
    else remains of the pass.
    """
    lazy = [module for module in model.modules() if isinstance(module, LazyModuleMixin)]
    lazy = [module for module in lazy if module.has_uninitialized_params()]  # type: ignore[misc]
    if not lazy:
        return
    fresh: list[tuple[torch.Tensor, torch.Tensor]] = []
    after: list[list[torch.Tensor]] = []

    def initialised(module: nn.Module, args: Any, kwargs: Any) -> None:
        fresh.extend((buffer, buffer.detach().clone()) for buffer in module.buffers())
        after.append(_random_states())

    handles = [module.register_forward_pre_hook(initialised, with_kwargs=True) for module in lazy]
    # the model changes class and hooks while it initialises: the state to return to is the one after that
    try:
        with random_states_kept(), torch.no_grad(), _buffers_kept(model):
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for buffer, value in fresh:
                buffer.copy_(value)
    if after:
        _set_random_states(after[-1])


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    saved = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if not _is_lazy(buffer)]
    try:
        yield
    finally:
        for buffer, value in saved:
            buffer.copy_(value)


def _is_lazy(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, nn.parameter.UninitializedTensorMixin)


def settles(model: nn.Module, loss_fn: Any, run: Callable[[], Any]) -> bool:
    """Whether the Python state that the forward changes is only a cache: filled once, and of no effect.

    If it is, the caches are left filled, as the model's own first call would leave them.

    Args:
        run: calls the model; run twice from the same tensors and the same random state.
    """
    before = PythonState(model, loss_fn)
    try:
        first, changes = _result(model, loss_fn, run)
        filled = PythonState(model, loss_fn)
        second, more_changes = _result(model, loss_fn, run)
    except BaseException:
        before.restore()
        raise
    lost = [c for c in changes if c.random or (isinstance(c.after, torch.Tensor) and c.after.requires_grad)]
    settled = not lost and not more_changes and _equal(first, second)
    (filled if settled else before).restore()
    return settled


def _result(model: nn.Module, loss_fn: Any, run: Callable[[], Any]) -> tuple[Any, list[Change]]:
    """Outputs, buffers and parameters after one run, and its changes to the Python state, which are left."""
    with rehearsal(model, loss_fn) as state:
        outputs = run()
        changes = list(state.changes())
        state.forget()
        return (outputs, [tensor.detach().clone() for tensor in (*model.buffers(), *model.parameters())]), changes


def _equal(left: Any, right: Any) -> bool:
    """Whether two results hold the same tensors, wherever they are, and the same numbers and words."""
    tensors = [Structure.take_apart(value)[1] for value in (left, right)]
    plain = [[v for v in pytree.tree_leaves(value) if isinstance(v, int | float | str)] for value in (left, right)]
    same_count = len(tensors[0]) == len(tensors[1])
    return same_count and plain[0] == plain[1] and all(map(torch.equal, *tensors))


def with_line(error: PythonStateError, model: nn.Module, loss_fn: Any, run: Callable[[], Any]) -> PythonStateError:
    """The error with the user's line that has the effect, found by running the model once more."""
    with rehearsal(model, loss_fn) as state:
        frame, line = line_that_changes(lambda: any(c.what == error.place.node for c in state.changes()), run)
    module = error.place.module or _module_of(frame, model)
    return PythonStateError(error.cause, replace(error.place, module=module, source=line or None), error.cure)


def line_that_changes(changed: Callable[[], bool], run: Callable[[], Any]) -> tuple[FrameType | None, str]:
    """The frame and the user's line during which something changes, for an error; None and "" if there is none.

    Args:
        changed: whether it has changed by now.
        run: calls the model. It runs under a trace function, slowly; where it raises, so far is far enough.
    """
    found: list[tuple[FrameType, str]] = []
    deadline = time.monotonic() + _PATIENCE
    last: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        if found or time.monotonic() > deadline or not is_users(frame.f_code.co_filename):
            return None
        if event in ("line", "return") and frame in last and changed():
            code = frame.f_code
            found.append((frame, describe(code.co_filename, last[frame], code.co_name)))
        last[frame] = frame.f_lineno
        return trace

    outer = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    except Exception:
        pass
    finally:
        sys.settrace(outer)
    return found[0] if found else (None, "")


def _module_of(frame: FrameType | None, model: nn.Module) -> str:
    """The path of the innermost module whose method was running; the model's type where there is none."""
    paths: dict[int, str] = {id(module): path for path, module in model.named_modules()}
    while frame is not None:
        path = paths.get(id(frame.f_locals.get("self")), "")
        if path:
            return path
        frame = frame.f_back
    return type(model).__name__
