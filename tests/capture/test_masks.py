"""nn.Transformer looks whether its mask is causal; a captured one applies whatever mask it is given."""

import pytest
import torch
from torch import nn
from torch.nn.modules import transformer

import pccompile


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x, mask):
        return self.encoder(x, mask=mask)


def test_one_capture_serves_causal_and_other_masks():
    model, x = Masked(), torch.randn(2, 5, 8)
    pc = pccompile.compile(model)
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    other = torch.zeros(5, 5).fill_diagonal_(float("-inf"))
    programs = set()
    for mask in (causal, other):
        torch.testing.assert_close(pc(x, mask), model(x, mask), rtol=1e-6, atol=1e-6)
        programs.add(id(pc.program))
    assert len(programs) == 1
    assert not torch.allclose(model(x, causal), model(x, other), atol=1e-3)


def test_pytorchs_own_function_is_back_after_a_capture_that_fails():
    original = transformer._detect_is_causal_mask
    with pytest.raises(pccompile.PCCompileError):
        pccompile.compile(Masked(), example_inputs=(torch.randn(2, 5, 7), torch.zeros(5, 5)))
    assert transformer._detect_is_causal_mask is original
