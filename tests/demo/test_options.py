"""What the names of options stand for."""

import pytest
import torch
from torch.nn import functional as F

from pccompile.demo.errors import CommandLineError
from pccompile.demo.options import LOSSES, find_loss


def test_squared_error_takes_class_indices_as_one_hot_vectors():
    outputs, classes = torch.rand(4, 3), torch.tensor([0, 2, 1, 1])
    expected = F.mse_loss(outputs, torch.eye(3)[classes])
    assert torch.equal(LOSSES["mse"](outputs, classes), expected)
    assert torch.equal(LOSSES["mse"](outputs, outputs), torch.tensor(0.0))


def test_losses_are_found_by_name_or_reference():
    assert find_loss("cross_entropy") is F.cross_entropy
    assert find_loss("torch.nn.functional:huber_loss") is F.huber_loss
    with pytest.raises(CommandLineError, match="no loss 'hinge'"):
        find_loss("hinge")
