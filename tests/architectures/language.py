"""Small models of the transformers library, with random weights: (model, batch with labels)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

WORDS = 53
TOKENS = {"vocab_size": WORDS, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
PLACES = {"max_position_embeddings": 16}
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


def gpt2(attention: str, dtype: torch.dtype) -> nn.Module:
    words = {key: value for key, value in TOKENS.items() if key != "pad_token_id"}
    sizes = {"n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**words, **sizes, attn_implementation=attention))


def bert(attention: str, dtype: torch.dtype) -> nn.Module:
    return BertForMaskedLM(BertConfig(**TOKENS, **SIZES, **PLACES, **DROPOUT, attn_implementation=attention))


def llama(attention: str, dtype: torch.dtype) -> nn.Module:
    grouped = {"num_key_value_heads": 1, "attention_dropout": 0.1}
    return LlamaForCausalLM(LlamaConfig(**TOKENS, **SIZES, **PLACES, **grouped, attn_implementation=attention))


def mixtral(attention: str, dtype: torch.dtype) -> nn.Module:
    # the library's grouped product exists in float32 only
    experts = "grouped_mm" if dtype is torch.float32 else "batched_mm"
    grouped = {"num_key_value_heads": 1, "num_local_experts": 3, "num_experts_per_tok": 2, "attention_dropout": 0.1}
    options = {"output_router_logits": True, "experts_implementation": experts, "attn_implementation": attention}
    return MixtralForCausalLM(MixtralConfig(**TOKENS, **SIZES, **PLACES, **grouped, **options))


def t5(attention: str, dtype: torch.dtype) -> nn.Module:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.1}
    return T5ForConditionalGeneration(T5Config(**TOKENS, **sizes, decoder_start_token_id=0))


def mamba(attention: str, dtype: torch.dtype) -> nn.Module:
    sizes = {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "expand": 2, "conv_kernel": 4}
    return MambaForCausalLM(MambaConfig(**TOKENS, **sizes))


def vit(attention: str, dtype: torch.dtype) -> nn.Module:
    image = {"image_size": 8, "patch_size": 4, "num_labels": WORDS}
    return ViTForImageClassification(ViTConfig(**SIZES, **DROPOUT, **image, attn_implementation=attention))


MAKERS: dict[str, Callable[[str, torch.dtype], nn.Module]] = {
    maker.__name__: maker for maker in (gpt2, bert, llama, mixtral, t5, mamba, vit)
}


def make(name: str, dtype: torch.dtype, attention: str = "sdpa") -> tuple[nn.Module, dict[str, Any]]:
    """The model of that name in training mode, and a batch: keyword arguments, padding masked, labels among them."""
    torch.manual_seed(0)
    model = MAKERS[name](attention, dtype).to(dtype).train()
    return model, batch(name, dtype)


def batch(name: str, dtype: torch.dtype, samples: int = 3, length: int = 7) -> dict[str, Any]:
    """Keyword arguments for the model of that name."""
    if name == "vit":
        return {"pixel_values": torch.randn(samples, 3, 8, 8, dtype=dtype), "labels": torch.randint(5, (samples,))}
    ids = torch.randint(3, WORDS, (samples, length))
    mask = torch.ones_like(ids)
    mask[1, -2:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels[:, :-2].contiguous() if name == "t5" else labels}
