"""A U-Net, and graph networks that gather and scatter along edges: Z-IL trains them as autograd does."""

import copy

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_trains_as_autograd_does, relative_error
from torch import nn

import pccompile

DTYPES = (torch.float32, torch.float64)
NODES, EDGES = 7, 20


class TwoConvolutions(nn.Sequential):
    def __init__(self, before, after):
        super().__init__(
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
        )


class UNet(nn.Module):
    """Two steps down and up; skips are concatenated, odd sizes interpolated."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([TwoConvolutions(3, 4), TwoConvolutions(4, 8)])
        self.bottom = TwoConvolutions(8, 16)
        self.drop = nn.Dropout2d(0.2)
        self.widen = nn.ModuleList([nn.ConvTranspose2d(16, 8, 2, 2), nn.ConvTranspose2d(8, 4, 2, 2)])
        self.up = nn.ModuleList([TwoConvolutions(16, 8), TwoConvolutions(8, 4)])
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        skips = []
        for block in self.down:
            skips.append(block(x))
            x = F.max_pool2d(skips[-1], 2)
        x = self.drop(self.bottom(x))
        for widen, block in zip(self.widen, self.up, strict=True):
            skip = skips.pop()
            x = F.interpolate(widen(x), size=skip.shape[-2:], mode="bilinear")
            x = block(torch.cat([skip, x], 1))
        return self.head(x)


def by_index_add(messages, target):
    return messages.new_zeros(NODES, messages.shape[1]).index_add(0, target, messages)


def by_scatter_add(messages, target):
    places = target[:, None].expand_as(messages)
    return messages.new_zeros(NODES, messages.shape[1]).scatter_add_(0, places, messages)


def by_scatter_reduce(messages, target):
    places = target[:, None].expand_as(messages)
    return messages.new_zeros(NODES, messages.shape[1]).scatter_reduce(0, places, messages, "amax", include_self=False)


def by_index_put(messages, target):
    total = messages.new_zeros(NODES, messages.shape[1])
    total.index_put_((target,), messages, accumulate=True)
    return total


class GraphNetwork(nn.Module):
    """A convolution, an attention and another convolution over the edges of a graph."""

    def __init__(self, collect):
        super().__init__()
        self.first, self.second, self.attention = nn.Linear(4, 8), nn.Linear(8, 5), nn.Linear(16, 1)
        self.collect = collect

    def forward(self, x, edges):
        source, target = edges
        h = self.collect(self.first(x)[source], target)
        h = F.dropout(F.relu(h), 0.3, self.training)
        weights = self.attention(torch.cat([h[source], h[target]], 1)).exp()
        h = self.collect(weights * h[source], target) / (1 + by_index_add(weights, target)[:, :1])
        return self.collect(self.second(h).index_select(0, source), target)


def graph(dtype):
    return torch.randn(NODES, 4, dtype=dtype), torch.randint(NODES, (2, EDGES))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_u_net(dtype):
    model, images = UNet().to(dtype), torch.randn(2, 3, 17, 17, dtype=dtype)

    def step(module):
        outputs = module(images)
        return outputs, F.cross_entropy(outputs, (images.sum(1) > 0).long())

    assert_trains_as_autograd_does(model, step, dynamic=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("collect", [by_index_add, by_scatter_add, by_scatter_reduce, by_index_put])
def test_a_graph_network(collect, dtype):
    model, batch = GraphNetwork(collect).to(dtype), graph(dtype)

    def step(module):
        outputs = module(*batch)
        return outputs, F.cross_entropy(outputs, torch.arange(NODES) % 5)

    assert_trains_as_autograd_does(model, step, dynamic=False)


@pytest.mark.parametrize("name", ["u-net", "graph network"])
def test_fixed_prediction_over_the_whole_depth_is_backpropagation(name):
    if name == "u-net":
        model, batch = UNet().double(), (torch.randn(2, 3, 8, 8, dtype=torch.float64),)
    else:
        model, batch = GraphNetwork(by_index_add).double(), graph(torch.float64)
    twin = copy.deepcopy(model)
    pc = pccompile.compile(model, pccompile.FixedPrediction(steps=30, step_size=1.0), dynamic=False)
    for module in (twin, pc):
        torch.manual_seed(7)
        module(*batch).square().sum().backward()
    for (name, ours), theirs in zip(pc.named_parameters(), twin.parameters(), strict=True):
        assert relative_error(ours.grad, theirs.grad) <= 1e-12, name


def test_strict_inference_moves_the_values_of_a_u_net():
    model = UNet()
    pc = pccompile.compile(model, pccompile.Strict(steps=2, step_size=0.1), loss_fn=F.cross_entropy, dynamic=False)
    pc.record_energies = True
    pc.loss(torch.randn(2, 3, 8, 8), torch.randint(2, (2, 8, 8))).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert model.head.weight.grad.any()
    assert pc.energies[-1] < pc.energies[0]
