"""The user's source line behind an FX node or an exception."""

from __future__ import annotations

import linecache
import os
import re
import traceback
from types import TracebackType

import torch

__all__ = ["source_of_exception", "source_of_stack"]

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)')
_TORCH = os.path.dirname(torch.__file__) + os.sep
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def source_of_stack(stack_trace: str | None) -> str:
    """The innermost line of a node's stack trace that is the user's: "net.py:12 in forward: x = self.fc(x)".

    Empty if there is none.
    """
    frames = [match.groupdict() for match in _FRAME.finditer(stack_trace or "")]
    for frame in reversed(frames):
        if _is_users(frame["file"]):
            return _describe(frame["file"], int(frame["line"]), frame["function"])
    return ""


def source_of_exception(trace: TracebackType | None) -> str:
    """The innermost line of a traceback that is the user's; empty if there is none."""
    for frame in reversed(traceback.extract_tb(trace)):
        if _is_users(frame.filename) and frame.name != "<module>":
            return _describe(frame.filename, frame.lineno or 0, frame.name)
    return ""


def _is_users(file: str) -> bool:
    return not file.startswith((_TORCH, _OURS)) and not file.startswith("<") and "importlib" not in file


def _describe(file: str, line: int, function: str) -> str:
    text = linecache.getline(file, line).strip()
    return f"{os.path.basename(file)}:{line} in {function}" + (f": {text}" if text else "")
