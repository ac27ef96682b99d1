"""The built-in models' sizes, and models that references name."""

import sys

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from pccompile.demo.data import Data, load_data
from pccompile.demo.errors import CommandLineError, UnusableInputError
from pccompile.demo.models import build_model, cnn, mlp


def test_the_cnn_on_mnist_reads_605_features_and_has_readable_names():
    model = cnn((1, 28, 28), 10)
    assert model.fc1.in_features == 605
    assert [name for name, _ in model.named_children()] == (
        ["conv1", "relu1", "pool1", "conv2", "relu2", "flatten", "fc1", "relu3", "fc2", "relu4", "fc3"]
    )
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 12), (1, 28, 28)])
@pytest.mark.parametrize("build", [cnn, mlp])
def test_built_in_models_fit_images_of_any_shape(build, shape):
    assert build(shape, 7)(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("shape", [(30,), (1, 7, 8), (1, 1, 28, 28)])
def test_the_cnn_refuses_what_is_not_an_image_and_names_the_mlp(shape):
    with pytest.raises(CommandLineError, match="mlp"):
        cnn(shape, 10)


def test_equal_seeds_give_equal_weights():
    data = load_data(["digits"], seed=0)
    first, again, other = (build_model("cnn", data, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["fc1.weight"], other["fc1.weight"])


@pytest.fixture
def written_module(tmp_path, monkeypatch):
    """A module in the working directory, for references to find; its name."""
    name = f"models_of_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(
        "from torch import nn\n"
        "size = 3\n"
        "def make(): return nn.Linear(size, 2)\n"
        "def make_nothing(): return None\n"
        "class Small(nn.Linear):\n"
        "    def __init__(self): super().__init__(size, 2)\n"
    )
    (tmp_path / f"broken_{name}.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return name


@pytest.mark.parametrize("factory", ["make", "Small"])
def test_a_reference_names_a_function_or_a_class_in_the_working_directory(written_module, factory):
    model = build_model(f"{written_module}:{factory}", load_data(["digits"], seed=0), 0)
    assert isinstance(model, nn.Linear)


@pytest.mark.parametrize("factory", ["missing", "size", "make.missing"])
def test_a_reference_to_nothing_callable_is_refused(written_module, factory):
    with pytest.raises(CommandLineError, match=written_module):
        build_model(f"{written_module}:{factory}", load_data(["digits"], seed=0), 0)


def test_a_factory_that_returns_no_model_is_refused(written_module):
    with pytest.raises(UnusableInputError, match="returned a NoneType"):
        build_model(f"{written_module}:make_nothing", load_data(["digits"], seed=0), 0)


def test_a_module_that_lacks_a_package_of_its_own_fails_with_its_own_error(written_module):
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        build_model(f"broken_{written_module}:make", load_data(["digits"], seed=0), 0)


def test_built_in_models_need_classes():
    inputs = torch.zeros(4, 3)
    data = Data("regression", TensorDataset(inputs, inputs), TensorDataset(inputs, inputs), (3,), None)
    with pytest.raises(CommandLineError, match="class indices"):
        build_model("mlp", data, 0)


def test_an_unknown_model_is_refused():
    with pytest.raises(CommandLineError, match="no model 'resnet'"):
        build_model("resnet", load_data(["digits"], seed=0), 0)
