"""Models of torchvision, unmodified: Z-IL trains them as autograd does, and their statistics move as they would."""

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_one_capture_serves, assert_trains_as_autograd_does

models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")

CLASSES = 5
AS_PUBLISHED = {  # (maker, image size)
    "resnet18": (lambda: models.resnet18(num_classes=CLASSES), 32),
    "mobilenet_v3": (lambda: models.mobilenet_v3_small(num_classes=CLASSES), 32),
    "densenet121": (lambda: models.densenet121(num_classes=CLASSES, drop_rate=0.1), 32),
    "vit_b_16": (lambda: models.vit_b_16(image_size=32, num_classes=CLASSES, dropout=0.1), 32),
    "swin_t": (lambda: models.swin_t(num_classes=CLASSES), 32),
    "googlenet": (lambda: models.googlenet(num_classes=CLASSES, aux_logits=True, init_weights=False), 32),
    "inception_v3": (lambda: models.inception_v3(num_classes=CLASSES, aux_logits=True, init_weights=False), 299),
}


def small_densenet():
    return models.DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8, drop_rate=0.1, num_classes=CLASSES)


def small_vit():
    sizes = {"image_size": 32, "patch_size": 16, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 24}
    return models.VisionTransformer(**sizes, dropout=0.1, attention_dropout=0.1, num_classes=CLASSES)


def small_swin():
    windows = {"patch_size": [4, 4], "window_size": [4, 4], "depths": [2, 2], "num_heads": [2, 4]}
    dropout = {"dropout": 0.1, "attention_dropout": 0.1, "stochastic_depth_prob": 0.2}
    return models.SwinTransformer(**windows, **dropout, embed_dim=16, num_classes=CLASSES)


def small_resnet():
    return models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)


def small_mobilenet():
    configuration = models.mobilenetv3.InvertedResidualConfig
    blocks = [
        configuration(8, 3, 16, 8, True, "RE", 2, 1, 1.0),
        configuration(8, 5, 24, 16, True, "HS", 2, 1, 1.0),
    ]
    return models.MobileNetV3(blocks, last_channel=24, num_classes=CLASSES)


class SmallAuxiliary(torch.nn.Module):
    """The auxiliary head of Inception v3 for feature maps of 3 by 3 instead of 17 by 17."""

    def __init__(self, channels, classes):
        super().__init__()
        self.conv = models.inception.BasicConv2d(channels, 16, kernel_size=1)
        self.fc = torch.nn.Linear(16, classes)

    def forward(self, x):
        return self.fc(F.adaptive_avg_pool2d(self.conv(x), 1).flatten(1))


def small_inception():
    kinds = ["BasicConv2d", "InceptionA", "InceptionB", "InceptionC", "InceptionD", "InceptionE"]
    blocks = [*(getattr(models.inception, kind) for kind in kinds), SmallAuxiliary]
    return models.Inception3(num_classes=CLASSES, inception_blocks=blocks, init_weights=False)


SMALL = {
    "resnet": (small_resnet, 32),
    "mobilenet": (small_mobilenet, 32),
    "densenet": (small_densenet, 32),
    "vit": (small_vit, 32),
    "swin": (small_swin, 32),
    "googlenet": (AS_PUBLISHED["googlenet"][0], 32),
    "inception": (small_inception, 75),
}
WITH_OPEN_SIZES = ("resnet", "vit", "swin")


def step_on(samples, size, dtype):
    """A training step on random images."""
    images, labels = torch.randn(samples, 3, size, size, dtype=dtype), (torch.arange(samples) + 3) % CLASSES

    def step(module):
        outputs = module(images)
        heads = outputs if isinstance(outputs, tuple) else (outputs,)
        weights = (1.0, 0.3, 0.3)  # an auxiliary head counts less
        return outputs, sum(w * F.cross_entropy(head, labels) for w, head in zip(weights, heads, strict=False))

    return step


@contextmanager
def statistics_move(model):
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}
    yield
    assert not any(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers() if "running" in name)


@pytest.mark.parametrize("name", AS_PUBLISHED)
def test_a_model_as_published_in_float32(name):
    maker, size = AS_PUBLISHED[name]
    model = maker().train()
    with statistics_move(model):
        assert_trains_as_autograd_does(model, step_on(2, size, torch.float32), dynamic=False)


@pytest.mark.parametrize("name", [name for name in SMALL if name not in WITH_OPEN_SIZES])
def test_a_small_one_of_each_family_in_float64(name):
    maker, size = SMALL[name]
    model = maker().double().train()
    with statistics_move(model):
        assert_trains_as_autograd_does(model, step_on(2, size, torch.float64), dynamic=False)


@pytest.mark.parametrize("name", WITH_OPEN_SIZES)
def test_one_capture_of_a_small_one_in_float64_serves_batches_of_other_sizes(name):
    maker, size = SMALL[name]
    model = maker().double().train()
    with statistics_move(model):
        assert_one_capture_serves(model, [step_on(samples, size, torch.float64) for samples in (2, 3)])
