"""The command line: `pccompile COMMAND ...`, also `python -m pccompile COMMAND ...`.

Every command is a function in its own file that adds its parser to the subparsers and sets `run`, which takes
the parsed arguments and returns an exit code. To add a command, write that file and list its function
in `COMMANDS`.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import TYPE_CHECKING

from pccompile.demo import add_demo, add_train
from pccompile.errors import PCCompileError, UsageError
from pccompile.inspection.command import add_check, add_cost, add_inspect

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["COMMANDS", "FAILURE", "OK", "USAGE", "main"]

OK, FAILURE, USAGE, INTERRUPTED = 0, 1, 2, 130

COMMANDS: tuple[Callable[[Subparsers], argparse.ArgumentParser], ...] = (
    add_demo,
    add_train,
    add_inspect,
    add_check,
    add_cost,
)

DESCRIPTION = "The predictive-coding compiler for PyTorch."

EPILOG = """\
examples:
  pccompile demo                                    MNIST, four rules side by side (two to three minutes)
  pccompile demo --data digits --epochs 10          a smaller data set (seconds)
  pccompile train my_models:make_model --data my_data:make_data --rule autograd --rule zil
  pccompile inspect my_models:make_model --input 1x3x32x32 --html out.html
  pccompile check my_models:make_model --input 8x3x32x32
  pccompile cost my_models:make_model --input 8x3x32x32 --rule strict --steps 20
  pccompile COMMAND --help                          the options of a command

exit codes:
  0  done
  1  the model or the data failed
  2  the command line asks for something that cannot be done
  3  check: a gradient differs from autograd's by more than the tolerance
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the words after the program's name; None takes the process's own.

    Returns:
        0 when done, 1 when the user's model or data failed, 2 when the command line cannot be followed,
        130 when interrupted. Failures are told on stderr, with a traceback only under `--debug`.
    """
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed its help (0) or its complaint (2)
        return stop.code if isinstance(stop.code, int) else USAGE
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # whatever the user's model or data raises
        if arguments.debug:
            traceback.print_exc()
        else:
            print(_message(error), file=sys.stderr)
        return USAGE if isinstance(error, UsageError) else FAILURE


def _parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="pccompile",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pccompile {_version()}")
    debug_help = "show the traceback of an error"
    parser.add_argument("--debug", action="store_true", help=debug_help)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add_command in COMMANDS:
        # Suppressed default: `pccompile --debug demo` must not be undone by the command's own, absent flag.
        add_command(subparsers).add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=debug_help)
    return parser


def _version() -> str:
    try:
        return metadata.version("pccompile")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _message(error: Exception) -> str:
    """An error in words: pccompile's own as they are, any other with its type, and the notes of both."""
    known = isinstance(error, PCCompileError)
    text = str(error) if known else f"{type(error).__name__}: {error}"
    notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
    hint = "" if known else "\n  (--debug shows the traceback)"
    return f"error: {text}{notes}{hint}"
