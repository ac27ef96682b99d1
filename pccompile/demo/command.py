"""The commands `demo` and `train`: the same comparison of rules, with and without presets."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from pccompile.demo.data import Data, batch_count, load_data
from pccompile.demo.errors import CommandLineError, require_extra
from pccompile.demo.models import build_model
from pccompile.demo.options import OPTIMIZERS, RULES, Options, find_loss
from pccompile.demo.training import RuleResult, train_rules

if TYPE_CHECKING:
    from rich.console import Console

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["DEFAULT_EPOCHS", "DEFAULT_RULES", "add_demo", "add_train", "compare_rules"]

# The demo in two to three minutes on two CPU cores.
DEFAULT_EPOCHS = 6
DEFAULT_RULES = ("autograd", "zil", "fixed-prediction", "strict")

DEMO_EXAMPLES = """\
examples:
  pccompile demo
  pccompile demo --data digits --epochs 20 --rule autograd --rule strict --steps 50
  pccompile demo --data fashion /usr/share/datasets/fashion-mnist --model mlp
"""

TRAIN_EXAMPLES = """\
examples:
  pccompile train my_models:make_model --data my_data:make_data
  pccompile train my_models:Autoencoder --data my_data:make_data --loss mse --learning-rate 0.01
  pccompile train my_models:make_model --data mnist5k --rule autograd --rule zil --epochs 10

A model's factory takes nothing and returns an nn.Module. A data set's factory takes nothing and returns two
torch data sets (train, test) of pairs (input, target), or four tensors (train_x, train_y, test_x, test_y).
"""


def add_demo(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Add `demo`: a small network on MNIST."""
    parser = subparsers.add_parser(
        "demo",
        help="train a small network on MNIST under several rules, side by side",
        description="Train a small network on MNIST under several rules, all on the same batches.",
        epilog=DEMO_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="cnn", help="cnn, mlp or module:factory (default: cnn)")
    _add_options(parser, data=["mnist5k"])
    parser.set_defaults(run=compare_rules, command="demo")
    return parser


def add_train(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Add `train`: the user's model on the user's data."""
    parser = subparsers.add_parser(
        "train",
        help="the same for a model and a data set of your own",
        description="Train your model under several rules, all on the same batches.",
        epilog=TRAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="module:factory, cnn or mlp")
    _add_options(parser, data=None)
    parser.set_defaults(run=compare_rules, command="train")
    return parser


def compare_rules(arguments: argparse.Namespace) -> int:
    """Train under every rule asked for, print the table, save the files; returns the exit code 0.

    Raises:
        PCCompileError: an option, the model or the data cannot be used, or a rule cannot train the model.
    """
    require_extra("rich", "matplotlib")
    from rich.console import Console

    from pccompile.demo.report import Comparison, results_table, save

    rules = list(dict.fromkeys(arguments.rule or DEFAULT_RULES))  # each once, in order
    options = _options(arguments)
    data = load_data(arguments.data, options.seed)
    model = build_model(arguments.model, data, options.seed)
    find_loss(options.loss)  # a wrong name is told before the training
    folder = _make_folder(arguments)

    console = Console()
    comparison = Comparison(
        data=data.name,
        model=arguments.model,
        train_samples=len(data.train),  # type: ignore[arg-type]
        test_samples=len(data.test),  # type: ignore[arg-type]
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        options=options,
        results=_train_with_progress(rules, model, data, options, console),
    )
    files = save(comparison, folder)
    console.print(results_table(comparison))
    # Not through rich, which would break a long path into lines.
    print(f"saved to {folder}: {', '.join(file.name for file in files)}")
    return 0


def _number(kind: Callable[[str], float], valid: Callable[[float], bool], wanted: str) -> Callable[[str], float]:
    """A parser of an option's number, which says what is wanted when it gets something else."""

    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not valid(number):
            raise argparse.ArgumentTypeError(f"{text} is not {wanted}")
        return number

    return parse


_positive_integer = _number(int, lambda number: number >= 1, "a positive integer")
_natural = _number(int, lambda number: number >= 0, "an integer of 0 or more")
_positive = _number(float, lambda number: 0 < number < math.inf, "a positive number")


def _add_options(parser: argparse.ArgumentParser, data: list[str] | None) -> None:
    """Add the options that both commands have; the data set is required where it has no default."""
    parser.add_argument(
        "--data",
        nargs="+",
        default=data,
        required=data is None,
        metavar=("NAME", "FOLDER"),
        help="digits, mnist5k, fashion FOLDER (Fashion-MNIST's four *-ubyte.gz files) or module:factory"
        + (f" (default: {' '.join(data)})" if data else ""),
    )
    parser.add_argument(
        "--rule",
        action="append",
        choices=list(RULES),
        help=f"may be given several times (default: {', '.join(DEFAULT_RULES)})",
    )
    parser.add_argument("--loss", default="cross_entropy", help="cross_entropy (default), mse or module:function")
    parser.add_argument("--optimizer", choices=list(OPTIMIZERS), default="adam", help="default: adam")
    for flag, kind, default, meaning in (
        ("--epochs", _positive_integer, DEFAULT_EPOCHS, "passes over the training samples"),
        ("--batch-size", _positive_integer, 300, "samples in a training step"),
        ("--learning-rate", _positive, 0.002, "of the optimizer"),
        ("--steps", _positive_integer, 20, "inference steps of fixed prediction, strict and incremental"),
        ("--step-size", _positive, 0.1, "of their inference steps"),
        ("--seed", _natural, 0, "of the weights, the split and the order of the samples"),
    ):
        parser.add_argument(flag, type=kind, default=default, metavar="N", help=f"{meaning} (default: {default})")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, mps, ...")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where results are saved (default: a new folder here)"
    )


def _options(arguments: argparse.Namespace) -> Options:
    try:
        torch.zeros((), device=arguments.device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise CommandLineError(f"--device {arguments.device}: {reason}", cure="--device cpu") from error
    return Options(
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        steps=arguments.steps,
        step_size=arguments.step_size,
        optimizer=arguments.optimizer,
        loss=arguments.loss,
        device=arguments.device,
        seed=arguments.seed,
    )


def _make_folder(arguments: argparse.Namespace) -> Path:
    """Make the folder before the training, so that none is lost for want of it."""
    folder = arguments.out or Path(f"pccompile-{arguments.command}-{datetime.now():%Y%m%d-%H%M%S}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandLineError(f"--out {folder}: {error.strerror}") from error
    return Path(folder).resolve()


def _train_with_progress(
    rules: Sequence[str], model: nn.Module, data: Data, options: Options, console: Console
) -> list[RuleResult]:
    """Train under all rules, with a bar for each."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    steps = options.epochs * batch_count(data.train, options.batch_size)
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]:>12}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bars = {rule: progress.add_task(rule, total=steps, loss="") for rule in rules}

        def show(rule: str, loss: float) -> None:
            progress.update(bars[rule], advance=1, loss=f"loss {loss:.4f}")

        return train_rules(rules, model, data, options, show)
