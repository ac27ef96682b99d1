"""The compiled module in ordinary training code."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from models import Regularised, ResNet, loss_fn, make, mlp
from torch import nn

import pccompile
from pccompile.errors import DoubleBackwardError, UsageError


def batch(name="residual blocks with batch norm", dtype=torch.float32):
    model, inputs, target = make(name, dtype)
    return model, inputs, target


def both_gradients(left, right, tensors, seed=3):
    found = []
    for function in (left, right):
        torch.manual_seed(seed)
        found.append(torch.autograd.grad(function(), tensors))
    return zip(*found, strict=True)


def test_it_shares_the_models_parameters_and_its_state_dict_has_the_models_keys():
    model, *_ = batch()
    pc = pccompile.compile(model)
    assert list(pc.state_dict()) == list(model.state_dict())
    assert [p.data_ptr() for p in pc.parameters()] == [p.data_ptr() for p in model.parameters()]
    pc.load_state_dict({key: torch.zeros_like(value) for key, value in model.state_dict().items()})
    assert all(not value.any() for value in model.state_dict().values())
    assert pc.layer1 is model.layer1


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_training_follows_autograd_exactly_with_any_optimizer_buffers_included(optimizer):
    model, inputs, target = batch()
    twin = copy.deepcopy(model)
    pc = pccompile.compile(model, loss_fn=loss_fn)
    ours = getattr(torch.optim, optimizer)(pc.parameters(), lr=1e-2)
    theirs = getattr(torch.optim, optimizer)(twin.parameters(), lr=1e-2)
    for _ in range(3):
        ours.zero_grad()
        pc.loss(inputs, target).backward()
        torch.nn.utils.clip_grad_norm_(pc.parameters(), 0.1)
        ours.step()
        theirs.zero_grad()
        loss_fn(twin(inputs), target).backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
        theirs.step()
    for (name, value), expected in zip(pc.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name


def test_gradients_accumulate_over_micro_batches():
    model, inputs, target = batch("mlp", torch.float64)
    pc = pccompile.compile(model, loss_fn=loss_fn)
    for part in (slice(0, 2), slice(2, 6)):
        pc.loss(inputs[part], target[part]).backward()
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    (loss_fn(model(inputs[:2]), target[:2]) + loss_fn(model(inputs[2:]), target[2:])).backward()
    for gradient, parameter in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-12, atol=1e-14)


def test_it_composes_with_autograd_modules_before_and_after_and_gives_the_inputs_gradient():
    model, inputs, _ = batch("mlp")
    before, after = nn.Linear(4, 4), nn.Linear(5, 2)
    pc = pccompile.compile(model)
    x = inputs.clone().requires_grad_()
    tensors = [x, *before.parameters(), *model.parameters(), *after.parameters()]
    pairs = both_gradients(
        lambda: after(pc(before(x))).square().mean(), lambda: after(model(before(x))).square().mean(), tensors
    )
    assert all(torch.equal(a, b) for a, b in pairs)
    pc(x).sum().backward()
    assert x.grad is not None


def test_without_grad_it_is_the_plain_model():
    model, inputs, _ = batch()
    pc = pccompile.compile(model.eval())
    with torch.no_grad():
        assert torch.equal(pc(inputs), model(inputs))
    with pytest.raises(UsageError, match="no program yet"):
        _ = pc.program


def test_eval_with_gradients_trains_the_eval_graph():
    model, inputs, target = batch()
    pc = pccompile.compile(model, loss_fn=loss_fn)
    assert pccompile.check(pc, inputs, target).bit_equal
    pc.eval()
    assert not model.layer1[0].bn1.training
    before = model.layer1[0].bn1.running_mean.clone()
    assert pccompile.check(pc, inputs, target).bit_equal
    pc.loss(inputs, target).backward()
    assert torch.equal(before, model.layer1[0].bn1.running_mean)
    pc.train()
    assert pccompile.check(pc, inputs, target).bit_equal


@pytest.mark.parametrize("rule", [pccompile.ZIL(), pccompile.Strict(steps=5)], ids=["zil", "strict"])
def test_running_statistics_move_once_a_forward_pass(rule):
    model, inputs, target = batch()
    twin = copy.deepcopy(model)
    pccompile.compile(model, rule, loss_fn=loss_fn).loss(inputs, target).backward()
    twin(inputs)
    for (name, ours), theirs in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


def test_dropout_masks_are_drawn_once_and_held_for_every_step():
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 5)).double()
    inputs, target = torch.randn(6, 4).double(), torch.randint(5, (6,))
    pc = pccompile.compile(model, pccompile.Strict(steps=3, step_size=1e-6), loss_fn=loss_fn)
    # with a vanishing step only the last layer learns, and its gradient is backpropagation's under the same mask
    report = pccompile.check(pc, inputs, target)
    assert next(row for row in report.rows if row.name == "2.weight").relative_error < 1e-5
    assert next(row for row in report.rows if row.name == "0.weight").relative_error > 0.9


@pytest.mark.parametrize("capture", ["export", "symbolic"])
def test_autocast_gradients_equal_autograds_under_autocast(capture):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 5))
    inputs, target = torch.randn(6, 4), torch.randint(5, (6,))
    pc = pccompile.compile(model, capture=capture)
    plain = pc(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pairs = both_gradients(
            lambda: F.cross_entropy(pc(inputs), target),
            lambda: F.cross_entropy(model(inputs), target),
            list(model.parameters()),
        )
        assert pc(inputs).dtype == torch.bfloat16
    assert plain.dtype == torch.float32
    assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in pairs)


def test_backward_may_leave_the_autocast_context():
    model, inputs, target = batch("mlp")
    pc = pccompile.compile(model, pccompile.Strict(steps=3), loss_fn=loss_fn, capture="symbolic")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = torch.autograd.grad(pc.loss(inputs, target), list(pc.parameters()))
        loss = pc.loss(inputs, target)
    outside = torch.autograd.grad(loss, list(pc.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_bit_equal_too(dtype):
    model, inputs, target = batch("residual blocks with batch norm", dtype)
    assert pccompile.check(pccompile.compile(model, loss_fn=loss_fn), inputs, target).bit_equal


def test_the_gradient_is_scaled_with_the_loss_under_every_rule():
    model, inputs, target = batch("mlp", torch.float64)
    for rule in (pccompile.ZIL(), pccompile.FixedPrediction(steps=5), pccompile.Strict(steps=5)):
        pc = pccompile.compile(model, rule, loss_fn=loss_fn)
        once = torch.autograd.grad(pc.loss(inputs, target), list(pc.parameters()))
        scaled = torch.autograd.grad(1024 * pc.loss(inputs, target), list(pc.parameters()))
        for a, b in zip(once, scaled, strict=True):
            torch.testing.assert_close(1024 * a, b, rtol=1e-13, atol=0)


@pytest.mark.parametrize("rule", [pccompile.ZIL(), pccompile.Strict(steps=4)], ids=["zil", "strict"])
def test_a_model_that_returns_its_loss_works(rule):
    model = Regularised().double()
    x, labels = torch.randn(6, 4).double(), torch.randint(5, (6,))
    own = pccompile.compile(model, rule)
    given = pccompile.compile(model.net, rule, loss_fn=F.cross_entropy)
    expected = torch.autograd.grad(given.loss(x, labels), list(model.parameters()))
    outputs = own(x, labels=labels)
    assert outputs["logits"].shape == (6, 5)
    for found in (outputs["loss"], own.loss({"x": x, "labels": labels})):
        for a, b in zip(torch.autograd.grad(found, list(model.parameters())), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


def test_strict_without_a_loss_says_what_to_do():
    pc = pccompile.compile(mlp(), pccompile.Strict())
    with pytest.raises(UsageError, match="loss_fn"):
        pc(torch.randn(6, 4))
    with pytest.raises(UsageError, match="loss_fn"):
        pccompile.compile(mlp()).loss(torch.randn(6, 4))


def test_backward_twice_needs_retain_graph_and_then_doubles_the_gradient():
    model, inputs, target = batch("mlp")
    pc = pccompile.compile(model, loss_fn=loss_fn)
    loss = pc.loss(inputs, target)
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in pc.parameters()]
    loss.backward()
    assert all(torch.equal(2 * a, p.grad) for a, p in zip(once, pc.parameters(), strict=True))
    with pytest.raises(UsageError, match="retain_graph"):
        loss.backward()


def test_double_backward_is_refused_clearly():
    model, inputs, target = batch("mlp")
    loss = pccompile.compile(model, loss_fn=loss_fn).loss(inputs, target)
    with pytest.raises(DoubleBackwardError, match="create_graph"):
        torch.autograd.grad(loss, list(model.parameters()), create_graph=True)


def test_frozen_parameters_get_no_gradient_and_their_branch_no_error():
    model, inputs, target = batch("residual blocks with batch norm")
    model.stem.requires_grad_(False)
    model.layer1[0].requires_grad_(False)
    pc = pccompile.compile(model, loss_fn=loss_fn)
    assert pccompile.check(pc, inputs, target).bit_equal
    busy = {update.vertex for update in pc.program.schedule if update.action.value != "Predict"}
    assert not [name for name in busy if name.startswith(("stem", "layer1.0"))]
    model.stem.requires_grad_(True)
    assert pccompile.check(pc, inputs, target).bit_equal


def test_the_error_of_an_input_is_not_computed_unless_it_is_wanted():
    pc = pccompile.compile(mlp(), example_inputs=torch.randn(6, 4))
    assert "input" not in pc.program.pulls_back_to("0")
    pc(torch.randn(6, 4).requires_grad_())
    assert "input" in pc.program.pulls_back_to("0")


def test_it_can_be_copied_and_pickled():
    model, inputs, target = batch("mlp")
    pc = pccompile.compile(model, loss_fn=loss_fn)
    pc.loss(inputs, target).backward()
    for twin in (copy.deepcopy(pc), pickle.loads(pickle.dumps(pc))):
        assert pccompile.check(twin, inputs, target).bit_equal
        assert next(twin.parameters()) is not next(pc.parameters())
        assert next(twin.parameters()) is next(twin.model.parameters())


def test_a_new_batch_size_is_captured_again_and_right():
    model, inputs, target = batch("unrolled lstm cell")
    pc = pccompile.compile(model, loss_fn=loss_fn)
    assert pccompile.check(pc, inputs, target).bit_equal
    assert pccompile.check(pc, inputs[:3, :2], target[:3]).bit_equal


def test_step_size_and_number_of_steps_compile_nothing_again():
    model, inputs, target = batch("mlp", torch.float64)
    pc = pccompile.compile(model, pccompile.Strict(steps=3), loss_fn=loss_fn)
    pc.loss(inputs, target).backward()
    first = pc.program
    pc.rule = pccompile.Strict(steps=7, step_size=0.02, optimizer="adam")
    fresh = pccompile.compile(model, pc.rule, loss_fn=loss_fn)
    ours, theirs = (torch.autograd.grad(m.loss(inputs, target), list(model.parameters())) for m in (pc, fresh))
    assert pc.program is first
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_moving_the_module_moves_the_model():
    pc = pccompile.compile(ResNet())
    pc.double()
    assert pc.model.fc.weight.dtype == torch.float64
    assert pc(torch.randn(2, 3, 8, 8).double()).dtype == torch.float64


def test_unknown_options_are_refused_by_name():
    for options in ({"backend": "cuda"}, {"capture": "dynamo"}):
        with pytest.raises(UsageError, match="choose one of"):
            pccompile.compile(mlp(), **options)
    for rule in ("zil", pccompile.ZIL):
        with pytest.raises(UsageError, match=r"(?si)rule=.*zil.*give one of ZIL"):
            pccompile.compile(mlp(), rule)
    with pytest.raises(UsageError, match=r"torch\.nn\.Module"):
        pccompile.compile(lambda x: x)
    pc = pccompile.compile(mlp(), pccompile.FixedPrediction(), vertices=["nothing"])
    with pytest.raises(UsageError, match="nothing"):
        pc(torch.randn(6, 4))


def test_a_gradient_scaler_works_unchanged():
    model, inputs, target = batch("mlp")
    twin = copy.deepcopy(model)
    pc = pccompile.compile(model, loss_fn=loss_fn)
    for function, parameters in ((pc.loss, pc.parameters()), (lambda x, y: loss_fn(twin(x), y), twin.parameters())):
        optimizer, scaler = torch.optim.SGD(parameters, lr=0.1), torch.amp.GradScaler("cpu", init_scale=512.0)
        scaler.scale(function(inputs, target)).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_distributed_data_parallel_wraps_it(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, inputs, target = batch()
        twin = copy.deepcopy(model)
        wrapped = nn.parallel.DistributedDataParallel(pccompile.compile(model))
        loss_fn(wrapped(inputs), target).backward()
        loss_fn(twin(inputs), target).backward()
        for ours, theirs in zip(wrapped.parameters(), twin.parameters(), strict=True):
            assert torch.equal(ours.grad, theirs.grad)
        assert list(wrapped.module.state_dict()) == list(twin.state_dict())
    finally:
        torch.distributed.destroy_process_group()


def test_part_of_a_larger_model_can_be_compiled_in_place():
    model, inputs, target = batch()
    twin = copy.deepcopy(model)
    keys = list(model.state_dict())
    model.layer1 = pccompile.compile(model.layer1)
    assert list(model.state_dict()) == keys
    loss_fn(model(inputs), target).backward()
    loss_fn(twin(inputs), target).backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    model.eval()
    assert not model.layer1.model[0].bn1.training


def test_example_inputs_and_target_capture_the_loss_at_once_and_inputs_alone_wait_for_it():
    model, inputs, target = batch("mlp")
    ready = pccompile.compile(model, pccompile.Strict(), loss_fn, inputs, target)
    assert ready.program.rule == "Strict"
    waiting = pccompile.compile(model, pccompile.Strict(), loss_fn, inputs)
    with pytest.raises(UsageError, match="no program yet"):
        _ = waiting.program
    waiting.loss(inputs, target)
    assert waiting.program == ready.program
