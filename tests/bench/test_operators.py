"""A part of the sweep over PyTorch's operators and modules, and that the sweep sees what it has to see."""

import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

import pccompile
from bench import __main__ as command
from bench.operators.cases import Case, OperatorModel, entries
from bench.operators.page import render, verdicts_on
from bench.operators.sweep import Result
from bench.operators.verdict import Outcome, Verdict, judge
from pccompile.execution import Execution

PAGE = Path(__file__).parent.parent.parent / "docs" / "coverage.md"

# one of each kind: arithmetic, views, indexing, reductions, linear algebra, random, complex, sparse, sizes that depend
# on values, several outputs, lists of tensors, losses, normalisation, convolution, pooling, recurrence, attention
SUBSET = (Path(__file__).parent / "subset.txt").read_text(encoding="utf-8").split()


@cache
def every_entry():
    return {entry.name: entry for entry in entries()}


@pytest.mark.parametrize("name", SUBSET)
def test_an_entry_of_the_subset_is_as_good_as_the_page_says(name):
    result = Result(name, tuple(judge(case) for case in every_entry()[name].cases(1)))
    assert result.verdict in (Verdict.EXACT, Verdict.WITHIN_TOLERANCE), result.reasons(result.verdict)
    assert result.verdict <= verdicts_on(PAGE.read_text(encoding="utf-8"))[name]


def test_the_page_has_the_present_introduction_and_calls_nearly_all_of_the_subset_exact():
    page = PAGE.read_text(encoding="utf-8")
    assert page.startswith(render([], 1).partition("## Counts")[0])
    listed = verdicts_on(page)
    assert sum(listed[name] is Verdict.EXACT for name in SUBSET) > 0.9 * len(SUBSET)


def test_the_page_lists_every_entry_and_calls_none_wrong():
    listed = verdicts_on(PAGE.read_text(encoding="utf-8"))
    assert set(listed) == {entry.name for entry in entries()}
    assert Verdict.WRONG not in listed.values()


def model_case(function, *shape):
    return Case("made by hand", lambda: (Calls(function), (torch.ones(shape).requires_grad_(),), {}))


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x):
        return self.function(x)


def test_a_corrupted_derivative_is_wrong_and_the_command_says_so(monkeypatch, capsys):
    infer = Execution.infer

    def corrupted(self, *args, **kwargs):
        return {name: gradient * (1 + 1e-5) for name, gradient in infer(self, *args, **kwargs).items()}

    monkeypatch.setattr(Execution, "infer", corrupted)
    outcome = judge(model_case(torch.sin, 3))
    assert outcome.verdict is Verdict.WRONG
    assert "gradient of input" in outcome.reason and 5e-6 < outcome.difference < 2e-5
    monkeypatch.setattr(sys, "argv", ["bench", "operators", "--only", "cosh", "--samples", "1", "--jobs", "1"])
    with pytest.raises(SystemExit) as exit:
        command.main()
    assert exit.value.code == 1
    monkeypatch.undo()
    assert judge(model_case(torch.sin, 3)).verdict is Verdict.EXACT


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        (lambda pc, x: pc(x) + 1, "output 0"),
        (lambda pc, x: pc(x) * 1, None),
        (lambda pc, x: (pc(x), pc.total.add_(1))[0], "total after"),
        (lambda pc, x: (pc(x), torch.rand(1))[0], "random state"),
        (lambda pc, x: (pc(x), 0)[0].detach().requires_grad_(), "gradient of input"),
        (lambda pc, x: [pc(x), 3], "number of outputs"),
    ],
)
def test_everything_a_training_step_leaves_is_compared(spoilt, reason):
    def compile(model):
        pc = pccompile.compile(model)
        wrapped = lambda x: spoilt(pc, x)  # noqa: E731
        return wrapped

    outcome = judge(model_case(torch.sin, 3), compile)
    assert outcome.verdict is (Verdict.WRONG if reason else Verdict.EXACT)
    assert (reason or "") in outcome.reason


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


def fails(model):
    raise KeyError("oh")


def test_refusals_failures_and_cases_that_do_not_apply_are_told_apart():
    assert judge(model_case(lambda x: Doubled.apply(x), 3)).verdict is Verdict.REFUSED
    assert judge(model_case(torch.sin, 3), fails) == Outcome(Verdict.WRONG, reason="raised KeyError: 'oh'")
    for function, reason in (
        (lambda x: x.argmax(), "no output requires a gradient"),
        (lambda x: x @ torch.ones(7), "eager: RuntimeError"),
        (torch.heaviside, "eager: TypeError"),
    ):
        outcome = judge(model_case(function, 3))
        assert outcome.verdict is Verdict.NOT_APPLICABLE and reason in outcome.reason


def test_an_entry_has_the_worst_verdict_of_its_samples():
    exact, skipped = Outcome(Verdict.EXACT), Outcome(Verdict.NOT_APPLICABLE, reason="why")
    close = Outcome(Verdict.WITHIN_TOLERANCE, 1e-7, "where")
    assert Result("x", (exact, skipped)).verdict is Verdict.EXACT
    assert Result("x", (exact, close, skipped)).verdict is Verdict.WITHIN_TOLERANCE
    assert Result("x", ()).verdict is Verdict.NOT_APPLICABLE
    assert list(Result("x", (close, exact)).reasons(Verdict.WITHIN_TOLERANCE)) == [
        "relative difference of at most 1.0e-07"
    ]


def test_the_page_can_be_read_back():
    results = [
        Result("one", (Outcome(Verdict.EXACT),)),
        Result("two[a_b]", (Outcome(Verdict.REFUSED, reason="a | b\nc"),)),
        Result("three", (Outcome(Verdict.WITHIN_TOLERANCE, 1e-7),)),
        Result("four", (Outcome(Verdict.NOT_APPLICABLE, reason="why"),)),
    ]
    page = render(results, 1)
    assert verdicts_on(page) == {result.name: result.verdict for result in results}
    assert "| `two[a_b]` | 1 of 1 | a \\| b c |" in page


def test_a_sample_becomes_an_argument_parameters_and_buffers():
    entry = next(entry for entry in entries() if entry.name == "index_add")
    model, (argument,), _ = entry.cases(1)[0].build()
    assert isinstance(model, OperatorModel) and argument.requires_grad
    assert [type(p) for p in model.parameters()] == [nn.Parameter]
    assert [b.dtype for b in model.buffers()] == [torch.int64]
