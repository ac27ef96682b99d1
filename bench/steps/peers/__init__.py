"""Other ways to run strict inference learning, on models that are a chain of layers.

Each module has `prepare(task) -> Prepared`. They compute the same thing: T steps of size eta from the feed-forward
pass, a value after each block of layers, one plain SGD step of the parameters.

handwritten   a loop in plain PyTorch, as one would write it
torch2pc      Torch2PC's PCInfer; its rule differs a little (see `TORCH2PC_RULE`), and so does its reference
jax_jpc       jpc
jax_pcx       pcx
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from bench.steps.contestants import Contestant
from bench.steps.task import Prepared, Task

__all__ = ["PEERS", "peer_contestants"]

PEERS = ("handwritten", "torch2pc", "jpc", "pcx")


def peer_contestants(names: Sequence[str], torch2pc: Path | None) -> list[Contestant]:
    """The named peers; those that are not installed (Torch2PC: whose folder is not given) say so."""
    found = {"handwritten": Contestant("strict", "handwritten loop", _prepare("handwritten"))}
    prepare = _prepare("torch2pc")
    missing = "" if torch2pc is not None else "its folder was not given (--torch2pc)"
    found["torch2pc"] = Contestant("strict", "Torch2PC", lambda task: prepare(task, torch2pc), missing)
    for name in ("jpc", "pcx"):
        missing = "" if find_spec(name) is not None else f"{name} is not installed"
        found[name] = Contestant("strict", name, _prepare(f"jax_{name}"), missing)
    return [found[name] for name in names]


def _prepare(module: str) -> Callable[..., Prepared]:
    """A module's `prepare`, imported when it is called: JAX takes seconds."""

    def prepare(task: Task, *more: object) -> Prepared:
        made: Prepared = importlib.import_module(f"bench.steps.peers.{module}").prepare(task, *more)
        return made

    return prepare
