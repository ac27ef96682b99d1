"""New sizes reuse a capture where the forward allows it; whatever else changes is captured again, and said so."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pccompile
import pccompile.variants
from pccompile.errors import ShapeError


class Attention(nn.Module):
    """Tokens to tokens: sizes of batch and sequence appear in views and masks."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, tokens):
        h = self.embed(tokens)
        q, k, v = (f(h).view(*tokens.shape, 2, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        mask = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
        h = h + F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(h.shape)
        return self.out(self.norm(h)).mean(1)


class Branch(nn.Module):
    """Another computation for long inputs."""

    def __init__(self):
        super().__init__()
        self.short, self.long = nn.Linear(1, 3), nn.Linear(1, 3)

    def forward(self, x):
        layer = self.long if x.shape[1] > 4 else self.short
        return layer(x.mean(1, keepdim=True))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), lambda n, _: torch.randn(n, 5)),
    "convolutional": (convolutional, lambda n, size: torch.randn(n, 1, size, size)),
    "attention": (Attention, lambda n, length: torch.randint(0, 11, (n, length))),
}


@pytest.fixture
def captures(caplog):
    """The log's lines about captures, as a function."""
    caplog.set_level(logging.INFO, "pccompile")
    return lambda: [r.getMessage() for r in caplog.records if r.getMessage().startswith(("captured", "capturing"))]


def assert_like_autograd(pc, x):
    target = torch.randint(0, 3, (len(x),))
    report = pccompile.check(pc, x, target, F.cross_entropy)
    assert report.rows
    assert report.bit_equal, report


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("capture", ["export", "symbolic"])
def test_a_new_batch_size_or_length_is_not_captured_again(name, capture, captures):
    if name == "attention" and capture == "symbolic":
        pytest.skip("symbolic_trace cannot follow sizes of proxies into torch.ones")
    build, inputs = MODELS[name]
    pc = pccompile.compile(build(), capture=capture)
    for batch, size in ((4, 6), (7, 6), (2, 9), (5, 12)):
        assert_like_autograd(pc, inputs(batch, size))
    assert len(captures()) == 1


def test_without_dynamic_every_size_is_captured_for_itself(captures):
    build, inputs = MODELS["mlp"]
    pc = pccompile.compile(build(), dynamic=False)
    for batch in (4, 7, 4):
        assert_like_autograd(pc, inputs(batch, 0))
    assert [line for line in captures() if "again" in line] == [
        "capturing Sequential again: input.shape[0] is 7, captured for 4"
    ]


def test_a_branch_on_a_size_is_captured_once_for_each_side(captures):
    pc = pccompile.compile(Branch())
    for length in (3, 4, 9, 2, 6):
        assert_like_autograd(pc, torch.randn(4, length))
    again = [line for line in captures() if "again" in line]
    assert again == ["capturing Branch again: x.shape[1] is 9, captured for 2 to 4"]


def test_a_condition_between_sizes_is_kept_as_a_guard(captures):
    class Square(nn.Linear):
        def forward(self, x):
            return super().forward(x.mean(1) if x.shape[1] * 2 < x.shape[0] else x.sum(1))

    pc = pccompile.compile(Square(5, 3))
    for batch, length in ((9, 2), (7, 3), (6, 4), (2, 8)):
        assert_like_autograd(pc, torch.randn(batch, length, 5))
    again = [line for line in captures() if "again" in line]
    assert len(again) == 1
    assert "the forward relied on" in again[0]
    assert "= 6" in again[0]


class Windows(nn.Module):
    """Cuts a sequence into windows, over and over: its length becomes a longer expression each time."""

    def __init__(self):
        super().__init__()
        self.fc, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        for window in (3, 4, 5):
            x = F.pad(x, (0, 0, 0, -x.shape[1] % window))
            x = self.fc(x.reshape(x.shape[0], x.shape[1] // window, window, 5)).flatten(1, 2)
        return self.head(x.mean(1))


def test_sizes_that_become_complicated_are_fixed_and_the_batch_stays_open(captures):
    pc = pccompile.compile(Windows())
    for batch, length in ((4, 7), (6, 7), (6, 8)):
        assert_like_autograd(pc, torch.randn(batch, length, 5))
    (again,) = [line for line in captures() if "again" in line]
    assert again.startswith("capturing Windows again: x.shape[1] is 8, captured for 7 (OpenSizesError: ")


def test_a_size_turned_into_a_number_is_fixed_and_captured_again_when_it_changes(captures):
    class Unrolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.Linear(6, 3)

        def forward(self, x):
            h = x.new_zeros(x.shape[0], 3)
            for step in range(x.shape[1]):
                h = torch.tanh(self.cell(torch.cat([x[:, step], h], 1)))
            return h

    pc = pccompile.compile(Unrolled())
    for batch, length in ((4, 3), (5, 3), (5, 4), (6, 4)):
        assert_like_autograd(pc, torch.randn(batch, length, 3))
    assert [line for line in captures() if "again" in line] == [
        "capturing Unrolled again: x.shape[1] is 4, captured for 3"
    ]


def test_the_loss_inside_follows_the_batch_size():
    """The rule that counts samples must count those of this batch."""
    torch.manual_seed(0)
    build, inputs = MODELS["mlp"]
    model = build().double()
    rule = pccompile.Strict(steps=3, step_size=0.2)
    pc = pccompile.compile(model, rule, loss_fn=F.cross_entropy)
    for batch in (3, 8):
        x, y = inputs(batch, 0).double(), torch.randint(0, 3, (batch,))
        fresh = pccompile.compile(model, rule, loss_fn=F.cross_entropy, dynamic=False)
        grads = []
        for compiled in (pc, fresh):
            model.zero_grad()
            compiled.loss(x, y).backward()
            grads.append([p.grad for p in model.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda m, x: (m.eval(), x)[1], "Sequential is in evaluation mode, was in training mode"),
        (lambda m, x: (m.double(), x.double())[1], "input: dtype torch.float32 -> torch.float64"),
        (lambda m, x: x.requires_grad_(), "input: requires_grad False -> True"),
    ],
    ids=["mode", "dtype", "requires_grad"],
)
def test_a_new_capture_says_in_one_line_what_changed(change, line, captures):
    model = nn.Sequential(nn.Linear(5, 6), nn.Dropout(), nn.Linear(6, 3))
    pc = pccompile.compile(model)
    x = torch.randn(4, 5)
    pc(x)
    pc(change(pc, x))
    again = [found for found in captures() if "again" in found]
    assert len(again) == 1
    assert again[0].startswith(f"capturing Sequential again: {line}")
    assert "an attribute" not in again[0]


def test_autocast_is_part_of_the_key(captures):
    pc = pccompile.compile(nn.Linear(5, 3))
    x = torch.randn(4, 5)
    assert pc(x).dtype is torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert pc(x).dtype is torch.bfloat16
    assert pc(x).dtype is torch.float32
    again = [found for found in captures() if "again" in found]
    assert len(again) == 1
    assert "autocast" in again[0]


def test_the_cache_is_bounded_and_says_once_that_it_overflows(monkeypatch, captures, caplog):
    monkeypatch.setattr(pccompile.variants, "KEPT_CAPTURES", 2)
    pc = pccompile.compile(nn.Linear(5, 3), dynamic=False)
    for batch in (1, 2, 3, 4, 4, 3, 1):
        assert_like_autograd(pc, torch.randn(batch, 5))
    assert len(pc._variants._entries) == 2
    assert len([line for line in captures() if line.startswith("captured ")]) == 5  # batches 4 and 3 were still there
    assert sum("oldest captures are dropped" in record.getMessage() for record in caplog.records) == 1


def test_a_misfit_at_a_later_call_names_the_module_and_the_shapes():
    pc = pccompile.compile(nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3)), capture="symbolic")
    pc(torch.randn(4, 5))
    with pytest.raises(ShapeError) as caught:
        pc(torch.randn(4, 7))
    assert "[4, 7]" in caught.value.cause
    assert caught.value.place.module == "0"


class Places(nn.Module):
    """Learned positions: computed from an input's size, and not from its values."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(11, 4), nn.Embedding(9, 4)
        self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, tokens):
        places = torch.tanh(self.fc1(self.places(torch.arange(tokens.shape[1]))))
        return self.fc2((self.words(tokens) + places).mean(1))


def test_open_sizes_leave_the_layers_as_they_are():
    found = []
    for dynamic in (True, False):
        pc = pccompile.compile(Places(), pccompile.FixedPrediction(), dynamic=dynamic)
        pc.prepare(torch.randint(0, 11, (6, 5)))
        found.append({v.name for v in pc.program.vertices if v.kind.value == "hidden"})
    assert found[0] == found[1] == {"words", "add"}
