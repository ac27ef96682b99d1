"""Hooks and custom backwards: captured with the forward, fired as ever, or refused by name; none is silently lost."""

import pytest
import torch
from agreement import Net, agree, batch, refused
from torch import nn
from torch.utils.checkpoint import checkpoint

import pccompile
from pccompile.errors import CaptureError


def with_hook(register, hook, on="fc"):
    model = Net(lambda net, hidden: torch.tanh(hidden))
    getattr(model.get_submodule(on), register)(hook)
    return model


@pytest.mark.parametrize("on", ["fc", ""], ids=["of a submodule", "of the model"])
def test_forward_hooks_that_change_values_are_part_of_the_forward(on):
    agree(lambda: with_hook("register_forward_hook", lambda module, args, output: output * 2, on), batch())
    agree(lambda: with_hook("register_forward_pre_hook", lambda module, args: (args[0] * 2,), on), batch())


def test_a_forward_hook_that_records_activations_is_refused_rather_than_called_once():
    seen = []
    model = with_hook("register_forward_hook", lambda module, args, output: seen.append(output))
    refused(model, batch(), match=r"the enclosing variable seen\[0\]", line="seen.append(output)")
    assert seen == []


def test_forward_hooks_of_the_model_itself_are_refused_by_symbolic_tracing_which_passes_them_over():
    model = with_hook("register_forward_hook", lambda module, args, output: output * 2, on="")
    refused(model, batch(), match='never fire[^#]*capture="export"', line="output * 2", capture="symbolic")


@pytest.mark.parametrize("capture", ["export", "symbolic"])
@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_backward_hooks_of_modules_are_refused(register, capture):
    model = with_hook(register, lambda module, *gradients: None)
    text = refused(model, batch(), match="backward hook .* would never fire", line="lambda module", capture=capture)
    assert "module:  fc\n" in text


def test_a_backward_hook_that_is_added_after_the_first_call_is_refused_too():
    model = Net(lambda net, hidden: torch.tanh(hidden))
    pc = pccompile.compile(model)
    pc(batch())
    model.fc.register_full_backward_hook(lambda module, *gradients: None)
    with pytest.raises(CaptureError, match="would never fire"):
        pc(batch())


def test_backward_hooks_for_all_modules_are_refused():
    handle = nn.modules.module.register_module_full_backward_hook(lambda module, *gradients: None)
    try:
        with pytest.raises(CaptureError, match="global backward hook"):
            pccompile.compile(nn.Linear(3, 3))(batch())
    finally:
        handle.remove()


def test_hooks_on_the_compiled_module_itself_fire():
    pc, fired = pccompile.compile(Net(lambda net, hidden: hidden)), []
    pc.register_forward_hook(lambda module, args, output: fired.append("forward"))
    pc.register_full_backward_hook(lambda module, *gradients: fired.append("backward"))
    pc(batch(requires_grad=True)).sum().backward()
    assert fired == ["forward", "backward"]


def test_hooks_on_parameters_fire_once_a_backward_and_not_for_the_replay():
    fired = []

    def make():
        model = Net(lambda net, hidden: torch.tanh(hidden))
        model.out.weight.register_hook(lambda gradient: (fired.append("gradient"), gradient * 3)[1])
        model.fc.weight.register_post_accumulate_grad_hook(lambda parameter: fired.append("accumulated"))
        return model

    agree(make, batch(), batch())
    assert sorted(fired) == ["accumulated"] * 4 + ["gradient"] * 4  # two models, two steps


# Inside the forward ---------------------------------------------------------------------------------------------------


def hooks_an_activation(net, hidden):
    hidden = hidden * 1
    hidden.register_hook(lambda gradient: gradient * 10)  # lost
    return hidden


def retains_a_gradient(net, hidden):
    hidden = hidden * 1
    hidden.retain_grad()  # lost
    return hidden


def differentiates(net, hidden):
    return hidden * torch.autograd.grad(hidden.sin().sum(), hidden, create_graph=True)[0]  # lost


def goes_backward(net, hidden):
    hidden.sum().backward(retain_graph=True)  # lost
    return hidden


def assigns_data(net, hidden):
    net.fc.weight.data = net.fc.weight * 0.5  # lost
    return hidden


LOST = {
    "a hook on an activation": (hooks_an_activation, "a hook on an activation would never fire", "both"),
    "retain_grad": (retains_a_gradient, "would never be filled", "both"),
    "autograd.grad": (differentiates, "derivative taken by autograd inside", "export"),
    "backward": (goes_backward, "backward inside the forward", "both"),
    "an assignment to .data": (assigns_data, "assignment to .data", "export"),
}


@pytest.mark.parametrize(("between", "cause", "captures"), LOST.values(), ids=LOST)
def test_what_a_forward_does_to_autograd_is_refused_by_name(between, cause, captures):
    refused(Net(between), batch(), match=cause, line="# lost")
    if captures == "both":
        refused(Net(between), batch(), match=cause, line="# lost", capture="symbolic")


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 100  # on purpose not the derivative


def test_a_custom_function_applied_in_a_hook_or_a_checkpoint_is_refused():
    hooked = with_hook("register_forward_hook", lambda module, args, output: Doubled.apply(output))
    refused(hooked, batch(), match="Doubled would lose its backward", line="Doubled.apply(output)")
    between = lambda net, hidden: checkpoint(Doubled.apply, hidden, use_reentrant=True)  # noqa: E731
    refused(Net(between), batch(), match="Doubled would lose its backward", line="checkpoint(")


@pytest.mark.parametrize("capture", ["export", "symbolic"])
def test_a_custom_function_bound_before_capture_is_refused_by_its_name(capture):
    bound = Doubled.apply
    early = Net(lambda net, hidden: net.function(hidden), function=Doubled.apply)
    refused(early, batch(), match="Doubled would lose its backward", line="net.function", capture=capture)
    enclosed = Net(lambda net, hidden: bound(hidden))
    refused(enclosed, batch(), match="Doubled would lose its backward", line="bound(hidden)", capture=capture)


def test_custom_functions_behind_modules_of_torch_are_refused_too():
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.CrossMapLRN2d(3))
    with pytest.raises(CaptureError, match=r"module:  1\n[^#]*CrossMapLRN2d would lose its backward"):
        pccompile.compile(model)(batch(2, 2, 3, 3))


@pytest.mark.parametrize("capture", ["export", "symbolic"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_changes_nothing_dropout_included(reentrant, capture):
    def part(hidden):
        return torch.dropout(torch.tanh(hidden), 0.5, True)

    agree(lambda: Net(lambda net, h: checkpoint(part, h, use_reentrant=reentrant)), batch(), batch(), capture=capture)


def test_a_checkpoint_of_a_part_with_parameters_learns():
    def between(net, hidden):
        return checkpoint(lambda h: net.out(torch.tanh(h)), hidden, use_reentrant=True)

    agree(lambda: Net(between), batch())


def test_derivatives_by_torch_func_work_forward_and_are_refused_backward():
    jvp = lambda net, h: torch.func.vmap(torch.tanh)(torch.func.jvp(torch.sin, (h,), (torch.ones_like(h),))[1])  # noqa: E731
    agree(lambda: Net(jvp), batch())
    refused(Net(lambda net, h: torch.func.grad(lambda z: z.sin().sum())(h)), batch(), match="derivative", line="lambda")
