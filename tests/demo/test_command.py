"""`demo` and `train` from beginning to end."""

import json
import sys

import pytest

from pccompile.cli import FAILURE, OK, main

SHORT = ["--epochs", "1", "--batch-size", "700", "--steps", "2"]


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_demo_trains_four_rules_and_saves_all_files(tmp_path, capsys):
    folder = tmp_path / "new" / "folder"
    assert main(["demo", "--data", "digits", "--model", "mlp", "--out", str(folder), *SHORT]) == OK
    assert {file.name for file in folder.iterdir()} == {
        "results.json",
        "learning_curves.png",
        "program-zil.txt",
        "program-fixed-prediction.txt",
        "program-strict.txt",
    }
    assert [rule["rule"] for rule in results(folder)["rules"]] == [
        "autograd",
        "zil",
        "fixed-prediction",
        "strict",
    ]
    output = capsys.readouterr().out
    assert "mlp on digits" in output
    assert f"saved to {folder}" in output


def test_demo_trains_each_rule_asked_for_once(tmp_path):
    rules = ["--rule", "zil", "--rule", "autograd", "--rule", "zil"]
    assert main(["demo", "--data", "digits", "--model", "mlp", "--out", str(tmp_path), *rules, *SHORT]) == OK
    assert [rule["rule"] for rule in results(tmp_path)["rules"]] == ["zil", "autograd"]


def test_without_out_a_new_folder_is_made_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--data", "digits", "--model", "mlp", "--rule", "autograd", *SHORT]) == OK
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("pccompile-demo-")
    assert results(folder)["seed"] == 0


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A user's module with a model, a data set and a loss, in the working directory; its name."""
    name = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def make_model(): return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))\n"
        "def make_misfit(): return nn.Linear(7, 2)\n"
        "def make_data():\n"
        "    torch.manual_seed(0)\n"
        "    x = torch.randn(40, 6)\n"
        "    y = x[:, :2] * x[:, 2:4]\n"
        "    return x[:30], y[:30], x[30:], y[30:]\n"
        "def absolute_error(outputs, targets): return (outputs - targets).abs().mean()\n"
        "def fail(): raise KeyError('what the user did')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return name


def train(own_module, model, *more):
    own = f"{own_module}:{model}", "--data", f"{own_module}:make_data"
    return main(["train", *own, "--loss", "mse", "--epochs", "2", "--batch-size", "10", "--out", "out", *more])


def test_train_takes_a_model_and_data_of_the_users_own(own_module, tmp_path):
    rules = "--rule", "autograd", "--rule", "zil"
    assert train(own_module, "make_model", "--optimizer", "sgd", *rules) == OK
    content = results(tmp_path / "out")
    autograd, zil = content["rules"]
    assert content["options"]["optimizer"] == "sgd"
    assert len(zil["training_losses"]) == 6
    assert zil["training_losses"] == pytest.approx(autograd["training_losses"], rel=1e-5)
    assert zil["test_accuracy"] is None


def test_train_takes_a_loss_of_the_users_own(own_module, tmp_path):
    assert train(own_module, "make_model", "--rule", "zil", "--loss", f"{own_module}:absolute_error") == OK
    assert results(tmp_path / "out")["rules"][0]["divergence"]["first_step"]["max_relative_error"] < 1e-5


def test_a_model_that_does_not_fit_the_data_fails_with_a_message(own_module, capsys):
    assert train(own_module, "make_misfit") == FAILURE
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "mat1 and mat2 shapes cannot be multiplied" in message
    assert "Traceback" not in message


def test_what_the_users_factory_raises_is_told_in_one_line_and_shown_under_debug(own_module, capsys):
    assert train(own_module, "fail") == FAILURE
    assert "KeyError: 'what the user did'" in capsys.readouterr().err
    assert train(own_module, "fail", "--debug") == FAILURE
    assert "Traceback" in capsys.readouterr().err
