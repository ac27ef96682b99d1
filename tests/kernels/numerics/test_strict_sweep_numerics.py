"""strict_sweep against its reference, its forms against each other, and both against the compiled program."""

import itertools
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from chains import random_chain
from closeness import assert_close
from layers import far_apart
from torch import nn
from torch.nn import functional

import pccompile
from pccompile.errors import ShapeError, UsageError
from pccompile.kernels import ACTIVATIONS, chain_gradients, counting_launches, strict_sweep
from pccompile.kernels.strict_sweep.configurations import Configuration
from pccompile.kernels.strict_sweep.launch import FORMS, Settings, empty_buffers, launch_strict_sweep
from pccompile.kernels.strict_sweep.layout import Chain, Layout
from pccompile.kernels.strict_sweep.reference import strict_sweep_reference

OPTIONS = {"steps": 3, "step_size": 0.2}
# An error is the difference of a value and its prediction, which are larger: it has fewer digits than they.
RATIO = {
    torch.float32: {"values": 1e-6, "energies": 1e-6, "others": 3e-5},
    torch.bfloat16: {"values": 1e-2, "energies": 1e-2, "others": 2e-1},
    torch.float16: {"values": 1e-3, "energies": 1e-3, "others": 3e-2},
}
LISTS = ("values", "errors", "drives", "weight_gradients", "bias_gradients")


def check_against_reference(
    chain, reference_chain=None, input_precision="ieee", form="batch_tiles", digits_lost=1, **options
):
    options = OPTIONS | options
    sweep = strict_sweep(*chain.arguments, energies=True, form=form, input_precision=input_precision, **options)
    reference = strict_sweep_reference(*(reference_chain or chain.double()).arguments, **options)
    allowed = RATIO[torch.float16 if input_precision == "tf32" else chain.x.dtype]
    assert_close("energies", reference.energies, sweep.energies, allowed["energies"])
    for name in LISTS:
        for layer, (expected, actual) in enumerate(
            zip(getattr(reference, name), getattr(sweep, name), strict=True), start=1
        ):
            ratio = allowed.get(name, digits_lost * allowed["others"])
            assert_close(f"{name} of layer {layer}", expected, actual, ratio)
    return sweep


@pytest.mark.parametrize(
    ("loss", "free_output", "learn_errors", "momentum"),
    list(itertools.product(["cross_entropy", "squared_error"], [False, True], ["current", "previous"], [0.0, 0.9])),
)
def test_a_sweep_equals_the_reference(device, loss, free_output, learn_errors, momentum):
    chain = random_chain(device, loss=loss)
    check_against_reference(
        chain,
        loss=loss,
        free_output=free_output,
        learn_errors=learn_errors,
        momentum=momentum,
        loss_factor=0.7,
        gradient_factor=-0.3,
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_hidden_and_at_the_output(device, activation):
    chain = random_chain(device, 18, (9, 17, 12, 5), (activation,) * 3, loss="squared_error")
    check_against_reference(chain, loss="squared_error", negative_slope=0.2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_sweep_equals_the_reference_in_half_precision(device, dtype):
    chain = random_chain(device, dtype=dtype)
    check_against_reference(chain, step_size=0.5, steps=4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_hidden_and_at_the_output_in_half_precision(device, activation, dtype):
    chain = random_chain(device, 5, (9, 7, 5), (activation,) * 2, "squared_error", dtype)
    check_against_reference(chain, loss="squared_error", negative_slope=0.2, steps=2)


@pytest.mark.parametrize("steps", [1, 6])
def test_a_whole_sweep_is_one_launch_and_all_gradients_another(device, steps):
    chain = random_chain(device, 5, (4, 7, 6, 3))
    with counting_launches() as launches:
        strict_sweep(*chain.arguments, steps=steps, step_size=0.1, form="batch_tiles")
    assert launches == {"strict_sweep": 1, "chain_gradients": 1}
    with counting_launches() as launches:
        strict_sweep(*chain.arguments, steps=steps, step_size=0.1, form="half_steps", gradients=False)
    # each layer's start; the loss in every step and after the last; the moves, and the predictions that follow; the end
    assert launches == {"strict_half_step": 3 + (steps + 1) + 2 * steps + 1}


def test_tf32_is_an_option(device):
    check_against_reference(random_chain(device), input_precision="tf32", step_size=0.5)


@pytest.mark.parametrize(
    ("batch", "widths"),
    [
        (1, (1, 1, 1)),
        (1, (60, 63, 33, 2)),
        (63, (1, 60, 1, 3)),
        (33, (5, 7)),  # nothing moves
        (33, (64, 32, 64)),
        (4, (0, 3, 4)),
        (5, (4, 3, 5, 2, 6, 3, 4, 5)),  # more layers than steps: some are never reached
    ],
)
def test_awkward_shapes_and_depths(device, batch, widths):
    activations = ("relu",) * (len(widths) - 2) + ("identity",)
    check_against_reference(random_chain(device, batch, widths, activations), digits_lost=10)


@pytest.mark.parametrize("learn_errors", ["current", "previous"])
def test_a_single_layer_with_a_free_output(device, learn_errors):
    chain = random_chain(device, 20, (12, 7), ("tanh",))
    check_against_reference(chain, free_output=True, learn_errors=learn_errors, momentum=0.5)


def test_an_empty_batch_has_gradients_of_zero(device):
    chain = random_chain(device, 0)
    sweep = strict_sweep(*chain.arguments, **OPTIONS, energies=True)
    assert [value.shape for value in sweep.values] == [(0, 33), (0, 18), (0, 7)] and sweep.energies.shape == (4, 0)
    assert not any(gradient.any() for gradient in (*sweep.weight_gradients, *sweep.bias_gradients))


def test_strides_are_followed_and_biases_may_be_missing(device):
    check_against_reference(random_chain(device, loss="squared_error").scattered(), loss="squared_error")
    check_against_reference(random_chain(device, bias=False))


def test_rows_far_apart_are_addressed_with_64_bits(device):
    chain = random_chain(device, 3, (4, 5, 3), ("tanh", "identity"), dtype=torch.float16)
    far = replace(chain, weights=[far_apart(chain.weights[0]), chain.weights[1]])
    check_against_reference(far, chain.double(), step_size=0.5)


def test_ignored_samples_have_no_loss_and_a_class_that_does_not_exist_is_not_hidden(device):
    chain = random_chain(device)
    chain.target[3], chain.target[7] = -100, 2
    check_against_reference(chain)
    chain.target[3] = 2
    check_against_reference(chain, ignore_index=2)
    chain.target[4] = 7
    energies = strict_sweep(*chain.arguments, **OPTIONS, energies=True).energies
    assert energies[:, 4].isnan().all() and int(energies.isnan().sum()) == 4


@pytest.mark.parametrize("form", ["batch_tiles", "half_steps"])
def test_a_mean_is_over_the_samples_that_are_not_ignored(device, form):
    chain = random_chain(device, 300, (4, 5, 3), ("tanh", "identity"))
    chain.target[1] = chain.target[290] = -100
    check_against_reference(chain, averaged=True, loss_factor=300.0, form=form)
    with pytest.raises(UsageError, match="averaged"):
        strict_sweep(chain.x, chain.x[:, :3], *chain.arguments[2:], **OPTIONS, loss="squared_error", averaged=True)


def test_classes_may_lie_apart(device):
    chain = random_chain(device)
    apart = torch.stack([chain.target, torch.full_like(chain.target, -1)], dim=1)[:, 0]
    check_against_reference(replace(chain, target=apart))


@pytest.mark.parametrize("blocks", [(16, 64, 16), (64, 16, 32), (16, 16, 16)], ids=str)
@pytest.mark.parametrize("form", ["batch_tiles", "half_steps"])
def test_every_element_is_written_and_nothing_else_whatever_the_tiles(device, blocks, form):
    random = random_chain(device)
    chain = Chain(tuple(random.weights), tuple(random.biases), tuple(random.activations))
    settings = Settings("cross_entropy", False, "current", True, 2, 0.2, 0.9, 1.0, -100, 0.01, "ieee")
    layout = Layout.of([weight.shape for weight in chain.weights])
    buffers = empty_buffers(random.x, layout.columns, settings)
    for buffer in buffers:
        buffer.fill_(torch.nan)
    configuration = Configuration(*blocks, warps=4, stages=2)
    launch_strict_sweep(random.x, random.target, chain, settings, buffers, form, configuration)
    reference = strict_sweep_reference(*random.double().arguments, steps=2, step_size=0.2, momentum=0.9)
    assert_close("energies", reference.energies, buffers.energies)
    for name, ratio in (("values", 1e-6), ("errors", 3e-5), ("drives", 3e-5)):
        buffer = getattr(buffers, name)
        for start, expected in zip(layout.starts, getattr(reference, name), strict=False):
            columns = buffer[:, start : start + expected.shape[1]]
            assert_close(name, expected, columns, ratio)
            columns.fill_(torch.nan)
        assert (buffer.isnan() | (buffer == 0)).all()  # zeros between the layers


@pytest.mark.parametrize("learn_errors", ["current", "previous"])
@pytest.mark.parametrize("free_output", [False, True])
def test_the_forms_agree_bit_for_bit(device, free_output, learn_errors):
    chain = random_chain(device, 40, (12, 36, 20, 18, 5), ("tanh", "silu", "tanh", "identity"))
    options = OPTIONS | {"steps": 5, "free_output": free_output, "learn_errors": learn_errors, "momentum": 0.5}
    forms = [form for form in FORMS if device == "cuda" or form != "cooperative"]
    first, *others = (strict_sweep(*chain.arguments, form=form, energies=True, **options) for form in forms)
    for other in others:
        assert torch.equal(first.energies, other.energies)
        for name in LISTS:
            assert all(map(torch.equal, getattr(first, name), getattr(other, name))), name


@pytest.mark.parametrize("widths", [(12, 36, 20, 18, 5), (12, 7)], ids=str)
@pytest.mark.parametrize("learn_errors", ["current", "previous"])
@pytest.mark.parametrize("free_output", [False, True])
def test_recording_energies_takes_the_layers_in_another_order_and_changes_nothing(
    device, free_output, learn_errors, widths
):
    chain = random_chain(device, 20, widths, ("tanh", "silu", "tanh", "identity")[1 - len(widths) :])
    options = {"step_size": 0.2, "free_output": free_output, "learn_errors": learn_errors, "momentum": 0.5}
    for steps in (1, 5):
        found = strict_sweep(*chain.arguments, energies=False, form="batch_tiles", steps=steps, **options)
        recorded = strict_sweep(*chain.arguments, energies=True, form="batch_tiles", steps=steps, **options)
        for name in LISTS:
            assert all(map(torch.equal, getattr(recorded, name), getattr(found, name))), name


@pytest.mark.parametrize("free_output", [False, True])
@pytest.mark.parametrize(("form", "programs"), [("half_steps", 3), ("cooperative", 1)])
def test_the_number_of_programs_changes_nothing(device, form, programs, free_output):
    # With one program the grid's barrier is passed at once, in the interpreter as well.
    random = random_chain(device)
    chain = Chain(tuple(random.weights), tuple(random.biases), tuple(random.activations))
    settings = Settings("cross_entropy", free_output, "current", True, 3, 0.2, 0.9, 1.0, -100, 0.01, "ieee")
    columns = Layout.of([weight.shape for weight in chain.weights], free_output).columns
    expected, found = (empty_buffers(random.x, columns, settings) for _ in range(2))
    launch_strict_sweep(random.x, random.target, chain, settings, expected)
    launch_strict_sweep(random.x, random.target, chain, settings, found, form, programs=programs)
    for name in ("values", "errors", "drives", "energies"):
        assert torch.equal(getattr(expected, name), getattr(found, name)), name


def test_a_sample_does_not_depend_on_its_batch_and_results_repeat(device):
    chain = random_chain(device, 40)
    whole = strict_sweep(*chain.arguments, **OPTIONS)
    part = replace(chain, x=chain.x[32:], target=chain.target[32:])
    for one, other in zip(whole.values, strict_sweep(*part.arguments, **OPTIONS).values, strict=True):
        assert torch.equal(one[32:], other)
    again = strict_sweep(*chain.arguments, **OPTIONS)
    assert all(map(torch.equal, whole.weight_gradients, again.weight_gradients))


def test_the_gradients_take_a_factor_from_the_device(device):
    chain = random_chain(device, 9)
    plain = strict_sweep(*chain.arguments, **OPTIONS)
    scaled = strict_sweep(*chain.arguments, **OPTIONS, upstream=torch.tensor(0.5, device=device))
    assert all(torch.equal(a * 0.5, b) for a, b in zip(plain.weight_gradients, scaled.weight_gradients, strict=True))
    assert all(torch.equal(a * 0.5, b) for a, b in zip(plain.bias_gradients, scaled.bias_gradients, strict=True))


def test_the_measured_form_is_one_that_can_run_and_is_remembered(device, monkeypatch):
    chain = random_chain(device, 5, (4, 3, 2), ("tanh", "identity"))
    expected = strict_sweep(*chain.arguments, **OPTIONS)
    found = strict_sweep(*chain.arguments, **OPTIONS, form="measured")
    assert torch.equal(expected.values[0], found.values[0])
    monkeypatch.setattr(import_module("pccompile.kernels.strict_sweep.choice"), "_seconds", pytest.fail)
    strict_sweep(*chain.arguments, **OPTIONS, form="measured")


# The compiled program ------------------------------------------------------------------------------------------------

MODELS = {
    "three layers": lambda: nn.Sequential(nn.Linear(20, 33), nn.Tanh(), nn.Linear(33, 17), nn.ReLU(), nn.Linear(17, 5)),
    "activation at the output": lambda: nn.Sequential(nn.Linear(20, 16), nn.GELU(), nn.Linear(16, 5), nn.Sigmoid()),
}
NAMES = {nn.Tanh: "tanh", nn.ReLU: "relu", nn.GELU: "gelu", nn.Sigmoid: "sigmoid"}


def layers_of(model):
    """(weights, biases, activations) of a chain of linear layers."""
    linear = [index for index, module in enumerate(model) if isinstance(module, nn.Linear)]
    activations = [NAMES.get(type(model[i + 1]) if i + 1 < len(model) else None, "identity") for i in linear]
    return [model[i].weight.detach() for i in linear], [model[i].bias.detach() for i in linear], activations


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize(
    "rule",
    [
        pccompile.Strict(steps=5, step_size=0.1),
        pccompile.Strict(steps=4, step_size=0.2, optimizer="momentum", momentum=0.5),
        pccompile.Strict(steps=3, step_size=0.3, learn_errors="previous"),
        pccompile.Strict(steps=3, step_size=0.3, batch_energy="as_given"),
    ],
    ids=["plain", "momentum", "previous", "as given"],
)
@pytest.mark.parametrize("loss", [functional.cross_entropy, functional.mse_loss], ids=["cross_entropy", "mse_loss"])
def test_gradients_and_energies_equal_the_compiled_programs(device, loss, rule, model_name):
    model = MODELS[model_name]().to(device).double()
    batch, outputs = 12, 5
    x = torch.randn(batch, 20, dtype=torch.float64, device=device)
    squared = loss is functional.mse_loss
    target = torch.randn(batch, outputs, dtype=torch.float64) if squared else torch.randint(0, outputs, (batch,))
    target = target.to(device)
    pc = pccompile.compile(model, rule, loss, backend="eager")
    pc.record_energies = True
    pc.loss(x, target).backward()

    scale = batch if rule.batch_energy == "per_sample" else 1
    weights, biases, activations = layers_of(model)
    sweep = strict_sweep(
        x.float(),
        target.float() if squared else target,
        [weight.float() for weight in weights],
        [bias.float() for bias in biases],
        activations,
        steps=rule.steps,
        step_size=rule.step_size,
        momentum=rule.momentum if rule.optimizer == "momentum" else 0.0,
        learn_errors=rule.learn_errors,
        loss="squared_error" if squared else "cross_entropy",
        loss_factor=scale / batch / (outputs if squared else 1),
        gradient_factor=-1 / scale,
        energies=True,
    )
    expected = torch.tensor(pc.energies, dtype=torch.float64)
    assert_close("energies", expected, sweep.energies.double().sum(1), ratio=1e-6)
    found = [*itertools.chain(*zip(sweep.weight_gradients, sweep.bias_gradients, strict=True))]
    for (name, parameter), gradient in zip(model.named_parameters(), found, strict=True):
        assert_close(name, parameter.grad, gradient, ratio=3e-5)


# Refusals -----------------------------------------------------------------------------------------------------------


def test_refusals_name_the_argument(device):
    chain = random_chain(device, 6, (5, 4, 3), ("tanh", "identity"))
    x, target, (first, second), biases, activations = chain.arguments
    weights = [first, second]
    refused = [
        (UsageError, "no layers", (x, target, [], [], [])),
        (UsageError, "float64", (x.double(), target, weights, biases, activations)),
        (UsageError, "'swish'", (x, target, weights, biases, ["swish", "identity"])),
        (ShapeError, "2 weights, 1 biases", (x, target, weights, biases[:1], activations)),
        (ShapeError, r"weights\[1\] is torch.float16", (x, target, [first, second.half()], biases, activations)),
        (ShapeError, r"weights\[1\] has shape", (x, target, [first, second[:, 1:]], biases, activations)),
        (ShapeError, r"biases\[0\] has shape", (x, target, weights, [biases[1], biases[1]], activations)),
        (ShapeError, "target has shape", (x, target[1:], weights, biases, activations)),
        (ShapeError, "target is torch.int32", (x, target.int(), weights, biases, activations)),
        (ShapeError, "x has shape", (x[0], target, weights, biases, activations)),
    ]
    for kind, words, arguments in refused:
        with pytest.raises(kind, match=words):
            strict_sweep(*arguments, **OPTIONS)
    options = [
        ({"steps": 0}, "steps=0"),
        ({"loss": "hinge"}, "loss='hinge'"),
        ({"learn_errors": "old"}, "learn_errors='old'"),
        ({"form": "quick"}, "form='quick'"),
        ({"input_precision": "fast"}, "input_precision"),
    ]
    for changed, words in options:
        with pytest.raises(UsageError, match=words):
            strict_sweep(*chain.arguments, **(OPTIONS | changed))
    with pytest.raises(ShapeError, match=r"target has shape|target is"):
        strict_sweep(*chain.arguments, **OPTIONS, loss="squared_error")
    values = x.new_empty(6, 16)
    with pytest.raises(ShapeError, match="values has shape"):
        chain_gradients(x, values, values, weights)


def test_a_cooperative_launch_is_refused_under_the_interpreter(device):
    if device == "cuda":
        pytest.skip("the interpreter is off")
    with pytest.raises(UsageError, match="interpreter"):
        strict_sweep(*random_chain(device).arguments, **OPTIONS, form="cooperative")
