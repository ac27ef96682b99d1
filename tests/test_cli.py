"""The command line's help, exit codes and messages."""

import subprocess
import sys

import pytest

from pccompile import cli
from pccompile.cli import FAILURE, OK, USAGE, main
from pccompile.errors import CaptureError, UsageError

COMMANDS = ("demo", "train", "inspect", "check", "cost")


@pytest.mark.parametrize("words", [["--help"], *([command, "--help"] for command in COMMANDS)], ids=str)
def test_help_shows_examples(words, capsys):
    assert main(words) == OK
    assert "examples:\n  pccompile " in capsys.readouterr().out


def test_help_documents_commands_and_exit_codes(capsys):
    main(["--help"])
    text = capsys.readouterr().out
    for part in (*COMMANDS, "exit codes:"):
        assert part in text


def test_version_names_the_program(capsys):
    assert main(["--version"]) == OK
    assert capsys.readouterr().out.startswith("pccompile ")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "required: COMMAND"),
        (["paint"], "invalid choice: 'paint'"),
        (["demo", "--epochs", "0"], "0 is not a positive integer"),
        (["demo", "--epochs", "many"], "many is not a positive integer"),
        (["demo", "--step-size", "nan"], "nan is not a positive number"),
        (["demo", "--seed", "-1"], "-1 is not an integer of 0 or more"),
        (["demo", "--rule", "hebb"], "invalid choice: 'hebb'"),
        (["demo", "--data", "cifar"], "there is no data set 'cifar'"),
        (["demo", "--data", "digits", "--model", "resnet"], "there is no model 'resnet'"),
        (["demo", "--data", "digits", "--loss", "hinge"], "there is no loss 'hinge'"),
        (["demo", "--device", "nonsense"], "--device nonsense"),
        (["demo", "--data", "digits", "--out", "/dev/null/out"], "--out /dev/null/out"),
        (["train", "no_such_module:make", "--data", "digits"], "there is no module no_such_module"),
        (["train", "models:make"], "required: --data"),
        (["train", "--data", "digits"], "required: MODEL"),
    ],
)
def test_a_command_line_that_cannot_be_followed_exits_with_2_and_says_why(words, told, capsys):
    assert main(words) == USAGE
    message = capsys.readouterr().err
    assert told in message
    assert "Traceback" not in message


@pytest.mark.parametrize("module", ["rich", "matplotlib", "sklearn.datasets"])
def test_a_missing_extra_exits_with_2_and_the_pip_command(module, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["demo", "--data", "digits"]) == USAGE
    message = capsys.readouterr().err
    assert module in message
    assert 'pip install "pccompile[demo]"' in message


def command_that_raises(error):
    """A command `fail`, added the way further commands are."""

    def run(arguments):
        raise error

    def add(subparsers):
        parser = subparsers.add_parser("fail")
        parser.set_defaults(run=run)
        return parser

    return add


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (CaptureError("a branch on data"), FAILURE, "a branch on data"),
        (UsageError("no loss"), USAGE, "no loss"),
        (ValueError("a bad shape"), FAILURE, "ValueError: a bad shape"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_become_messages_and_exit_codes(error, code, told, monkeypatch, capsys):
    monkeypatch.setattr(cli, "COMMANDS", (command_that_raises(error),))
    assert main(["fail"]) == code
    message = capsys.readouterr().err
    assert told in message
    assert "Traceback" not in message


@pytest.mark.parametrize("words", [["--debug", "fail"], ["fail", "--debug"]])
def test_debug_shows_the_traceback_on_either_side_of_the_command(words, monkeypatch, capsys):
    monkeypatch.setattr(cli, "COMMANDS", (command_that_raises(ValueError("a bad shape")),))
    assert main(words) == FAILURE
    assert "Traceback" in capsys.readouterr().err


def test_the_package_runs_as_a_program():
    command = [sys.executable, "-m", "pccompile", "demo", "--data", "cifar"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == USAGE
    assert "cifar" in finished.stderr
