"""nn.RNN, nn.LSTM, nn.GRU and nn.Transformer as they come: Z-IL trains them as autograd does."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_one_capture_serves, assert_trains_as_autograd_does, relative_error
from torch import nn
from torch.nn.utils import rnn

import pccompile
from pccompile.errors import CaptureError

DTYPES = (torch.float32, torch.float64)
KINDS = (nn.RNN, nn.LSTM, nn.GRU)


class Tagger(nn.Module):
    """Two layers in both directions, dropout between them; scores for every step, and the last state."""

    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = kind(3, 4, num_layers=2, bidirectional=True, dropout=0.2, batch_first=True, **options)
        self.fc = nn.Linear(2 * (self.rnn.proj_size or 4), 5)

    def forward(self, x, state=None):
        hidden, state = self.rnn(x, state)
        return {"scores": self.fc(hidden), "state": state}


class PackedTagger(Tagger):
    def forward(self, x, lengths):
        packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        hidden, _ = self.rnn(packed)
        return self.fc(rnn.pad_packed_sequence(hidden, batch_first=True)[0])


class TakesPacked(Tagger):
    def forward(self, packed):
        return self.fc(self.rnn(packed)[0].data)


class Translator(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer = nn.Transformer(8, 2, 2, 2, 16, dropout=0.1, batch_first=True)
        self.fc = nn.Linear(8, 5)

    def forward(self, source, target, *, padding):
        causal = self.transformer.generate_square_subsequent_mask(target.shape[1], dtype=target.dtype)
        hidden = self.transformer(
            source, target, tgt_mask=causal, src_key_padding_mask=padding, memory_key_padding_mask=padding
        )
        return self.fc(hidden)


def tagging(module, x, *state):
    outputs = module(x, *state)
    scores = outputs["scores"].flatten(0, 1)
    flat = outputs["state"] if isinstance(outputs["state"], tuple) else (outputs["state"],)
    return outputs, F.cross_entropy(scores, torch.arange(len(scores)) % 5) + sum(map(torch.sum, flat))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_several_layers_in_both_directions_with_dropout_between_them(kind, dtype):
    model, x = Tagger(kind).to(dtype), torch.randn(3, 6, 3, dtype=dtype)
    assert_trains_as_autograd_does(model, lambda module: tagging(module, x), dynamic=False)


def test_one_capture_serves_batches_of_other_sizes():
    batches = torch.randn(3, 6, 3), torch.randn(5, 6, 3)
    assert_one_capture_serves(Tagger(nn.LSTM), [lambda module, x=x: tagging(module, x) for x in batches])


def test_a_state_handed_in_and_a_projected_state():
    model, x = Tagger(nn.LSTM, proj_size=2), torch.randn(3, 6, 3)
    state = torch.randn(4, 3, 2), torch.randn(4, 3, 4)
    assert_trains_as_autograd_does(model, lambda module: tagging(module, x, state), dynamic=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_transformer_with_causal_and_padding_masks(dtype):
    model = Translator().to(dtype)
    source, target = torch.randn(3, 6, 8, dtype=dtype), torch.randn(3, 4, 8, dtype=dtype)
    padding = torch.arange(6) >= torch.tensor([6, 4, 5])[:, None]

    def step(module):
        outputs = module(source, target, padding=padding)
        return outputs, outputs.logsumexp(-1).mean()

    assert_trains_as_autograd_does(model, step, dynamic=False)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences_are_refused_with_the_cure(kind):
    x, lengths = torch.randn(3, 6, 3), torch.tensor([4, 6, 2])
    with pytest.raises(CaptureError, match=r"lengths.*\n.*padded") as raised:
        pccompile.compile(PackedTagger(kind))(x, lengths)
    assert "packed = rnn.pack_padded_sequence" in str(raised.value)
    packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    with pytest.raises(CaptureError, match=r"lengths.*\n.*padded"):
        pccompile.compile(TakesPacked(kind))(packed)
    with torch.no_grad():
        pccompile.compile(PackedTagger(kind))(x, lengths)  # the model itself


@pytest.mark.parametrize("kind", KINDS)
def test_fixed_prediction_over_the_whole_depth_is_backpropagation(kind):
    model, x = Tagger(kind).double(), torch.randn(3, 6, 3, dtype=torch.float64)
    twin = copy.deepcopy(model)
    pc = pccompile.compile(model, pccompile.FixedPrediction(steps=10, step_size=1.0), dynamic=False, decompose=False)
    for module in (twin, pc):
        torch.manual_seed(7)
        tagging(module, x)[1].backward()
    for (name, ours), theirs in zip(pc.named_parameters(), twin.parameters(), strict=True):
        assert relative_error(ours.grad, theirs.grad) <= 1e-12, name


def test_strict_inference_lowers_the_energy_of_an_lstm():
    model, x = Tagger(nn.LSTM), torch.randn(3, 6, 3)
    pc = pccompile.compile(
        model,
        pccompile.Strict(steps=2, step_size=0.1),
        loss_fn=lambda outputs, target: F.cross_entropy(outputs["scores"].flatten(0, 1), target.flatten()),
        dynamic=False,
    )
    pc.record_energies = True
    pc.loss(x, torch.arange(18).reshape(3, 6) % 5).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert all(map(math.isfinite, pc.energies)) and pc.energies[-1] < pc.energies[0]
