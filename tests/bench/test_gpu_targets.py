"""Targets of times and launches, and how what a step runs is counted, tried on the CPU."""

import os
from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.gpu import targets
from bench.gpu.launch_counts import ALWAYS, COUNTED, RULES, count_model, item_of, warm_step
from bench.gpu.models import GPU_MODELS
from bench.gpu.targets import AUTOGRAD, CEILING, COMPILED, JPC, TIMES, launch_target, parametric_layers, time_target
from bench.gpu.training import RULES as TIMED_RULES
from bench.gpu.work import Work
from bench.steps import launches
from bench.steps.launches import Launched, count_launches, sorted_events
from bench.steps.models import MODELS, Model
from bench.steps.networks import ResNet18
from bench.steps.task import Task

TINY = Model(
    "tiny",
    "tiny",
    lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)),
    lambda: (torch.randn(7, 6), torch.randint(3, (7,))),
)
FILL = "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>, std::array<char*, 1ul> >(int)"
COPY = (
    "void at::native::elementwise_kernel<128, 2, at::native::gpu_kernel_impl_nocast<"
    "at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)::{lambda()#3}> >(int)"
)
FOREACH_COPY = (
    "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<TensorListMetadata<2>, "
    "at::native::(anonymous namespace)::UnaryOpFunctor<float, 2, 1, 1>, at::native::Copy<float, float> >(int)"
)
CONCATENATION = "void at::native::(anonymous namespace)::CatArrayBatchedCopy<float, unsigned int, 2, 64, 64>(float*)"
ADDITION = "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float> >(int)"


@dataclass(frozen=True)
class FakeEvent:
    """What is read of an event of the profiler."""

    called: str
    on_device: bool = True
    annotation: bool = False

    def name(self):
        return self.called

    def device_type(self):
        return DeviceType.CUDA if self.on_device else DeviceType.CPU

    def is_user_annotation(self):
        return self.annotation


def test_kernels_copies_and_fills_are_counted_apart():
    on_device = [
        *("linear_error_kernel", "linear_error_kernel", ADDITION, CONCATENATION, "triton_poi_fused_clone_0"),
        *(COPY, FOREACH_COPY, "Memcpy DtoD (Device -> Device)", "__amd_rocclr_copyBuffer"),
        *(FILL, "Memset (Device)", "__amd_rocclr_fillBufferAligned"),
    ]
    found = sorted_events(map(FakeEvent, on_device))
    assert found.kernels == {
        "linear_error_kernel": 2,
        ADDITION: 1,
        CONCATENATION: 1,
        "triton_poi_fused_clone_0": 1,
    }
    assert set(found.copies) == set(on_device[5:9]) and set(found.fills) == set(on_device[9:])
    assert found.total == len(on_device)


def test_launch_calls_are_those_of_the_host_and_annotations_are_nothing():
    host = [
        "cuLaunchKernelEx",
        "cudaLaunchKernel",
        "cudaGraphLaunch",
        "cudaMemcpyAsync",
        "aten::fill_",
        "hipLaunchKernel",
    ]
    annotations = [FakeEvent("Optimizer.step#SGD.step", on_device, True) for on_device in (False, True)]
    found = sorted_events([*(FakeEvent(name, on_device=False) for name in host), *annotations])
    assert (found.calls, found.total) == (4, 0)


def test_the_benchmark_of_steps_counts_all_that_runs(monkeypatch):
    found = Launched(3, Counter(a=2), Counter(b=1), Counter(c=4))
    monkeypatch.setattr(launches, "launched", lambda step: found)
    assert count_launches(lambda: None) == (3, 7)


def test_the_profilers_own_events_can_be_told_apart():
    with profile(activities=[ProfilerActivity.CPU]) as recorded, torch.profiler.record_function("cudaLaunchKernel"):
        torch.ones(3)
    events = recorded.profiler.kineto_results.events()
    assert any(event.is_user_annotation() for event in events)
    assert sorted_events(events) == Launched()


def test_targets_are_two_kernels_a_layer_and_one_for_a_chains_sweep():
    layers = parametric_layers(MODELS["mlp"].build())
    assert layers == 3
    assert [launch_target("mlp", rule).bound(layers) for rule in RULES] == [8, 8, 8, 8, 6]
    assert parametric_layers(ResNet18()) == 41
    assert launch_target("resnet18-128", "levelled").words(41) == "≤ 84"
    assert launch_target("mlp", "strict").words(layers) == "≤ 6, 1 for the sweep"


def test_fixed_prediction_has_its_target_on_the_levelled_graph_where_there_are_skips():
    assert launch_target("resnet18-128", "fixed") is launch_target("resnet18-128", "strict") is None
    assert launch_target("resnet18-128", "levelled") is launch_target("resnet18-128", "levelled-1") is not None


def test_a_sweep_is_one_kernel_and_all_others_are_bounded():
    strict = launch_target("mlp", "strict")
    rest = Counter(linear_predict_kernel=3, cross_entropy_predict_kernel=1, chain_gradients_kernel=1)
    assert strict.is_met(3, rest + Counter(strict_sweep_kernel=1))
    assert not strict.is_met(3, rest)
    assert not strict.is_met(3, Counter(strict_sweep_kernel=2))
    assert not strict.is_met(3, rest + Counter(strict_sweep_kernel=1, more=1))


def test_every_target_is_of_a_model_and_rule_that_are_measured():
    assert {model for target in TIMES for model in target.models} <= set(GPU_MODELS)
    assert {target.rule for target in TIMES} <= set(TIMED_RULES)
    assert {target.figure for target in TIMES} == {AUTOGRAD, COMPILED, JPC, CEILING}
    assert set(COUNTED) == {"mlp", "mnist-cnn", "cifar-cnn", "resnet18-128"} <= set(GPU_MODELS)
    assert {rule for target in targets.LAUNCHES for rule in target.rules} == set(RULES)
    assert all(GPU_MODELS[model].peers for target in TIMES if target.figure == JPC for model in target.models)


@pytest.mark.parametrize(
    ("model", "rule", "figure", "words", "within", "beyond"),
    [
        ("mlp-512", "zil", AUTOGRAD, "≤ 0.50", 0.5, 0.501),
        ("mlp", "strict", AUTOGRAD, "< 1.00", 0.999, 1.0),
        ("mlp-large", "zil", CEILING, "≥ 90%", 0.9, 0.899),
        ("resnet18-128", "zil", COMPILED, "≤ 1.00", 1.0, 1.01),
    ],
)
def test_a_figure_meets_its_target_or_does_not(model, rule, figure, words, within, beyond):
    target = time_target(model, rule, figure)
    assert str(target) == words and target.is_met(within) and not target.is_met(beyond)


def test_no_figure_has_two_targets():
    named = [(model, target.rule, target.figure) for target in TIMES for model in target.models]
    assert len(set(named)) == len(named)
    assert time_target("conv-tanh", "zil", AUTOGRAD) is None


def test_counts_are_kept_with_their_target_and_names():
    target = launch_target("mlp", "zil")
    item = item_of(Launched(2, Counter(a=5, b=4), Counter(c=1), Counter(d=2)), target, 3)
    counts = tuple(item[name] for name in ("launches", "kernels", "copies", "fills", "target", "met"))
    assert counts == (2, 9, 1, 2, "≤ 8", False)
    assert item["names"] == {"a": 5, "b": 4} and item["copies_and_fills"] == {"c": 1, "d": 2}
    assert item_of(Launched(1, Counter(a=8), Counter(c=9)), target, 3)["met"] is True
    assert item_of(Launched(1, Counter(a=8)), None, 3)["met"] is None


def test_launches_are_counted_for_every_rule_and_what_raises_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(GPU_MODELS, "mlp", TINY)
    counted = []

    def count(step):
        step()
        counted.append(1)
        if len(counted) == 2:
            raise RuntimeError("no profiler")
        return Launched(3, Counter(kernel=4))

    work = Work(tmp_path / "parts" / "a.json", {})
    count_model("mlp", "cpu", count)(work)
    assert work.items["autograd eager"]["target"] is None
    assert "no profiler" in work.items["zil aten"]["raised"]
    assert work.items["fixed aten"]["target"] is None  # it is there to compare with
    assert work.items[f"fixed {ALWAYS}"]["met"] is True
    assert {name.split()[0] for name in work.items} == {"autograd", *RULES}


def test_the_step_that_is_counted_fills_no_derivative_of_the_loss():
    for rule in ("autograd", "zil"):
        step = warm_step(Task.of(TINY, "cpu"), rule, "eager" if rule == "autograd" else "aten")
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            step()
        names = {event.name for event in recorded.events()}
        assert "aten::addmm" in names and "aten::ones_like" not in names


def test_taking_every_kernel_is_over_when_the_step_is_ready(monkeypatch):
    seen = []

    def settings(*arguments, **options):
        seen.append(os.environ.get("PCCOMPILE_KERNELS"))
        raise RuntimeError("seen")

    monkeypatch.setenv("PCCOMPILE_KERNELS", "measured")
    monkeypatch.setattr("pccompile.compile", settings)
    for backend in (ALWAYS, "triton"):
        with pytest.raises(RuntimeError, match="seen"):
            warm_step(Task.of(TINY, "cpu"), "zil", backend)
    assert seen == ["always", "measured"] and os.environ["PCCOMPILE_KERNELS"] == "measured"
