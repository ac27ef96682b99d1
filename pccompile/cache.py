"""What is worth keeping from one process to the next: small files, by the digest of what they depend on.

The folder is `$PCCOMPILE_CACHE_DIR`, else `pccompile` in `$XDG_CACHE_HOME` or `~/.cache`. An entry carries its own
digest: one that is damaged is removed and made again. It appears whole or not at all, so several processes may write at
once; the last one stays. Nothing here fails: without a folder to write to, nothing is kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch

__all__ = ["digest", "folder", "load", "store"]

logger = logging.getLogger("pccompile")


def folder() -> Path:
    """Where entries lie; it need not exist."""
    chosen = os.environ.get("PCCOMPILE_CACHE_DIR")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pccompile"


def digest(*parts: object) -> str:
    """The key of what depends on these parts, and on the versions and the machine that are always asked for."""
    machine = platform.machine(), platform.processor(), torch.get_num_threads(), _devices()
    return _sha256(repr(("1", torch.__version__, platform.python_version(), machine, parts)).encode())


def load(key: str) -> Any:
    """The entry of a key; None if there is none, or a damaged one, which is removed."""
    path = folder() / f"{key}.json"
    try:
        expected, _, content = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    try:
        if _sha256(content).encode() != expected:
            raise ValueError("its digest is another")
        return json.loads(content)
    except ValueError as error:
        logger.info("%s is damaged and removed: %s", path, error)
        path.unlink(missing_ok=True)
        return None


def store(key: str, entry: Any) -> None:
    """Keep an entry that JSON can express."""
    content = json.dumps(entry).encode()
    try:
        folder().mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder(), prefix=key[:16], delete=False) as file:
            file.write(_sha256(content).encode() + b"\n" + content)
        os.replace(file.name, folder() / f"{key}.json")
    except OSError as error:
        logger.info("nothing is kept in %s: %s", folder(), error)


def _devices() -> list[str]:
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
