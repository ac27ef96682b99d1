"""References of the form `module:name`, which is how the command line names the user's own functions."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

from pccompile.demo.errors import CommandLineError

__all__ = ["is_reference", "resolve"]


def is_reference(text: str) -> bool:
    """Whether `text` has the form `module:name`."""
    module, colon, name = text.partition(":")
    return bool(module and colon and name)


def resolve(text: str) -> Callable[..., Any]:
    """Import what `module:name` refers to; modules in the working directory can be imported.

    Args:
        text: the reference; `name` may have dots, as in `models:Small.build`.

    Returns:
        The function or class.

    Raises:
        CommandLineError: no such module, no such name in it, or nothing that can be called.
            What the module itself raises while it is imported is passed on.
    """
    module_name, _, name = text.partition(":")
    working_directory = str(Path.cwd())
    if working_directory not in sys.path:
        sys.path.insert(0, working_directory)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that exists and fails on an import of its own is the user's to see as it is.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise CommandLineError(
            f"{text}: there is no module {error.name}", cure="run from the folder it is in, or install it"
        ) from error
    try:
        found = reduce(getattr, name.split("."), module)
    except AttributeError as error:
        raise CommandLineError(f"{text}: {error}") from error
    if not callable(found):
        raise CommandLineError(f"{text} is a {type(found).__name__}, not a function or a class")
    return found
