"""The Python objects that a forward can reach: noted, compared and put back.

A captured graph holds tensors only. What a forward changes elsewhere (an attribute, a list, a global, the state of
Python's or numpy's random numbers) happens once while it is traced and never again, so it has to be noticed.
"""

from __future__ import annotations

import random
import sys
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import nn

from pccompile.capture.reads import Name, items_of, names_read
from pccompile.errors import Place, PythonStateError

__all__ = ["TRACERS_OWN", "Change", "PythonState", "refuse_changes"]

_DEPTH, _LARGEST, _MOST_OBJECTS = 5, 4096, 20_000
# where torch.fx.symbolic_trace puts the constants it meets, where nn.LSTM and its like note swapped parameters, and
# where a GraphModule keeps the code that it writes when it is first called
TRACERS_OWN = ("_tensor_constant", "_flat_weight", "_code", "_lineno_map", "_prologue_start")
_TENSORS = ("_parameters", "_buffers", "_modules")
_ATOMS = frozenset([type(None), bool, int, float, str, torch.Tensor, nn.Parameter, FunctionType])
_MISSING = object()


@dataclass(frozen=True)
class Change:
    """Something that is not as it was: the path of the module, what changed there, before and after."""

    module: str
    what: str
    before: Any
    after: Any
    random: bool = False

    def refused(self, source: str | None = None) -> PythonStateError:
        """The error that names it."""
        cure = "draw with torch (torch.rand), or draw outside the model and pass the number in" if self.random else None
        return PythonStateError(f"the forward {self}", Place(self.module or None, self.what, source), cure)

    def __str__(self) -> str:
        if self.random:
            return f"draws from {self.what}"
        return f"changes {self.what} ({_brief(self.before)} -> {_brief(self.after)})"


class PythonState:
    """A note of everything in Python that the forward (and the loss) may change.

    Attributes of all modules, with the contents of containers and plain objects among them; the globals and closures
    that the code of the modules and their hooks reads; Python's and numpy's random generators. Registered parameters,
    buffers and submodules are not included.
    """

    def __init__(self, model: nn.Module, loss_fn: Any = None) -> None:
        self.notes: list[tuple[str, str, _Note]] = []
        owners = [model, *([loss_fn] if isinstance(loss_fn, nn.Module) else [])]
        memo: dict[int, _Note] = {}
        for owner in owners:
            for path, module in owner.named_modules():
                kept = {id(vars(module)[name]) for name in _TENSORS}
                self.notes.append((path or type(module).__name__, "", _Note(vars(module), memo, kept)))
        self.names: list[tuple[Name, _Note]] = [(name, _Note(name.get(), memo)) for name in names_read(model, loss_fn)]
        self.hooked = {
            (path or type(module).__name__, getattr(hook, "name", ""))
            for path, module in model.named_modules()
            for hook in module._forward_pre_hooks.values()
            if type(hook).__module__.startswith("torch.nn.utils.")  # sets an attribute before every read of it
        }
        self.random = random.getstate()
        self.numpy = _numpy_random()

    def changes(self) -> Iterator[Change]:
        """What differs now."""
        if random.getstate() != self.random:
            yield Change("", "Python's random numbers", None, None, random=True)
        if self.numpy is not None and _state_text(_numpy_random()) != _state_text(self.numpy):
            yield Change("", "numpy's random numbers", None, None, random=True)
        for path, _, note in self.notes:
            for key, before, after, drawn in note.changes(note.value, ""):
                attribute = key.partition("[")[0].partition(".")[0]
                if (path, attribute) not in self.hooked and not attribute.startswith(TRACERS_OWN):
                    yield Change(path, f"the attribute {key}", before, after, drawn)
        for name, note in self.names:
            for key, before, after, drawn in note.changes(name.get(), str(name)):
                yield Change("", key, before, after, drawn)

    def forget(self) -> None:
        """Make `restore` leave the modules' attributes and the names as they are by then."""
        self.notes, self.names = [], []

    def restore(self) -> None:
        """Put everything back."""
        random.setstate(self.random)
        if self.numpy is not None:
            sys.modules["numpy"].random.set_state(self.numpy)
        for _, _, note in self.notes:
            note.restore()
        for name, note in self.names:
            if name.get() is not note.value:
                name.put(note.value)
            note.restore()


@contextmanager
def refuse_changes(model: nn.Module, loss_fn: Any = None) -> Iterator[None]:
    """Put back what happens to the Python state inside, and refuse it.

    Raises:
        PythonStateError: names the module and what changed.
    """
    state = PythonState(model, loss_fn)
    changes: list[Change] = []
    try:
        yield
        changes = list(state.changes())
    finally:
        state.restore()
    if changes:
        raise changes[0].refused()


class _Note:
    """A value and, for a container or a plain object, notes of its contents."""

    __slots__ = ("parts", "state", "value")

    def __init__(self, value: Any, memo: dict[int, _Note], whole: set[int] | None = None, depth: int = _DEPTH) -> None:
        self.value = value
        self.state: Any = None
        self.parts: dict[Any, _Note] | None = None
        if type(value) in _ATOMS:
            return
        self.state = _generator_state(value)
        parts = contents(value) if depth and id(value) not in memo and len(memo) < _MOST_OBJECTS else None
        if parts is not None:
            memo[id(value)] = self
            whole = whole or set()
            self.parts = {
                key: _Note(part, memo, None, 0 if id(part) in whole else depth - 1) for key, part in parts.items()
            }

    def changes(self, now: Any, path: str) -> Iterator[tuple[str, Any, Any, bool]]:
        if self.state is not None and now is self.value:
            if _generator_state(now) != self.state:
                yield path, None, None, True
            return
        if self.parts is None or type(now) is not type(self.value):
            if not _same(self.value, now):
                yield path, self.value, now, False
            return
        parts = contents(now) or {}
        for key in [*self.parts, *(key for key in parts if key not in self.parts)]:
            note, part = self.parts.get(key), parts.get(key, _MISSING)
            inner = _path(path, key, now)
            if note is None:
                yield inner, _MISSING, part, False
            elif part is _MISSING:
                yield inner, note.value, part, False
            else:
                yield from note.changes(part, inner)

    def restore(self) -> None:
        value = self.value
        if isinstance(value, random.Random):
            value.setstate(self.state)
        elif self.state is not None:
            value.bit_generator.state = self.state
        if self.parts is None:
            return
        before = {key: note.value for key, note in self.parts.items()}
        now = contents(value) or {}
        if list(now) != list(before) or any(now[key] is not before[key] for key in before):
            _put(value, before)
        for note in self.parts.values():
            note.restore()


def contents(value: Any) -> dict[Any, Any] | None:
    """The parts of a container or plain object by key; None for anything else."""
    if isinstance(value, dict):
        if len(value) > _LARGEST:
            return None
        return dict(value) if type(value) in (dict, OrderedDict) else dict(items_of(value))
    if isinstance(value, list | tuple | deque):
        return dict(enumerate(value)) if len(value) <= _LARGEST else None
    if isinstance(value, set):
        return {item: item for item in value} if len(value) <= _LARGEST else None
    package = type(value).__module__.partition(".")[0]
    opaque = isinstance(value, type | nn.Module) or package in ("torch", "numpy", "builtins", "functools", "types")
    return None if opaque or not hasattr(value, "__dict__") else dict(vars(value))


def _put(value: Any, parts: dict[Any, Any]) -> None:
    if isinstance(value, dict):
        kind = OrderedDict if isinstance(value, OrderedDict) else dict
        kind.clear(value)
        for key, part in parts.items():
            kind.__setitem__(value, key, part)
    elif isinstance(value, list):
        value[:] = list(parts.values())
    elif isinstance(value, deque | set):
        value.clear()
        (value.update if isinstance(value, set) else value.extend)(parts.values())
    elif not isinstance(value, tuple):
        vars(value).clear()
        vars(value).update(parts)


def _path(path: str, key: Any, owner: Any) -> str:
    if not path:
        return str(key)
    return f"{path}[{key!r}]" if isinstance(owner, dict | list | tuple | deque | set) else f"{path}.{key}"


def _same(before: Any, after: Any) -> bool:
    if before is after:
        return True
    if type(before) is not type(after) or isinstance(before, torch.Tensor):
        return False
    try:
        return bool(before == after)
    except (RuntimeError, ValueError, TypeError):
        return False


def _brief(value: Any) -> str:
    if value is _MISSING:
        return "nothing"
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _generator_state(value: Any) -> Any:
    if type(value) is random.Random:
        return value.getstate()
    if type(value).__module__ == "numpy.random._generator":
        return value.bit_generator.state
    return None


def _numpy_random() -> Any:
    numpy = sys.modules.get("numpy")
    return None if numpy is None else numpy.random.get_state()


def _state_text(state: Any) -> str:
    return repr([part.tobytes() if hasattr(part, "tobytes") else part for part in state] if state else state)
