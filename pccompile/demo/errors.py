"""What can go wrong before and between training steps, besides the compiler's own errors."""

from __future__ import annotations

import importlib

from pccompile.errors import PCCompileError, UsageError

__all__ = ["CommandLineError", "MissingExtraError", "UnusableInputError", "require_extra"]


class CommandLineError(UsageError):
    """An option's value does not name anything, or does not go with the others."""

    summary = "the command line asks for something that cannot be done"


class MissingExtraError(UsageError):
    """A package of the `demo` extra is not installed."""

    summary = "an optional package is missing"
    cure = 'pip install "pccompile[demo]"'


class UnusableInputError(PCCompileError):
    """A model or a data set, the user's own or read from files, is not what training needs."""

    summary = "the model or the data cannot be used"


def require_extra(*modules: str) -> None:
    """Check that packages of the `demo` extra can be imported.

    Args:
        modules: names as they are imported, such as "sklearn".

    Raises:
        MissingExtraError: naming the first that cannot be, and the pip command that installs it.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise MissingExtraError(f"{module} is needed here: {error}") from error
