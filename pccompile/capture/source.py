"""The user's source line behind an FX node or an exception."""

from __future__ import annotations

import inspect
import linecache
import os
import re
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch

__all__ = ["describe", "is_users", "source_of_exception", "source_of_function", "source_of_stack"]

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)')
_TORCH = os.path.dirname(torch.__file__) + os.sep
_STANDARD = os.path.dirname(os.__file__) + os.sep
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def source_of_stack(stack_trace: str | None) -> str:
    """The innermost line of a node's stack trace that is the user's: "net.py:12 in forward: x = self.fc(x)".

    Empty if there is none.
    """
    frames = [match.groupdict() for match in _FRAME.finditer(stack_trace or "")]
    for frame in reversed(frames):
        if is_users(frame["file"]):
            return describe(frame["file"], int(frame["line"]), frame["function"])
    return ""


def source_of_exception(trace: TracebackType | None) -> str:
    """The innermost line of a traceback that is the user's; empty if there is none."""
    for frame in reversed(traceback.extract_tb(trace)):
        if is_users(frame.filename) and frame.name != "<module>":
            return describe(frame.filename, frame.lineno or 0, frame.name)
    return ""


def is_users(file: str) -> bool:
    """Whether a source file is the user's: neither Python's, nor PyTorch's, nor this library's."""
    standard = file.startswith(_STANDARD) and "site-packages" not in file
    return not standard and not file.startswith((_TORCH, _OURS, "<"))


def describe(file: str, line: int, function: str) -> str:
    """A source line as errors show it: "net.py:12 in forward: x = self.fc(x)"."""
    text = linecache.getline(file, line).strip()
    return f"{os.path.basename(file)}:{line} in {function}" + (f": {text}" if text else "")


def source_of_function(function: Callable[..., Any]) -> str:
    """Where a function is written; empty for what is not written in Python."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return describe(code.co_filename, code.co_firstlineno, code.co_name) if code is not None else ""
