"""Models: the two built in, sized for the data, or the user's own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from math import prod

import torch
from torch import nn

from pccompile.demo.data import Data
from pccompile.demo.errors import CommandLineError, UnusableInputError
from pccompile.demo.references import is_reference, resolve

__all__ = ["BUILT_IN", "build_model", "cnn", "mlp"]


def build_model(name: str, data: Data, seed: int) -> nn.Module:
    """Build the model that the command line names, its initial weights drawn with `seed`.

    Args:
        name: "cnn", "mlp", or `module:factory`, whose function takes nothing and returns an nn.Module.
        data: what the built-in models are sized for.
        seed: of torch's global random state while the model is built.

    Raises:
        CommandLineError: the name names no model, or a built-in one does not suit the data.
        UnusableInputError: the factory returned something else than a module with parameters.
    """
    torch.manual_seed(seed)
    if is_reference(name):
        model = resolve(name)()
        if not isinstance(model, nn.Module) or not any(p.requires_grad for p in model.parameters()):
            raise UnusableInputError(
                f"{name} returned a {type(model).__name__} with nothing to train",
                cure="return an nn.Module that has parameters with requires_grad",
            )
        return model
    if name not in BUILT_IN:
        raise CommandLineError(f"there is no model {name!r}", cure=f"{', '.join(BUILT_IN)} or your own module:factory")
    if data.classes is None:
        raise CommandLineError(
            f"the built-in model {name} needs a tensor of class indices as targets; {data.name} has others",
            cure="name a model of your own: module:factory",
        )
    return BUILT_IN[name](data.sample_shape, data.classes)


def cnn(image_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """The small MNIST network of predictive-coding papers: two convolutions, then three linear layers.

    For images `(1, 28, 28)` the first linear layer reads 5 x 11 x 11 = 605 numbers.

    Args:
        image_shape: `(channels, height, width)`, at least 8 x 8.
        classes: width of the output.

    Raises:
        CommandLineError: the inputs are no such images.
    """
    if len(image_shape) != 3 or min(image_shape[1:]) < 8:
        raise CommandLineError(
            f"the model cnn needs images (channels, height, width) of 8 x 8 or more, not {image_shape}",
            cure="--model mlp",
        )
    channels, height, width = image_shape
    # 3 x 3 convolution: two less; pooling: half; 3 x 3 convolution: two less.
    features = 5 * ((height - 2) // 2 - 2) * ((width - 2) // 2 - 2)
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 10, 3),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(10, 5, 3),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(features, 50),
            relu3=nn.ReLU(),
            fc2=nn.Linear(50, 30),
            relu4=nn.ReLU(),
            fc3=nn.Linear(30, classes),
        )
    )


def mlp(sample_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """Three linear layers, for inputs of any shape.

    Args:
        sample_shape: shape of one input, without the batch.
        classes: width of the output.
    """
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(prod(sample_shape), 128),
            relu1=nn.ReLU(),
            fc2=nn.Linear(128, 64),
            relu2=nn.ReLU(),
            fc3=nn.Linear(64, classes),
        )
    )


BUILT_IN: dict[str, Callable[[tuple[int, ...], int], nn.Sequential]] = {"cnn": cnn, "mlp": mlp}
