"""What the campaign on a GPU finds wrong, tried on the CPU."""

import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from bench.gpu import agreement, training
from bench.gpu.agreement import CHECKED, Case, cases_of, check_agreement, gradients_in_turn, judge, tolerance_of
from bench.gpu.models import GPU_MODELS, LARGE
from bench.gpu.work import Status, Work, attempt
from bench.steps.ceiling import multiply_ceiling
from bench.steps.models import MODELS, Model
from bench.steps.results import Row
from bench.steps.results import Status as RowStatus
from bench.steps.task import Task
from pccompile.errors import UsageError

TINY = Model(
    "tiny",
    "tiny",
    lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)),
    lambda: (torch.randn(7, 6), torch.randint(3, (7,))),
)


@pytest.fixture
def batches():
    return tuple(agreement._batches(TINY, "cpu"))


def references(batches, rule, precision="float32"):
    return list(gradients_in_turn(batches, Case(rule, "eager", False, precision), calls=2))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("rule", ["zil", "fixed", "levelled", "strict", "incremental"])
def test_a_right_back_end_is_right_for_both_batches(batches, rule, precision):
    case = Case(rule, "aten", False, precision)
    verdict = judge(batches, case, references(batches, rule, precision), repeats=True)
    assert verdict["right"], verdict
    assert verdict["repeats"] and verdict["error"] <= agreement.TOLERANCES[precision]


def spoiled(spoil):
    """A compiled module whose calls go through `spoil(call, loss)`."""

    def make(task, rule, backend, cuda_graph):
        pc = task.compiled(rule, "aten", False)
        calls = []

        class Module:
            def loss(self, inputs, target):
                calls.append(1)
                return spoil(len(calls), pc.loss(inputs, target), lambda: pc.loss(*first))

        first = (task.inputs, task.target)
        return Module()

    return make


@pytest.mark.parametrize("backend", ["aten", "triton"])
def test_a_replay_that_is_wrong_for_the_other_batch_is_seen(batches, backend):
    stale = spoiled(lambda call, loss, at_first: at_first() if call == 4 else loss)
    verdict = judge(batches, Case("zil", backend, True, "float32"), references(batches, "zil"), True, stale)
    assert not verdict["right"] and verdict["why"].startswith("call 4 is ")


def test_bits_that_differ_are_wrong_for_kernels_that_promise_to_repeat_only(batches):
    noisy = spoiled(lambda call, loss, _: loss * (1 + 1e-6) if call == 5 else loss)
    right = references(batches, "zil")
    kernels = judge(batches, Case("zil", "triton", True, "float32"), right, True, noisy)
    assert not kernels["right"] and "differ in their bits" in kernels["why"]
    assert judge(batches, Case("zil", "triton", True, "float32"), right, False, noisy)["right"]
    assert judge(batches, Case("zil", "inductor", True, "float32"), right, True, noisy) == {
        "right": True,
        "error": pytest.approx(1e-6, rel=0.2),
        "repeats": False,
    }


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_a_gradient_beyond_the_tolerance_or_not_a_number_is_wrong(batches, factor):
    wrong = spoiled(lambda call, loss, _: loss * factor)
    assert not judge(batches, Case("zil", "aten", False, "float32"), references(batches, "zil"), True, wrong)["right"]


def test_only_incremental_inference_may_refuse_a_graph(batches):
    def refuses(task, rule, backend, cuda_graph):
        raise UsageError("no CUDA graph", cure="none")

    verdicts = {
        (rule, graph): judge(batches, Case(rule, "aten", graph, "float32"), [], True, refuses)["right"]
        for rule in ("zil", "incremental")
        for graph in (True, "auto")
    }
    expected = {("incremental", True): True}
    assert verdicts == {key: expected.get(key, False) for key in verdicts}


def test_what_raises_is_wrong_and_named(batches):
    def raises(task, rule, backend, cuda_graph):
        raise RuntimeError("an illegal memory access")

    verdict = judge(batches, Case("zil", "aten", False, "float32"), [], True, raises)
    assert verdict == {"right": False, "why": "RuntimeError: an illegal memory access"}


def test_a_part_keeps_its_verdicts_and_judges_again_what_was_wrong(tmp_path, monkeypatch):
    monkeypatch.setitem(GPU_MODELS, "tiny", TINY)
    monkeypatch.setattr(agreement, "cases_of", lambda *_: [Case("zil", "aten", False, "float32")] * 2)
    judged = []

    def once_wrong(*arguments, **options):
        judged.append(1)
        return {"right": len(judged) > 2, "why": "for once"}

    monkeypatch.setattr(agreement, "judge", once_wrong)
    run, path = check_agreement("tiny", "float32", "cpu"), tmp_path / "parts" / "a.json"
    first, second = (attempt(run, Work.resumed(path, {})) for _ in range(2))
    assert first.status is Status.FAILED and "tiny: zil aten cuda_graph=False float32: for once" in first.message
    assert second.status is Status.DONE and len(judged) == 3


def test_small_models_have_every_rule_back_end_and_way_of_launching():
    cases = cases_of("mlp", "float32", ("aten", "triton"))
    assert len(set(cases)) == len(cases) == 5 * 2 * 3
    assert {case.rule for case in cases_of("resnet18-128", "float32")} == {"zil", "fixed", "levelled"}


def test_gradients_may_be_off_by_what_rounding_is_on_each_model():
    assert set(CHECKED) <= set(GPU_MODELS)
    assert tolerance_of("mlp", "float32") == 1e-4 < tolerance_of("resnet18-128", "float32")
    assert tolerance_of("mlp", "bfloat16") == 3e-2 < tolerance_of("cifar-cnn", "bfloat16")


def test_a_case_is_judged_by_the_tolerance_given(batches):
    wrong = spoiled(lambda call, loss, _: loss * 1.001)
    case, right = Case("zil", "aten", False, "float32"), references(batches, "zil")
    assert judge(batches, case, right, False, wrong, tolerance=2e-3)["right"]
    assert not judge(batches, case, right, False, wrong, tolerance=5e-4)["right"]


def test_the_large_model_is_compared_in_its_own_precision():
    assert LARGE.tolerance > MODELS["mlp"].tolerance
    assert "bfloat16" in LARGE.title
    small = replace(
        LARGE,
        build=lambda: nn.Linear(4, 3).to(torch.bfloat16),
        batch=lambda: (torch.randn(2, 4).to(torch.bfloat16), torch.randint(3, (2,))),
    )
    task = Task.of(small, "cpu")
    assert task.dtype is torch.bfloat16 and task.tolerance == LARGE.tolerance


def test_the_models_of_the_gpu_are_their_own():
    assert {"mlp-128", "mlp-512", "mlp-large", "resnet18-128", "gpt-6"} <= {*GPU_MODELS} - {*MODELS}
    assert [name for name, model in GPU_MODELS.items() if model.name != name] == []
    images, _ = GPU_MODELS["resnet18-128"].batch()
    assert images.shape == (128, 3, 32, 32) and "batch 128" in GPU_MODELS["resnet18-128"].title
    assert len(GPU_MODELS["gpt-6"].build().blocks) == 6 and "6 layers" in GPU_MODELS["gpt-6"].title


@pytest.fixture
def timed(monkeypatch, tmp_path):
    """Runs a part that times, where measuring gives rows with these statuses."""

    def run(*statuses, before=False):
        def measure_all(results, choice, folder, start, models):
            assert choice.limit <= 400.0 - training.TIMING_SECONDS  # less what has passed since
            results.rows += [Row("mlp", "zil", str(i), status, "why") for i, status in enumerate(statuses)]

        monkeypatch.setattr(training, "measure_all", measure_all)
        work = Work(tmp_path / "parts" / "time-mlp.json", {}, time.monotonic() + 400.0)
        if before:
            work.add("results", {})
        return attempt(training.time_model("mlp", ("zil",), "cpu"), work)

    return run


def test_contestants_left_out_for_want_of_time_are_timed_by_one_more_run(timed):
    assert timed(RowStatus.MEASURED).status is Status.DONE
    late = timed(RowStatus.MEASURED, RowStatus.LEFT_OUT)
    assert late.status is Status.UNFINISHED and "zil 1" in late.message
    assert timed(RowStatus.MEASURED, RowStatus.LEFT_OUT, before=True).status is Status.DONE


def test_wrong_gradients_fail_a_part_that_times_and_what_raises_does_not(timed):
    assert timed(RowStatus.MEASURED, RowStatus.RAISED).status is Status.DONE
    wrong = timed(RowStatus.WRONG, RowStatus.LEFT_OUT)
    assert wrong.status is Status.FAILED and "mlp: zil 0: why" in wrong.message


def test_the_ceiling_is_measured_in_the_dtype_asked_for(monkeypatch):
    dtypes, real = [], torch.mm

    def recorded(a, b, out):
        dtypes.append((a.dtype, out.dtype))
        return real(a, b, out=out)

    monkeypatch.setattr("bench.steps.ceiling.SIZES", {"cpu": 64})
    monkeypatch.setattr(torch, "mm", recorded)
    assert multiply_ceiling("cpu", torch.bfloat16, seconds=0.0) > 0
    assert set(dtypes) == {(torch.bfloat16, torch.bfloat16)}
