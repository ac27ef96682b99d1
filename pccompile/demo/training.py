"""Train a model under several rules side by side, and measure: curves, divergence from autograd, time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import pccompile
from pccompile.demo.data import Batch, Data, batch_count, training_batches
from pccompile.demo.options import RULES, Loss, Options, are_classes, find_loss, make_optimizer

__all__ = ["Divergence", "Evaluation", "RuleResult", "evaluate", "train_rules"]


@dataclass(frozen=True)
class Evaluation:
    """The test set's mean loss, and its accuracy in [0, 1] where the targets are classes."""

    loss: float
    accuracy: float | None


@dataclass(frozen=True)
class Divergence:
    """How far a rule's gradient is from autograd's, on the batch of one step and at the weights before it.

    Attributes:
        relative_error: of all parameters together, |g - g_autograd| / |g_autograd|.
        max_relative_error: the largest of a parameter.
        max_angle: the largest of a parameter, in radians.
        bit_equal: whether every number is the same.
    """

    relative_error: float
    max_relative_error: float
    max_angle: float
    bit_equal: bool


@dataclass(frozen=True)
class RuleResult:
    """What came of training under one rule.

    Attributes:
        rule: a key of RULES.
        losses: training loss of every step, before its update.
        evaluations: on the test set, before training and after every epoch.
        first, last: divergence from autograd at the first and at the last step; None for autograd itself, and for
            the incremental rule, whose parameters move during inference, so that it has no one gradient.
        seconds_per_step: median.
        program: the emitted program as a table; None for autograd.
        code: the Python that it was lowered to; None for autograd.
    """

    rule: str
    losses: list[float]
    evaluations: list[Evaluation]
    first: Divergence | None
    last: Divergence | None
    seconds_per_step: float
    program: str | None
    code: str | None


def train_rules(
    rules: Sequence[str],
    model: nn.Module,
    data: Data,
    options: Options,
    on_step: Callable[[str, float], None],
) -> list[RuleResult]:
    """Train a copy of a model under each rule, in lockstep: every rule takes a step on a batch, then the next batch.

    So a machine that is slow for a while is slow for all rules alike, and their times stay comparable.

    Args:
        rules: keys of RULES, each once.
        model: the initial weights, which stay as they are.
        data: what to train on and test with.
        options: how all of them train.
        on_step: told the rule and its training loss after every step.

    Raises:
        PCCompileError: a rule cannot train this model. A note on any error says which rule was training.
    """
    trainings = [_Training(rule, model, options) for rule in rules]
    last_step = options.epochs * batch_count(data.train, options.batch_size) - 1
    step = 0
    for training in trainings:
        training.test(data.test)
    for epoch in range(options.epochs):
        for batch in training_batches(data.train, options.batch_size, options.seed, epoch):
            for training in trainings:
                on_step(training.rule, training.step(batch, compare=step in (0, last_step)))
            step += 1
        for training in trainings:
            training.test(data.test)
    return [training.result() for training in trainings]


class _Training:
    """A copy of a model on its way under one rule, and what has been measured so far."""

    def __init__(self, rule: str, model: nn.Module, options: Options) -> None:
        self.rule, self.options = rule, options
        self.model = deepcopy(model).to(options.device)
        self.loss_fn = find_loss(options.loss)
        self.optimizer = make_optimizer(self.model, options)
        make_rule = RULES[rule]
        self.compiled = None if make_rule is None else pccompile.compile(self.model, make_rule(options), self.loss_fn)
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.divergences: list[Divergence] = []
        self.evaluations: list[Evaluation] = []

    def step(self, batch: Batch, compare: bool) -> float:
        """Train on a batch and return its loss; beforehand, if asked to, compare the gradient with autograd's."""
        inputs, targets = batch.inputs.to(self.options.device), batch.targets.to(self.options.device)
        torch.manual_seed(batch.seed)
        with _noting(f"while training with {self.rule}"):
            if compare and self.compiled is not None and self.rule != "incremental":
                self.divergences.append(_divergence(self.compiled, inputs, targets))
            _synchronize(self.options.device)
            started = perf_counter()
            if self.compiled is None:
                loss = _autograd_step(self.model, self.loss_fn, inputs, targets, self.optimizer)
            else:
                loss = self.compiled.step(inputs, targets, self.optimizer)
            _synchronize(self.options.device)
        self.seconds.append(perf_counter() - started)
        self.losses.append(loss.item())
        return self.losses[-1]

    def test(self, dataset: Dataset[Any]) -> None:
        """Evaluate on the test set, and go back to training mode."""
        with _noting(f"while testing the model trained with {self.rule}"):
            self.evaluations.append(evaluate(self.model, dataset, self.loss_fn, self.options))
        (self.compiled or self.model).train()

    def result(self) -> RuleResult:
        """The measurements."""
        program = None if self.compiled is None else self.compiled.program
        return RuleResult(
            self.rule,
            self.losses,
            self.evaluations,
            first=self.divergences[0] if self.divergences else None,
            last=self.divergences[-1] if self.divergences else None,
            seconds_per_step=median(self.seconds),
            program=None if program is None else str(program),
            code=None if program is None else program.code,
        )


@contextmanager
def _noting(note: str) -> Iterator[None]:
    """Add a note to whatever is raised inside."""
    try:
        yield
    except Exception as error:
        error.add_note(note)
        raise


def _autograd_step(
    model: nn.Module, loss_fn: Loss, inputs: Tensor, targets: Tensor, optimizer: torch.optim.Optimizer
) -> Tensor:
    """The ordinary training step, whose loss is that before the update."""
    optimizer.zero_grad()
    loss = loss_fn(model(inputs), targets)
    loss.backward()
    optimizer.step()
    return loss.detach()


def _divergence(module: pccompile.PCModule, inputs: Tensor, targets: Tensor) -> Divergence:
    report = pccompile.check(module, inputs, targets)
    return Divergence(report.relative_error, report.max_relative_error, report.max_angle, report.bit_equal)


def _synchronize(device: str) -> None:
    """Wait for the device, so that a step's time is its own."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)


def evaluate(model: nn.Module, dataset: Dataset[Any], loss_fn: Loss, options: Options) -> Evaluation:
    """Test a model in eval mode, which it is left in.

    Args:
        model: the plain model, which a compiled module shares its parameters and buffers with.
        dataset: pairs (input, target).
        loss_fn: averages over the batch.
        options: batch size and device.
    """
    model.eval()
    loss_sum, samples, correct, answers = 0.0, 0, 0, 0
    for batch in DataLoader(dataset, options.batch_size):
        inputs, targets = (tensor.to(options.device) for tensor in batch)
        with torch.no_grad():
            outputs = model(inputs)
            loss_sum += loss_fn(outputs, targets).item() * len(inputs)
        samples += len(inputs)
        # Class indices have the outputs' shape without dimension 1, the classes.
        if are_classes(targets) and targets.shape == outputs.shape[:1] + outputs.shape[2:]:
            correct += int((outputs.argmax(1) == targets).sum())
            answers += targets.numel()
    return Evaluation(loss_sum / samples, correct / answers if answers else None)
