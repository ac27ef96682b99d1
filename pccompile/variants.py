"""What was captured and compiled for which kind of call, and why a call needs a new capture."""

from __future__ import annotations

import gc
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from pccompile.call import Call
from pccompile.capture import Captured, Shape
from pccompile.capture.reads import modules_of, sharing_key, tensors_key
from pccompile.compiled import Compiled
from pccompile.modelstate import ModelState

__all__ = ["Variants"]

logger = logging.getLogger("pccompile")

KEPT_CAPTURES = 32
KEPT_CALLS = 1024


class Key(NamedTuple):
    """What a capture depends on.

    Attributes:
        loss: whether the loss is captured with the model.
        opens: whether recurrent networks and attention are opened into elementary operators.
        structure: how arguments and targets are nested.
        values: per flattened input: dtype, device, requires_grad and memory order of a tensor; anything else itself.
        shapes: per flattened input: the shape of a tensor.
        sharing: which inputs are one tensor, and which share memory.
        model: the state of the model.
        autocast: whether and to which dtype each device casts.
    """

    loss: bool
    opens: bool
    structure: Hashable
    values: tuple[Hashable, ...]
    shapes: tuple[Shape, ...]
    sharing: tuple[Hashable, ...]
    model: ModelState
    autocast: tuple[Hashable, ...]

    def differs_in_shapes_only(self, other: Key) -> bool:
        """Whether the other key is of the same kind of call, at other sizes."""
        return self._replace(shapes=other.shapes) == other


def key_of_call(state: ModelState, call: Call, opens: bool) -> Key:
    """The key of one call of a model, in the present autocast state."""
    flat = call.flat
    return Key(
        call.loss_fn is not None,
        opens,
        call.structure,
        tuple([_kind(value) for value in flat]),
        tuple([value.shape if isinstance(value, torch.Tensor) else None for value in flat]),
        sharing_key(flat),
        state,
        tuple((d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")),
    )


@dataclass
class _Entry:
    key: Key
    captured: Captured
    compiled: dict[Hashable, Compiled] = field(default_factory=dict)  # by options


class Variants:
    """A bounded cache of captures, and of the programs compiled from each; least recently used captures go first."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._calls: OrderedDict[Key, _Entry] = OrderedDict()  # keys that were matched with an entry before
        self._warned = False

    def find(
        self,
        state: ModelState,
        call: Call,
        opens: bool,
        options: Hashable,
        trace: Callable[[], Captured],
        build: Callable[[Captured], Compiled],
    ) -> Compiled:
        """The compiled program for a call and options, made now if there is none.

        Args:
            state: the state of the call's model.
            opens: whether recurrent networks and attention are opened.
            options: what else of the program somebody chose.
            trace: captures the model.
            build: compiles what was captured.
        """
        key = key_of_call(state, call, opens)
        entry = self._calls.get(key)
        if entry is None:
            with _young_collected():
                entry = self._calls[key] = self._matching(key) or self._capture(call.model, key, trace)
            if len(self._calls) > KEPT_CALLS:
                self._calls.popitem(last=False)
        self._calls.move_to_end(key)
        self._entries.move_to_end(entry.key)
        if options not in entry.compiled:
            with _young_collected():
                entry.compiled[options] = build(entry.captured)
        return entry.compiled[options]

    def _matching(self, key: Key) -> _Entry | None:
        for entry in reversed(self._entries.values()):
            if entry.key.differs_in_shapes_only(key) and not _objection(entry, key):
                return entry
        return None

    def _capture(self, model: nn.Module, key: Key, trace: Callable[[], Captured]) -> _Entry:
        name = type(model).__name__
        if self._entries:
            latest = next(reversed(self._entries.values()))
            logger.info("capturing %s again: %s", name, "; ".join(_changes(model, latest, key)))
        entry = _Entry(key, trace())
        logger.info("captured %s: %d nodes", name, len(entry.captured.graph.nodes))
        self._entries[key] = entry
        if len(self._entries) > KEPT_CAPTURES:
            self._evict(name)
        return entry

    def _evict(self, name: str) -> None:
        _, gone = self._entries.popitem(last=False)
        self._calls = OrderedDict((key, entry) for key, entry in self._calls.items() if entry is not gone)
        if not self._warned:
            self._warned = True
            logger.warning(
                "%s has been captured for more than %d kinds of calls; the oldest captures are dropped. "
                "logging.getLogger('pccompile').setLevel('INFO') shows what changes from call to call",
                name,
                KEPT_CAPTURES,
            )


@contextmanager
def _young_collected() -> Iterator[None]:
    """While this lasts, Python's garbage collector looks through what was made since; not, over and over, through all.

    PyTorch alone is a million objects, and compiling makes enough for them to be looked through many times.
    """
    if gc.get_freeze_count():  # somebody else's
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _kind(value: Any) -> Hashable:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__, repr(value)
    return value.dtype, value.device, value.requires_grad, _order(value)


def _order(value: torch.Tensor) -> tuple[int, ...] | str | None:
    """The order of the dimensions in memory where it is not the usual one; the layout of a sparse tensor."""
    if value.layout is not torch.strided:
        return str(value.layout)
    return None if value.is_contiguous() else tuple(sorted(range(value.dim()), key=lambda d: -value.stride(d)))


def _objection(entry: _Entry, key: Key) -> str:
    return entry.captured.domain.objection(key.shapes, entry.captured.input_names)


def _changes(model: nn.Module, entry: _Entry, key: Key) -> list[str]:
    """What of the key is not as it was at an earlier capture, in words."""
    old, names = entry.key, entry.captured.input_names
    found: list[str] = []
    if old.loss != key.loss:
        found.append("with the loss inside" if key.loss else "with the loss outside")
    if old.opens != key.opens:
        found.append(
            "recurrent networks and attention opened" if key.opens else "recurrent networks and attention left fused"
        )
    if old.structure != key.structure:
        return [*found, "the arguments have another structure"]
    words = ("dtype", "device", "requires_grad", "memory order")
    for name, before, now in zip(names, old.values, key.values, strict=True):
        parts = words if len(before) == len(now) == len(words) else ("type", "value")  # type: ignore[arg-type]
        for word, a, b in zip(parts, before, now, strict=False):  # type: ignore[call-overload]
            if a != b:
                found.append(f"{name}: {word} {a} -> {b}")
    if old.shapes != key.shapes and not found:
        found.append(_objection(entry, key) or "an input has another shape")
    paths = {module: path for path, module in model.named_modules()}
    found += _changed(
        (f"{paths.get(module) or type(module).__name__} is" for module in modules_of(model, key.model.loss_fn)),
        ("in training mode" if mode else "in evaluation mode" for mode in old.model.modes),
        ("in training mode" if mode else "in evaluation mode" for mode in key.model.modes),
    )
    found += _changed(tensors_key(model), old.model.tensors, key.model.tensors)
    found += _changed(("autocast",) * len(key.autocast), old.autocast, key.autocast)
    if old.sharing != key.sharing:
        found.append("other inputs share memory")
    if old.model.python != key.model.python:
        found.append("an attribute, a hook, a global or a closure that the forward reads has another value")
    return found or ["another kind of call"]


def _changed(names: Any, old: Any, new: Any) -> Sequence[str]:
    """The first of the named parts that changed, and how many others did."""
    found = [f"{name} {b}, was {a}" for name, a, b in zip(names, old, new, strict=False) if a != b]
    return found[:1] if len(found) < 2 else [f"{found[0]} (and {len(found) - 1} more)"]
