"""A program written out as flat graphs for inputs of one kind: stages, and the tensors that they bring up to date."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from operator import itemgetter
from typing import Any
from weakref import ref

import torch

from pccompile.backends.cudagraph import Recorder, Replayed, copies
from pccompile.backends.executables import Executable
from pccompile.backends.run import State
from pccompile.derivatives import Value
from pccompile.lowering import Quantity
from pccompile.lowering.expand import Expansion, FlatPiece, Key
from pccompile.lowering.fragments import may_be_alias

__all__ = ["FlatState", "Plan", "Stage", "Sweep", "keys_of", "laid_out", "mask_of"]

_BelowAutograd = torch._C._AutoDispatchBelowAutograd


@dataclass
class Stage:
    """A piece that runs.

    Attributes:
        executable: takes the tensors of `piece.inputs` and gives those of `piece.outputs`.
        places: where every quantity is that is up to date after it, beside gradients.
        last_reads: the inputs that nothing after this stage reads.
    """

    piece: FlatPiece
    executable: Executable
    places: dict[Quantity, tuple[Any, ...] | None]
    last_reads: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        piece, self._call = self.piece, self.executable.call
        self._replayed: Replayed | None = None
        self._given = _getter(piece.inputs)
        outputs = {key: position for position, key in enumerate(piece.outputs)}
        self._carried = [(place, outputs[key]) for place, key in enumerate(piece.inputs) if key in outputs]
        self.gradients = {
            name: parts[0]
            for (kind, name), parts in piece.results.items()
            if kind == "gradient" and parts is not None and isinstance(parts[0], Key)
        }

    def run(self, tensors: dict[str, Any], release: bool, times: int = 1, recorder: Recorder | None = None) -> None:
        """Bring the tensors up to date.

        Args:
            tensors: by key.
            release: let those go, while it runs, that nothing reads afterwards.
            times: how often a loop's body runs.
            recorder: records what is launched, and replays it.
        """
        enabled = torch.is_grad_enabled()
        torch._C._set_grad_enabled(True)  # some operators keep what their derivative needs only then
        try:
            with _BelowAutograd():
                self.advance(tensors, release, times, recorder)
        finally:
            torch._C._set_grad_enabled(enabled)

    def advance(self, tensors: dict[str, Any], release: bool, times: int, recorder: Recorder | None = None) -> None:
        """`run`, in the dispatch state that it sets."""
        given = list(self._given(tensors))
        if release:
            for key in self.last_reads:
                del tensors[key]
        call = self._call
        if times > 1 or recorder is not None:
            given.append(times)
            call = self._repeated if recorder is None else self._recorded(recorder)
        found = call(given)
        tensors.update(zip(self.piece.outputs, found, strict=True))

    def _recorded(self, recorder: Recorder) -> Replayed:
        self._replayed = self._replayed or Replayed(self._repeated, recorder)
        return self._replayed

    def _repeated(self, given: list[Any]) -> tuple[Any, ...]:
        """What it brings up to date after as many runs as the last input says."""
        times: int = given.pop()
        for _ in range(times - 1):
            taken = list(given)
            for place, _ in self._carried:
                given[place] = None  # the step may let go of it
            found = self._call(taken)
            for place, source in self._carried:
                given[place] = found[source]
        last: tuple[Any, ...] = self._call(given)
        return last


class FlatState(State):
    """The quantities of a run, read from its tensors when somebody asks.

    Attributes:
        plan: what wrote the tensors.
        tensors: by key.
        places: the parts of each quantity: keys, and what is no tensor itself.
        recorder: what recorded how the tensors came about, and will write into them again.
        shown: what is read in their stead.
    """

    def __init__(
        self,
        plan: Plan,
        tensors: dict[str, Any],
        places: Mapping[Quantity, tuple[Any, ...] | None],
        recorder: Recorder | None = None,
    ) -> None:
        super().__init__()
        self.plan, self.tensors, self.places, self.recorder = plan, tensors, places, recorder
        self.shown = tensors

    def __missing__(self, quantity: Quantity) -> tuple[Any, ...] | None:
        parts = self.places[quantity]
        return None if parts is None else tuple([self.shown[p] if isinstance(p, Key) else p for p in parts])

    def copied(self) -> FlatState:
        """The same state, for a run that leaves this one as it is."""
        return FlatState(self.plan, dict(self.tensors), self.places, self.recorder)

    def show_copies(self) -> None:
        """Read copies of what is there now."""
        keys = [key for key in keys_of(self.places.values()) if isinstance(self.tensors[key], torch.Tensor)]
        self.shown = {**self.tensors, **dict(zip(keys, copies([self.tensors[key] for key in keys]), strict=True))}

    def get(self, quantity: Quantity, default: Any = None) -> Any:
        """A quantity, or the default: unlike a dict's own, of what is only in the tensors yet as well."""
        return self[quantity] if quantity in self.places else super().get(quantity, default)


def _getter(keys: tuple[str, ...]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    """Reads several keys of a mapping at once."""
    if len(keys) > 1:
        return itemgetter(*keys)
    return lambda mapping: tuple(mapping[key] for key in keys)


@dataclass
class Plan:
    """A program written out for inputs of one kind.

    Attributes:
        recorder: what can record the launches of its stages; None where nothing can.
    """

    expansion: Expansion
    prediction: Stage
    sweeps: dict[Hashable, Sweep]
    recorder: Recorder | None

    def __post_init__(self) -> None:
        self.scalars = self.expansion.scalars
        self._recorded: Callable[[], FlatState | None] = lambda: None
        self._keys = tuple(self.expansion.keys.values())
        self._given = _getter(tuple(self.expansion.keys))

    def tensors(self, clamped: Mapping[str, Value]) -> dict[str, Any]:
        """The values of the clamped vertices, which have one component each, by key."""
        return dict(zip(self._keys, chain.from_iterable(self._given(clamped)), strict=True))

    def free_recorder(self) -> Recorder | None:
        """What records its launches, unless another run's tensors are still to be read where they were recorded."""
        return self.recorder if self._recorded() is None else None

    def state(self, tensors: dict[str, Any], recorder: Recorder | None) -> FlatState:
        """The state after the prediction."""
        state = FlatState(self, tensors, self.prediction.places, recorder)
        if recorder is not None:
            state.show_copies()
            self._recorded = ref(state)
        return state

    def finish(self, state: FlatState) -> None:
        """Nothing will be read of a state any more."""
        if self._recorded() is state:
            self._recorded = lambda: None

    @cached_property
    def consumed(self) -> frozenset[str]:
        """See `AtenBackend.consumed`; a sweep for fewer outputs reads no more than that for all of them."""
        graph = self.prediction.piece.graph
        kept = {key for sweep in self.sweeps.values() for stage in sweep.stages for key in stage.piece.inputs}
        for node in graph.find_nodes(op="placeholder"):
            if any(user.op == "output" or may_be_alias(user) for user in node.users):
                kept.add(str(node.target))
        return frozenset(vertex for vertex, key in self.expansion.keys.items() if key not in kept)

    @property
    def stages(self) -> list[Stage]:
        """Everything that runs, in order, one error sweep after the other."""
        return [self.prediction, *(stage for sweep in self.sweeps.values() for stage in sweep.stages)]


@dataclass
class Sweep:
    """The error sweep for a set of outputs that have an error: where each error goes, and the layout it must have.

    Attributes:
        unread: keys of what the prediction sweep gives that none of the stages reads: outputs, if the loss is inside.
        entries: the key and strides of the error of every component of an output vertex.
    """

    stages: list[Stage]
    keys: dict[str, tuple[str | None, ...]]
    layouts: dict[str, tuple[Any, ...]]
    unread: tuple[str, ...]

    def __post_init__(self) -> None:
        self.gradients = {name: key for stage in self.stages for name, key in stage.gradients.items()}
        self.entries = {
            name: [(key, like.stride() if key else ()) for key, like in zip(keys, self.layouts[name], strict=True)]
            for name, keys in self.keys.items()
        }

    def enter(self, errors: Mapping[str, Value]) -> dict[str, torch.Tensor]:
        """The errors by key."""
        found: dict[str, torch.Tensor] = {}
        for name, parts in errors.items():
            for (key, strides), part in zip(self.entries[name], parts, strict=True):
                if key is not None:
                    found[key] = part if part.stride() == strides else laid_out(part, strides)
        return found


def keys_of(quantities: Iterable[tuple[Any, ...] | None]) -> set[str]:
    """The keys of the tensors among the parts of quantities."""
    return {key for parts in quantities for key in parts or () if isinstance(key, Key)}


def mask_of(errors: Mapping[str, Value]) -> Hashable:
    """Which of the output vertices' components have an error: what `Plan.sweeps` goes by."""
    return tuple((name, tuple(part is None for part in parts)) for name, parts in errors.items())


def laid_out(part: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
    """A copy with these strides."""
    return torch.empty_strided(part.shape, strides, dtype=part.dtype, device=part.device).copy_(part)
