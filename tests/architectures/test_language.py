"""Models of the transformers library, unmodified: Z-IL trains them as autograd does."""

import copy
import math

import language
import pytest
import torch
import torch.nn.functional as F
from comparison import assert_one_capture_serves, assert_trains_as_autograd_does, relative_error

import pccompile

NAMES = tuple(language.MAKERS)


def word_loss(logits, labels):
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=-100)


@pytest.mark.parametrize("name", NAMES)
def test_the_models_own_loss_trains_it(name):
    model, batch = language.make(name, torch.float32, attention="sdpa")

    def step(module):
        outputs = module(**batch)
        return outputs, outputs.loss

    assert_trains_as_autograd_does(model, step, dynamic=False)


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_outside_trains_it(name):
    model, batch = language.make(name, torch.float64, attention="eager")
    labels = batch["labels"]
    if name != "t5":  # which makes the decoder's inputs from the labels
        del batch["labels"]

    def step(module):
        outputs = module(**batch, return_dict=False)
        logits = outputs[1 if name in ("t5", "mixtral") else 0]  # another loss comes first
        return outputs, word_loss(logits, labels)

    assert_trains_as_autograd_does(model, step, dynamic=False)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_loss_inside_trains_it(attention):
    model, batch = language.make("bert", torch.float32, attention)
    labels = batch.pop("labels")
    pc = pccompile.compile(model, loss_fn=lambda outputs, target: word_loss(outputs.logits, target), dynamic=False)
    report = pccompile.check(pc, batch, labels)
    assert len(report.rows) == len(list(model.parameters()))
    assert report.bit_equal, report


def test_one_capture_serves_batches_and_texts_of_other_sizes():
    model, _ = language.make("gpt2", torch.float32)

    def step_on(batch):
        def step(module):
            outputs = module(**batch)
            return outputs, outputs.loss

        return step

    sizes = ((3, 7), (2, 9))
    assert_one_capture_serves(model, [step_on(language.batch("gpt2", torch.float32, *size)) for size in sizes])


def test_embeddings_tied_to_the_output_layer_learn_from_both_uses():
    model, batch = language.make("gpt2", torch.float64)
    assert model.lm_head.weight is model.transformer.wte.weight
    pc = pccompile.compile(model, dynamic=False)
    pc(**batch).loss.backward()
    unseen = [word for word in range(language.WORDS) if not (batch["input_ids"] == word).any()]
    assert model.lm_head.weight.grad[unseen].any()  # through the output layer
    with pytest.raises(KeyError):
        pc.program.vertex("lm_head.weight")


def test_fixed_prediction_over_the_whole_depth_is_backpropagation():
    model, batch = language.make("llama", torch.float64)
    twin = copy.deepcopy(model)
    pc = pccompile.compile(model, pccompile.FixedPrediction(steps=200, step_size=1.0), dynamic=False)
    for module in (twin, pc):
        torch.manual_seed(7)
        module(**batch).loss.backward()
    for (name, ours), theirs in zip(pc.named_parameters(), twin.parameters(), strict=True):
        assert relative_error(ours.grad, theirs.grad) <= 1e-12, name


def test_strict_inference_follows_the_models_own_loss():
    model, batch = language.make("gpt2", torch.float32)
    pc = pccompile.compile(model, pccompile.Strict(steps=2, step_size=1e-3), dynamic=False)
    pc.record_energies = True
    pc.loss(batch).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert model.lm_head.weight.grad.any() and all(map(math.isfinite, pc.energies))
    assert pc.energies[-1] < pc.energies[0]
