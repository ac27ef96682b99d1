"""With kernels for convolutions, normalisations, embeddings and the loss, models train as on the eager back end."""

import re

import pytest
import torch
import torch.nn.functional as F
from test_triton_numerics import LOSS, agree, compiled
from torch import nn

import pccompile

RULES = [
    pccompile.ZIL(),
    pccompile.FixedPrediction(steps=20, step_size=0.1, levelled=True),
    pccompile.Strict(steps=3, step_size=0.1),
]


def images(device, channels, size, count=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, channels, size, size, generator=generator).to(device), torch.arange(count).to(device) % 3


def left(pc):
    """Launches of operators."""
    return sum(row.launches for row in pc.backend_report() if row.kernel == "aten")


def mnist_cnn():
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.MaxPool2d(2)]
    dense = [nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)]
    return nn.Sequential(*convolutions, nn.Flatten(), *dense)


def cifar_cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(2, 3, 3, padding=1), nn.GELU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Tanh()),
        *(nn.Conv2d(4, 4, 2, groups=2), nn.SiLU(), nn.MaxPool2d((2, 1)), nn.Flatten(), nn.Linear(8, 3)),
    )


class Transformer(nn.Module):
    def __init__(self, norm):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.norm, self.head = nn.Embedding(7, 6, padding_idx=2), norm, nn.Linear(6, 3)
        self.block = nn.TransformerEncoderLayer(6, 2, 10, dropout=0.0, batch_first=True, norm_first=True)

    def forward(self, x):
        return self.head(self.norm(self.block(self.table(x))).mean(1))


def tokens(device):
    return torch.randint(0, 7, (3, 4), generator=torch.Generator().manual_seed(1)).to(device), torch.arange(3).to(
        device
    )


@pytest.mark.parametrize(
    "make, channels, layers", [(mnist_cnn, 1, (2, 3)), (cifar_cnn, 2, (3, 1))], ids=["mnist", "cifar"]
)
def test_a_convolutional_network_takes_two_launches_a_layer_and_two_for_the_loss(
    device, make, channels, layers, monkeypatch
):
    monkeypatch.setattr("pccompile.backends.network.too_large", lambda *network: "a test of layers")
    pc, given = compiled(make(), device), images(device, channels, 8 if channels == 1 else 6)
    convolutions, products = layers
    for rule in RULES[:2]:
        launches = agree(pc, rule, *given)
        found = {"conv_predict": convolutions, "conv_error": convolutions}
        assert launches == {**found, "linear_predict": products, "linear_error": products, **LOSS}
        assert left(pc) == 0
    launches = agree(pc, RULES[2], *given)
    hidden = convolutions - 1  # those that the steps move: predicted at the start and at the end, all of them learn
    assert launches["conv_predict"] == convolutions + hidden and launches["conv_error"] == convolutions
    assert launches["conv_step"] == 2 * hidden  # in all steps but the first


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.RMSNorm(6)], ids=["layer", "rms"])
def test_a_transformer_with_an_embedding(device, norm):
    pc = compiled(Transformer(norm), device)
    for rule in RULES if isinstance(norm, nn.LayerNorm) else RULES[:1]:
        launches = agree(pc, rule, *tokens(device))
        assert launches["row_norm_predict"] and launches["row_norm_error"] and launches["embedding_error"]


def test_errors_of_two_convolutions_with_one_parent_are_added_by_the_kernel(device):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 3, 3, padding=1)
            self.c, self.d = nn.Conv2d(3, 3, 1), nn.Linear(12, 3)

        def forward(self, x):
            h = torch.tanh(self.a(x))
            return self.d((self.b(h) * torch.sigmoid(self.c(h))).flatten(1))

    pc = compiled(Branches(), device)
    agree(pc, pccompile.ZIL(), *images(device, 2, 2))
    calls = re.findall(r"sweep_images\((.*)\);", pc.code)
    assert [len(re.findall(r"'none', \(1, 1, 1, 1\), [a-z]", call)) for call in calls] == [0, 1, 0]


def test_what_a_pooling_keeps_stays_where_somebody_else_reads_it(device):
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 3, 1), nn.Linear(3, 3)

        def forward(self, x):
            h = torch.relu(self.a(x))
            return self.b(F.max_pool2d(h, 2).mean((2, 3)) + h.mean((2, 3)))

    pc = compiled(Reads(), device)
    launches = agree(pc, pccompile.ZIL(), *images(device, 2, 4))
    assert launches["conv_predict"] == 1  # with its activation, and the pooling beside it
    reasons = {row.reason for row in pc.backend_report() if row.kernel == "aten"}
    assert "what it keeps is read by others than its error" in reasons


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_weighted_loss_over_positions(device, reduction):
    weight = torch.tensor([0.5, 1.0, 2.0], device=device)

    def loss(outputs, target):
        return F.cross_entropy(outputs, target, weight, reduction=reduction, ignore_index=1)

    pc = compiled(nn.Conv2d(2, 3, 1), device, loss)
    x, _ = images(device, 2, 3)
    y = torch.arange(18, device=device).view(2, 3, 3) % 3
    for rule in (RULES[0], RULES[2]):
        launches = agree(pc, rule, x, y)
        assert launches["cross_entropy_predict"] and launches["cross_entropy_error"]


def test_a_loss_outside_the_program(device):
    layers = nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3, 3)
    model, (x, y) = nn.Sequential(*layers).to(device), images(device, 1, 4)
    pc = pccompile.compile(model, backend="triton", dynamic=False)
    ours, theirs = (torch.autograd.grad(F.cross_entropy(f(x), y), list(model.parameters())) for f in (pc, model))
    assert all(float((a - b).norm()) <= 1e-5 * float(b.norm() + 0.1) for a, b in zip(ours, theirs, strict=True))
    assert {"conv_predict", "conv_error"} <= {row.kernel for row in pc.backend_report()}
    assert left(pc) == 0
