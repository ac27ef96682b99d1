"""Functions of CUDA tensors recorded once as CUDA graphs and replayed: one launch for all that they launch.

A graph reads and writes the addresses that it was recorded with. An input that is where it was (a parameter, what
another graph wrote) is read there; one that has been seen elsewhere (a batch) is copied to a place of its own first,
all of them in one launch. Numbers are part of what was recorded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import torch

__all__ = ["CudaRecorder", "Recorder", "Replayed", "copies", "copy_together", "recorder_of"]

logger = logging.getLogger("pccompile")

Function = Callable[[list[Any]], Sequence[Any]]  # empties the list

_WARM_UP = 2  # calls before the first recording: libraries choose algorithms and allocate workspaces
_MOST_RECORDINGS = 8
_PLAIN = (torch.Tensor, torch.nn.Parameter)


class Recorder(Protocol):
    """What records the launches of a function on a device."""

    device: torch.device

    def record(self, function: Function, inputs: Sequence[Any]) -> tuple[Callable[[], None], Sequence[Any]]:
        """(what replays them, the function's outputs, which every replay writes anew); nothing runs yet."""


class CudaRecorder:
    """Records CUDA graphs that share their memory and are replayed one after the other."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool: Any = None

    def record(self, function: Function, inputs: Sequence[Any]) -> tuple[Callable[[], None], Sequence[Any]]:
        """See `Recorder`. Draws of the default generator are drawn anew in every replay."""
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(self.device),
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            outputs = function(list(inputs))
        self._pool = graph.pool()
        return graph.replay, outputs


def recorder_of(devices: set[torch.device]) -> Recorder | None:
    """A recorder for what runs on these devices; None unless they are one GPU."""
    if len(devices) != 1:
        return None
    (device,) = devices
    return CudaRecorder(device) if device.type == "cuda" else None


class Replayed:
    """A function of a list of values, which it empties, to a sequence of values: recorded at the third call.

    Every call returns the same tensors with new contents: whoever keeps one has to copy it (see `copies`).

    Args:
        function: launches work on CUDA tensors, without synchronising; it may read numbers among its inputs.
        recorder: records it.
    """

    def __init__(self, function: Function, recorder: Recorder) -> None:
        self.function, self.recorder = function, recorder
        self.recordings = 0
        self._calls = 0
        self._moving: set[int] = set()  # positions of the inputs that have been seen at several addresses
        self._replay: Callable[[], None] | None = None
        self._seen: list[Any] = []
        self._own: dict[int, torch.Tensor] = {}  # the places that inputs are copied to
        self._outputs: Sequence[Any] = ()

    def __call__(self, given: list[Any]) -> Sequence[Any]:
        """The function's outputs for these inputs."""
        self._calls += 1
        seen = [self._place(value) for value in given]
        if self._seen and seen != self._seen:
            self._moving.update(
                position
                for position, (before, now) in enumerate(zip(self._seen, seen, strict=True))
                if before != now and self._is_there(given[position])
            )
        if self._calls <= _WARM_UP or self.recordings > _MOST_RECORDINGS:
            self._seen = seen
            return self.function(given)
        if self._replay is None or self._has_moved(seen):
            self._record(given, seen)
        elif self._own:
            copy_together(list(self._own.values()), [given[position] for position in self._own])
        given.clear()
        assert self._replay is not None
        self._replay()
        return self._outputs

    def _has_moved(self, seen: list[Any]) -> bool:
        """Whether an input that is not copied is not what it was when the function was recorded."""
        return any(
            before != now and position not in self._own
            for position, (before, now) in enumerate(zip(self._seen, seen, strict=True))
        )

    def _record(self, given: list[Any], seen: list[Any]) -> None:
        self.recordings += 1
        if self.recordings > _MOST_RECORDINGS:
            logger.info("no more CUDA graphs of a function whose numbers change from call to call")
        self._replay, self._outputs = None, ()  # their memory is free for the new graph
        self._seen = seen
        self._own = {position: given[position].clone() for position in sorted(self._moving)}
        inputs = [self._own.get(position, value) for position, value in enumerate(given)]
        self._replay, self._outputs = self.recorder.record(self.function, inputs)

    def _is_there(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.device == self.recorder.device

    def _place(self, value: Any) -> Any:
        """The address of a tensor on the device; a number, or a scalar elsewhere, is read when it is recorded."""
        if not isinstance(value, torch.Tensor):
            return value
        return value.data_ptr() if self._is_there(value) or value.dim() else value.item()


def copies(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copies of tensors, of the same strides, in one launch for each dtype."""
    found = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device) for t in tensors]
    copy_together(found, tensors)
    return found


def copy_together(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    """Copy each source into its target; those of one kind in one launch, but for tensors of types of their own."""
    groups: dict[Hashable, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    for target, source in zip(targets, sources, strict=True):
        if type(target) not in _PLAIN or type(source) not in _PLAIN:
            target.copy_(source)
            continue
        kind = target.dtype, target.device, source.dtype, source.device
        into, read = groups.setdefault(kind, ([], []))
        into.append(target)
        read.append(source)
    for into, read in groups.values():
        torch._foreach_copy_(into, read)
