"""The table, the files, and the figure, from made-up results."""

import json
import math

import pytest
from rich.console import Console

from pccompile.demo.figure import LINES, smooth
from pccompile.demo.options import RULES, Options
from pccompile.demo.report import Comparison, results_table, save
from pccompile.demo.training import Divergence, Evaluation, RuleResult

OPTIONS = Options(2, 300, 0.002, 20, 0.1, "adam", "cross_entropy", "cpu", 7)
EVALUATIONS = [Evaluation(2.3, 0.1), Evaluation(1.0, 0.75), Evaluation(0.5, 0.875)]


@pytest.fixture
def comparison():
    exact, far = Divergence(0.0, 0.0, 0.0, True), Divergence(0.25, 0.5, math.inf, False)
    results = [
        RuleResult("autograd", [2.0, 1.0], EVALUATIONS, None, None, 0.01, None, None),
        RuleResult("zil", [2.0, 1.0], EVALUATIONS, exact, exact, 0.02, "the table", "the code"),
        RuleResult("strict", [2.0, math.nan], EVALUATIONS, far, far, 0.03, "its table", "its code"),
    ]
    return Comparison("digits", "cnn", 1438, 359, 1234, OPTIONS, results)


def test_the_table_has_a_row_for_every_rule(comparison):
    console = Console(width=100)
    with console.capture() as capture:
        console.print(results_table(comparison))
    text = capture.get()
    for row in (
        ("autograd", "87.5%", "0.5000", "0.0100"),
        ("Z-IL", "bit-equal"),
        ("strict", "2.5e-01", "0.0300"),
    ):
        (line,) = (line for line in text.splitlines() if f" {row[0]} " in line)
        assert all(cell in line for cell in row)


def test_every_rule_has_a_line_style():
    assert set(LINES) == set(RULES)


def test_the_files_are_the_results_the_figure_and_a_program_for_each_rule_that_has_one(comparison, tmp_path):
    files = save(comparison, tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert {file.name for file in files} == {
        "results.json",
        "learning_curves.png",
        "program-zil.txt",
        "program-strict.txt",
    }
    assert (tmp_path / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    program = (tmp_path / "program-zil.txt").read_text()
    assert program.index("the table") < program.index("the code")


def test_results_hold_what_is_needed_to_run_again(comparison, tmp_path):
    save(comparison, tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["seed"] == 7
    assert content["options"]["step_size"] == 0.1
    assert content["data"] == {"name": "digits", "train_samples": 1438, "test_samples": 359}
    assert content["model"] == {"name": "cnn", "parameters": 1234}
    assert set(content["versions"]) == {"pccompile", "torch", "python"}
    assert content["machine"]["torch_threads"] >= 1
    autograd, zil, strict = content["rules"]
    assert autograd["divergence"] == {"first_step": None, "last_step": None}
    assert autograd["epochs"][1] == {"epoch": 1, "test_loss": 1.0, "test_accuracy": 0.75}
    assert (zil["test_accuracy"], zil["test_loss"], zil["seconds_per_step"]) == (0.875, 0.5, 0.02)
    assert zil["divergence"]["last_step"]["bit_equal"] is True
    # JSON has neither.
    assert strict["training_losses"] == [2.0, "nan"]
    assert strict["divergence"]["first_step"]["max_angle"] == "inf"


def test_smoothing_is_a_mean_over_the_last_steps():
    assert smooth([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]
    assert smooth([1.0, 3.0], 1) == [1.0, 3.0]
