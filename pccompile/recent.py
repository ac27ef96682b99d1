"""The last call of a module, for the next one of the same kind: told from it without making a key of the call."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from operator import is_
from typing import Any, Protocol

import torch

from pccompile.backends.run import Run
from pccompile.call import Call, guard_of, kind_of
from pccompile.compiled import Compiled, Held
from pccompile.ir.grammar import Kind
from pccompile.modelstate import ModelState
from pccompile.straight import Straight, straight

__all__ = ["Recent"]

_version = torch._C._dynamo.guards.dict_version


class _Configured(Protocol):
    """What may be set on a module between calls and changes what runs."""

    @property
    def options(self) -> tuple[Any, ...]:
        """All of it."""


class Recent:
    """What ran last.

    Attributes:
        compiled, held: what ran, and the tensors that it holds.
        kinds: of the call's flattened inputs.
        learns: there was something to learn.
    """

    __slots__ = (
        "_guard",
        "_looked",
        "_options",
        "_plain",
        "_run",
        "_state",
        "_straight",
        "_structure",
        "_version",
        "compiled",
        "held",
        "kinds",
        "learns",
    )

    def __init__(self, module: _Configured, call: Call, state: ModelState, compiled: Compiled, learns: bool) -> None:
        self.compiled, self.kinds, self.learns = compiled, call.kinds, learns
        self.held: Held = state.held[compiled]
        self._run: Run | None = None
        self._straight: Straight | None = None
        self._looked = False
        self._state, self._structure, self._guard = state, call.structure, guard_of(call.flat)
        self._options, self._version = module.options, _version(module.__dict__)
        writes_inputs = any(effect.leaf.kind is Kind.INPUT for effect in compiled.captured.effects)
        self._plain = _are_distinct(call.flat) and not writes_inputs and not torch._C._is_any_autocast_enabled()

    def serves(self, module: _Configured, flat: list[Any], structure: Hashable) -> bool:
        """Whether a call runs what the last one ran; shared memory matters only where inputs are written into."""
        return (
            self._plain
            and structure == self._structure
            and (self._guard(*flat) or tuple(map(kind_of, flat)) == self.kinds)
            and self._state.holds()
            and (_version(module.__dict__) == self._version or self._is_configured_alike(module))
            and not torch._C._is_any_autocast_enabled()
            and _are_distinct(flat)
        )

    def ran(self, run: Run) -> None:
        """A call that it serves went the long way."""
        if not self._looked:
            self._run = run

    def straight(self, inputs: int) -> Straight | None:
        """The shortest way for so many flattened inputs, if there is one and a call has gone the long way before."""
        if self._run is not None:
            self._straight, self._run = straight(self.compiled, self.held, inputs, self._run), None
            self._looked = True
        return self._straight

    def _is_configured_alike(self, module: _Configured) -> bool:
        alike = all(map(is_, module.options, self._options))
        if alike:
            self._version = _version(module.__dict__)
        return alike


def _are_distinct(values: Sequence[Any]) -> bool:
    return len(set(map(id, values))) == len(values)
