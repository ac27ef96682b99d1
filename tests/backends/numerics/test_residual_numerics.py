"""Residual networks with batch normalisation: at most two launches a layer with parameters, and two for the loss."""

import pytest
import torch
import torch.nn.functional as F
from test_patterns_numerics import images, left
from test_triton_numerics import agree, compiled
from torch import nn

import pccompile


class Residual(nn.Module):
    def __init__(self, inputs, outputs, stride=1, norm=nn.BatchNorm2d, activation=F.relu):
        super().__init__()
        self.a = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.b = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm_a, self.norm_b, self.activation = norm(outputs), norm(outputs), activation
        projected = nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs)
        self.skip = nn.Sequential(*projected) if stride > 1 else nn.Identity()

    def forward(self, x):
        inner = self.activation(self.norm_a(self.a(x)))
        return self.activation(self.norm_b(self.b(inner)) + self.skip(x))


def resnet(norm=nn.BatchNorm2d, activation=F.relu):
    torch.manual_seed(0)
    stem = [nn.Conv2d(2, 4, 3, padding=1, bias=False), norm(4), nn.ReLU()]
    blocks = [Residual(4, 4, 1, norm, activation), Residual(4, 5, 2, norm, activation)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))


def layers_of(model):
    """Modules with parameters of their own."""
    return sum(bool(list(module.parameters(recurse=False))) for module in model.modules())


RULES = [pccompile.ZIL(), *(pccompile.FixedPrediction(steps, 0.1, levelled=True) for steps in (1, 20))]


def test_a_residual_network_takes_two_launches_a_layer_and_two_for_the_loss_or_fewer(device):
    model = resnet()
    pc, target = compiled(model, device), 2 * layers_of(model) + 2
    for rule in RULES:
        launches = agree(pc, rule, *images(device, 2, 4))
        assert launches.total() + left(pc) <= target
        assert left(pc) == 0  # the average, the sums with the skips, the counts of batches: all go with other launches
        convolutions = dict.fromkeys(("conv_predict", "conv_error"), 6)
        assert launches == {
            **convolutions,
            **dict.fromkeys(("batch_norm_predict", "batch_norm_error"), 5),  # a normalised skip goes with the other
            **dict.fromkeys(("linear_predict", "linear_error", "cross_entropy_predict", "cross_entropy_error"), 1),
        }


def test_strict_inference_of_a_residual_network(device):
    launches = agree(compiled(resnet(), device), pccompile.Strict(steps=3, step_size=0.1), *images(device, 2, 4))
    assert launches["batch_norm_predict"] and launches["batch_norm_error"]


def test_normalisations_without_weights_and_without_running_statistics(device):
    def norm(channels):
        return nn.BatchNorm2d(channels, affine=channels != 4, track_running_stats=channels != 5)

    model = resnet(norm)
    pc = compiled(model, device)
    for rule in RULES[:2]:
        launches = agree(pc, rule, *images(device, 2, 4))
        assert launches["batch_norm_predict"] == launches["batch_norm_error"] == 5
        assert left(pc) == 0


@pytest.mark.parametrize("activation", [F.gelu, torch.tanh], ids=["gelu", "tanh"])
def test_an_activation_is_predicted_apart_where_its_derivative_reads_the_sum(device, activation):
    pc = compiled(resnet(activation=activation), device)
    launches = agree(pc, pccompile.ZIL(), *images(device, 2, 4))
    assert launches["batch_norm_error"] == 5
    assert left(pc) == (0 if activation is torch.tanh else 5)  # four activations, and the average of the last


def test_evaluation_uses_the_running_statistics_which_no_kernel_does(device):
    model = resnet().eval()
    pc = compiled(model, device)
    for rule in RULES[:2]:
        launches = agree(pc, rule, *images(device, 2, 4))
        assert not launches["batch_norm_predict"] and not launches["batch_norm_error"]
        assert "running statistics have no kernel" in {row.reason for row in pc.backend_report()}


def test_what_somebody_else_reads_of_a_normalisation_is_no_part_of_a_sum(device):
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Linear(3, 3)

        def forward(self, x):
            h = self.norm(self.a(x))
            return self.b((torch.relu(h) * h).mean((2, 3)))

    launches = agree(compiled(Reads(), device), pccompile.ZIL(), *images(device, 2, 4))
    assert launches["batch_norm_predict"] == launches["batch_norm_error"] == 1


def test_features_are_normalised_with_their_skip(device):
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

        def forward(self, x):
            return self.b(torch.relu(x + self.norm(self.a(x))))

    x, y = torch.randn(5, 6, device=device), torch.arange(5, device=device) % 3
    pc = compiled(Skip(), device)
    launches = agree(pc, pccompile.ZIL(), x, y)
    assert launches["batch_norm_predict"] == launches["batch_norm_error"] == 1
    assert left(pc) == 0
