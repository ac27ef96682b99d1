"""On a CPU images have their channels last in loops, and wherever sums may be taken in another order."""

import pytest
import torch
import torch.nn.functional as F
from models import make
from rounding import assert_hardly_more_rounded
from torch import nn

import pccompile
from pccompile.backends import inductor

STRICT = pccompile.Strict(steps=8, step_size=0.3)
CHANNELS_LAST = "memory_format = torch.channels_last"


class Views(nn.Module):
    """Grouped, dilated and pooled convolutions of one-channel images, seen as rows by `view`."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.second = nn.Conv2d(8, 16, 3, padding=2, dilation=2, groups=4)
        self.head = nn.Linear(16 * 3 * 3, 3)

    def forward(self, x):
        x = F.max_pool2d(torch.tanh(self.first(x)), 2)
        x = F.avg_pool2d(torch.tanh(self.second(x)), 1)
        return self.head(x.view(x.shape[0], -1))


class Residual(nn.Module):
    """A skip around a convolution and its normalisation, averaged over the image."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.head(F.relu(self.norm(self.conv(x)) + x).mean((2, 3)))


class Upscaled(nn.Module):
    """Returns images."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def trained(model, x, y, rule, backend, loss_fn=F.cross_entropy):
    pc = pccompile.compile(model, rule, loss_fn=loss_fn, backend=backend, dynamic=False)
    loss = pc.loss(x, y)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return pc, [loss.detach(), *gradients, *(buffer.clone() for buffer in model.buffers())]


def views():
    torch.manual_seed(0)
    return Views(), torch.randn(6, 1, 12, 12), torch.randint(3, (6,))


def residual():
    torch.manual_seed(0)
    return Residual(), torch.randn(6, 3, 8, 8), torch.randint(3, (6,))


def in_double(model, x, y):
    return model.double(), x.double(), y


@pytest.mark.parametrize(
    ("make_model", "optimizer", "step_size"),
    [(views, "sgd", 0.3), (views, "adam", 0.02), (residual, "sgd", 0.1), (residual, "adam", 0.02)],
)
def test_strict_inference_on_values_with_channels_last_is_the_eager_back_ends(make_model, optimizer, step_size):
    rule = pccompile.Strict(steps=8, step_size=step_size, optimizer=optimizer)
    pc, found = trained(*make_model(), rule, "aten")
    assert CHANNELS_LAST in pc.code
    eager, exact = (trained(*of, rule, "eager")[1] for of in (make_model(), in_double(*make_model())))
    assert_hardly_more_rounded(found, eager, exact)


@pytest.mark.parametrize("size", [1, 2, (1, 3)])
def test_adaptive_pooling_of_images_with_channels_last_is_written_out(size):
    def make_model():
        torch.manual_seed(0)
        pool = nn.AdaptiveAvgPool2d(size)
        columns = 8 * pool(torch.zeros(1, 1, 4, 4)).numel()
        model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Tanh(), pool, nn.Flatten(), nn.Linear(columns, 3))
        return model, torch.randn(6, 1, 8, 8), torch.randint(3, (6,))

    pc, found = trained(*make_model(), STRICT, "aten")
    assert pc._latest.backend.eager is None and CHANNELS_LAST in pc.code
    eager, exact = (trained(*of, STRICT, "eager")[1] for of in (make_model(), in_double(*make_model())))
    assert_hardly_more_rounded(found, eager, exact)


def test_zil_keeps_the_order_and_equals_autograd_bit_for_bit():
    model, x, y = views()
    pc, (_, *found) = trained(model, x, y, pccompile.ZIL(), "aten")
    assert CHANNELS_LAST not in pc.code
    expected = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    assert all(map(torch.equal, found, expected))


def test_double_precision_keeps_the_order():
    pc, found = trained(*in_double(*views()), STRICT, "aten")
    assert CHANNELS_LAST not in pc.code
    assert all(map(torch.equal, found, trained(*in_double(*views()), STRICT, "eager")[1]))


def test_odd_numbers_of_channels_keep_the_order():
    pc, found = trained(*make("mnist network"), STRICT, "aten")
    assert CHANNELS_LAST not in pc.code
    networks = make("mnist network"), make("mnist network", torch.float64)
    assert_hardly_more_rounded(found, *(trained(*network, STRICT, "eager")[1] for network in networks))


def test_images_that_the_model_returns_are_laid_out_as_the_model_does():
    torch.manual_seed(0)
    model, x = Upscaled(), torch.randn(3, 2, 6, 6)
    pc, _ = trained(model, x, torch.randn(3, 2, 6, 6), STRICT, "aten", F.mse_loss)
    assert CHANNELS_LAST not in pc.code


def test_gradients_are_contiguous_as_their_parameters_are():
    model, x, y = views()
    pc = pccompile.compile(model, STRICT, loss_fn=F.cross_entropy, backend="aten")
    pc.loss(x, y).backward()
    assert all(parameter.grad.is_contiguous() for parameter in model.parameters())


@pytest.mark.skipif(not inductor.is_available("cpu"), reason="Inductor needs a C++ compiler")
def test_inductor_may_take_sums_in_another_order_and_convolves_channels_last():
    model, x, y = views()
    pc, (_, *found) = trained(model, x, y, pccompile.ZIL(), "inductor")
    assert CHANNELS_LAST in pc.code
    expected = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
