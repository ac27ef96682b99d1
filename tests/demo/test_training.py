"""One rule's training: its measurements, and that rules differ by nothing but the rule."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from pccompile.demo.data import Data, load_data
from pccompile.demo.models import build_model
from pccompile.demo.options import RULES, Options
from pccompile.demo.training import evaluate, train_rules

OPTIONS = Options(
    epochs=1,
    batch_size=350,  # four steps an epoch
    learning_rate=0.002,
    steps=5,
    step_size=0.1,
    optimizer="adam",
    loss="cross_entropy",
    device="cpu",
    seed=0,
)


@pytest.fixture(scope="module")
def data():
    return load_data(["digits"], seed=0)


@pytest.fixture(scope="module")
def model(data):
    return build_model("cnn", data, seed=0)


def train_alone(rule, model, data, options=OPTIONS):
    (result,) = train_rules([rule], model, data, options, lambda rule, loss: None)
    return result


@pytest.fixture(scope="module")
def train(data, model):
    """The result of a rule, trained once for all tests."""
    results = {}

    def train_once(rule):
        if rule not in results:
            results[rule] = train_alone(rule, model, data)
        return results[rule]

    return train_once


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_measures_every_step_and_epoch(train, rule):
    result = train(rule)
    assert result.rule == rule
    assert len(result.losses) == 4
    assert len(result.evaluations) == 2
    assert result.seconds_per_step > 0
    assert 0 <= result.evaluations[-1].accuracy <= 1


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_starts_from_the_same_weights_on_the_same_batch(train, rule):
    assert train(rule).losses[0] == train("autograd").losses[0]
    assert train(rule).evaluations[0] == train("autograd").evaluations[0]


def test_zil_draws_autograds_curve(train):
    zil, autograd = train("zil"), train("autograd")
    assert zil.losses == pytest.approx(autograd.losses, rel=1e-5)
    assert zil.evaluations[-1].loss == pytest.approx(autograd.evaluations[-1].loss, rel=1e-5)
    assert zil.first.relative_error < 1e-5
    assert zil.last.relative_error < 1e-5


@pytest.mark.parametrize("rule", ["fixed-prediction", "strict"])
def test_inexact_rules_diverge_from_autograd(train, rule):
    assert train(rule).first.relative_error > 1e-3
    assert train(rule).losses[-1] != train("autograd").losses[-1]


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "autograd"])
def test_rules_that_run_a_program_show_it(train, rule):
    result = train(rule)
    assert "fc1" in result.program
    assert "def error_sweep" in result.code


def test_autograd_has_no_program(train):
    assert (train("autograd").program, train("autograd").code) == (None, None)


@pytest.mark.parametrize("rule", ["autograd", "incremental"])
def test_rules_without_a_gradient_to_compare_have_no_divergence(train, rule):
    assert (train(rule).first, train(rule).last) == (None, None)


def test_training_leaves_the_initial_weights_as_they_were(data, model):
    before = deepcopy(model.state_dict())
    train_alone("zil", model, data)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_rules_train_in_lockstep_and_do_not_disturb_each_other(data, model, train):
    told = []
    rules = ["zil", "strict"]
    results = train_rules(rules, model, data, OPTIONS, lambda *step: told.append(step))
    assert [result.losses for result in results] == [train(rule).losses for rule in rules]
    losses = zip(*(result.losses for result in results), strict=True)
    assert told == [step for pair in losses for step in zip(rules, pair, strict=True)]


class FailsInTraining(nn.Linear):
    """Raises in training mode."""

    def forward(self, inputs):
        if self.training:
            raise ValueError("not while training")
        return super().forward(inputs.flatten(1))


@pytest.mark.parametrize("rule", ["autograd", "zil"])
def test_an_error_says_which_rule_was_training(data, rule):
    with pytest.raises(Exception, match="not while training") as caught:
        train_alone(rule, FailsInTraining(64, 10), data)
    assert f"while training with {rule}" in caught.value.__notes__


def test_dropout_masks_are_alike_for_autograd_and_zil(data):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Dropout(), nn.ReLU(), nn.Linear(32, 10))
    autograd, zil = train_rules(["autograd", "zil"], model, data, OPTIONS, lambda rule, loss: None)
    assert zil.losses == pytest.approx(autograd.losses, rel=1e-5)


def test_squared_error_trains_on_class_indices(data, model):
    result = train_alone("zil", model, data, replace(OPTIONS, loss="mse"))
    assert result.first.max_relative_error < 1e-5


def test_evaluation_averages_over_samples_whatever_the_batches():
    inputs, classes = torch.randn(10, 3), torch.randint(0, 3, (10,))
    options = replace(OPTIONS, batch_size=4)
    evaluation = evaluate(nn.Identity(), TensorDataset(inputs, classes), F.cross_entropy, options)
    assert evaluation.loss == pytest.approx(F.cross_entropy(inputs, classes).item())
    assert evaluation.accuracy == (inputs.argmax(1) == classes).sum().item() / 10


def test_regression_has_no_accuracy():
    targets = torch.randn(10, 3)
    data = Data("regression", TensorDataset(targets, targets), TensorDataset(targets, targets), (3,), None)
    result = train_alone("autograd", nn.Linear(3, 3), data, replace(OPTIONS, loss="mse"))
    assert result.evaluations[-1].accuracy is None
