"""Which parts of the campaign are done, for which sources, device and tuned tables."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.gpu.work import Outcome, Status

__all__ = ["ROOT", "Key", "State", "digest"]

ROOT = Path(__file__).parent.parent.parent
SOURCES = ("pccompile", "kernels", "bench", "tests")


@dataclass(frozen=True)
class Key:
    """What results hold for. Results of another commit, of changed sources, of another device or under other tuned
    tables are none of this campaign's.

    Attributes:
        commit: git's, or "unknown".
        sources: a digest of the sources.
        device: the GPU's name.
        tuned: a digest of $PCCOMPILE_TUNED_DIR; "" without one.
        torch, triton: their versions.
    """

    commit: str
    sources: str
    device: str
    tuned: str
    torch: str
    triton: str

    @classmethod
    def here(cls) -> Key:
        """That of this checkout on this machine's GPU."""
        import torch

        from bench.steps.machine import versions

        found = versions()
        python = (path for name in SOURCES for path in (ROOT / name).rglob("*.py"))
        tables = [*(ROOT / "kernels" / "tuned").glob("*.json")]
        folder = os.environ.get("PCCOMPILE_TUNED_DIR")
        tuned = digest(Path(folder).glob("*.json")) if folder else ""
        return cls(
            found.get("commit", "unknown").split()[0],
            digest([*python, *tables]),
            torch.cuda.get_device_name(),
            tuned,
            found["torch"],
            found.get("triton", "none"),
        )


def digest(paths: Iterable[Path]) -> str:
    """Of the contents and names of files, whatever order they come in."""
    whole = hashlib.sha256()
    for path in sorted(paths):
        whole.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return whole.hexdigest()[:12]


@dataclass
class State:
    """The state file of an output folder.

    Attributes:
        folder: where it is.
        key: what it holds for, as a dict.
        parts: how the last run of each part ended.
        command: the one that began it.
        ignored: whether failures were ignored.
    """

    folder: Path
    key: dict[str, Any]
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    command: str = ""
    date: str = ""
    ignored: bool = False

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / "state.json"

    @classmethod
    def at(cls, folder: Path, key: Key) -> State:
        """Go on with a folder's state if it is for the same key; else a new one."""
        found = cls.read(folder)
        return found if found is not None and found.key == asdict(key) else cls(folder, asdict(key))

    @classmethod
    def read(cls, folder: Path) -> State | None:
        """A folder's state, or None."""
        try:
            content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            return cls(folder, **content)
        except (OSError, ValueError, TypeError):
            return None

    def status(self, part: str) -> Status | None:
        """How the part's last run ended; None: it has not run."""
        found = self.parts.get(part)
        return Status(found["status"]) if found else None

    def put(self, part: str, outcome: Outcome) -> None:
        """Note how a part ended."""
        self.parts[part] = asdict(outcome)
        self.save()

    def forget(self, part: str) -> None:
        """The part has not run, and none of its items are kept."""
        self.parts.pop(part, None)
        (self.folder / "parts" / f"{part}.json").unlink(missing_ok=True)

    def save(self) -> None:
        """Write the file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {name: value for name, value in vars(self).items() if name != "folder"}
        self.path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
