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
from importlib.util import find_spec
from pathlib import Path

from bench.steps.contestants import Contestant
from bench.steps.task import Prepared, Task

__all__ = ["PEERS", "peer_contestants"]

PEERS = ("handwritten", "torch2pc", "jpc", "pcx")


def peer_contestants(names: list[str], torch2pc: Path | None) -> list[Contestant]:
    """Those of the named peers that are installed (Torch2PC: whose folder is given)."""
    made = {
        "handwritten": lambda: Contestant("strict", "handwritten loop", _module("handwritten").prepare),
        "torch2pc": lambda: Contestant("strict", "Torch2PC", lambda task: _prepare_torch2pc(task, torch2pc)),
        "jpc": lambda: Contestant("strict", "jpc", lambda task: _module("jax_jpc").prepare(task)),
        "pcx": lambda: Contestant("strict", "pcx", lambda task: _module("jax_pcx").prepare(task)),
    }
    available = {
        "handwritten": True,
        "torch2pc": torch2pc is not None,
        "jpc": find_spec("jpc") is not None,
        "pcx": find_spec("pcx") is not None,
    }
    return [made[name]() for name in names if available[name]]


def _module(name: str):
    return importlib.import_module(f"bench.steps.peers.{name}")


def _prepare_torch2pc(task: Task, folder: Path | None) -> Prepared:
    return _module("torch2pc").prepare(task, folder)
