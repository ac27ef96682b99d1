"""Which nodes the Triton back end gives to kernels, what it says of its choices, and what it does without a GPU."""

from functools import partial
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import pccompile
from pccompile.backends import BACKENDS, AtenBackend, choice, recurrences, triton
from pccompile.backends.patterns.match import Match
from pccompile.backends.report import BackendReport
from pccompile.errors import UsageError

X, Y = torch.linspace(-1, 1, 30).view(5, 6), torch.tensor([0, 1, 2, 1, 0])


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


class Outputs(nn.Module):
    """What a recurrent network puts out, for samples that are one sequence."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)[0]


def trained(model, backend="triton", rule=None, **options):
    """The model compiled, after one backward pass."""
    pc = pccompile.compile(model, rule, loss_fn=F.cross_entropy, backend=backend, dynamic=False, **options)
    pc.loss(X, Y).backward()
    return pc


def graphs(model, rule=None, choose=lambda match: (True, "asked for")):
    """The flat graphs of a model's program, and in them what `rewrite` chose, with every kernel allowed by default."""
    with patch.dict(BACKENDS, aten=partial(AtenBackend, sums_errors=False)):
        pc = trained(model, "aten", rule, verify=False)
    (plan,) = pc._latest.backend.plans.values()
    found = {}
    for stage in plan.stages:
        graph = stage.piece.graph
        found[stage.piece.name] = graph, triton.rewrite(graph, choose)
    return found


def operators(graph):
    return [str(node.target) for node in graph.nodes if node.op == "call_function" and "kernel" not in node.meta]


def test_without_a_gpu_everything_runs_as_the_aten_back_end_does_and_the_report_says_why(monkeypatch):
    monkeypatch.setattr(choice, "objection", lambda match: "no GPU")  # also where there is one
    gradients = {}
    for backend in ("aten", "triton"):
        pc = trained(model := mlp(), backend)
        gradients[backend] = [parameter.grad for parameter in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(*gradients.values(), strict=True))
    assert {row.kernel for row in pc.backend_report()} == {"aten"}
    assert {row.reason for row in pc.backend_report() if row.operations} == {"no GPU"}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_without_a_gpu_recurrent_networks_run_as_on_the_aten_back_end_and_the_report_says_why(kind, monkeypatch):
    monkeypatch.setattr(choice, "objection", lambda match: "no GPU")  # also where there is one
    monkeypatch.setattr(recurrences, "objection_to", lambda kinds, computed: "no GPU")
    gradients = {}
    for backend in ("aten", "triton"):
        torch.manual_seed(0)
        network = Outputs(kind(6, 3))
        pc = trained(network, backend)
        gradients[backend] = [parameter.grad for parameter in network.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(*gradients.values(), strict=True))
    rows = pc.backend_report().of(f"net.{kind.__name__.lower()}")
    assert {(row.kernel, row.reason) for row in rows} == {("aten", "no GPU")}


@pytest.mark.parametrize(
    "device, dtypes, problem",
    [
        ("meta", [torch.float32], "no GPU"),
        ("cuda", [torch.float64, torch.float64], "float64 has no kernel"),
        ("cuda", [torch.float32, torch.bfloat16], "bfloat16 and float32 together have no kernel"),
        ("cuda", [torch.float32, torch.float32], ""),
        ("cuda", [torch.bfloat16], ""),
    ],
)
def test_where_kernels_cannot_run_is_told_by_device_and_dtype(device, dtypes, problem):
    nodes = [fx.Graph().placeholder("x") for _ in dtypes]
    with FakeTensorMode():
        for node, dtype in zip(nodes, dtypes, strict=True):
            node.meta["val"] = torch.empty(2, dtype=dtype, device=device)
    assert choice.objection(Match("any", (), (), tuple(nodes), lambda graph, at: [])) == problem


def test_a_layer_with_its_activation_is_one_call_in_each_sweep():
    found = graphs(mlp())
    prediction, chosen = found["prediction_sweep"]
    assert [row.vertices for row in chosen] == [("0", "1"), ("2", "3"), ("4",)]
    assert operators(prediction) == ["aten._log_softmax.default", "aten.nll_loss_forward.default"] + 2 * [
        "<built-in function getitem>"
    ]
    sweep, chosen = found["error_sweep"]
    assert [row.vertices for row in chosen] == [("4",), ("3", "2"), ("1", "0")]
    assert operators(sweep) == ["aten.nll_loss_backward.default", "aten._log_softmax_backward_data.default"]


def calls(graph, name):
    return [node.args for node in graph.nodes if getattr(node.target, "__name__", "") == name]


def test_the_gain_of_fixed_prediction_is_an_argument():
    sweep, _ = graphs(mlp(), pccompile.FixedPrediction(steps=5, step_size=0.3))["error_sweep"]
    gains = [str(arguments[-2]) for arguments in calls(sweep, "sweep_rows")]
    assert gains == ["1.0", "gain_1", "gain_2"]
    assert not any("mul" in target for target in operators(sweep))


def test_a_strict_loop_takes_a_launch_for_a_hidden_layer_and_two_for_the_output_and_asks_for_no_gradient():
    found = graphs(mlp(), pccompile.Strict(steps=5, step_size=0.1))
    loop, chosen = found["error_sweep_2"]  # of three layers the first one's prediction does not change
    assert [(row.kernel, row.vertices) for row in chosen if row.kernel != "pointwise"] == [
        ("linear_step", ("2",)), ("linear_predict", ("4",)), ("linear_error", ("4",)),
    ]  # fmt: skip
    assert [arguments[4:6] for arguments in calls(loop, "step_rows")] == [("relu", 0.01)]
    assert [arguments[4:7] for arguments in calls(loop, "sweep_rows")] == [(True, False, False)]
    assert not any("mm" in target or ".t." in target for target in operators(loop))


def test_a_layer_of_a_strict_loop_whose_one_launch_is_too_slow_is_tried_as_two():
    def all_but_steps(match):
        return match.kernel != "linear_step", "too slow" if match.kernel == "linear_step" else "fast"

    loop, chosen = graphs(mlp(), pccompile.Strict(steps=5, step_size=0.1), all_but_steps)["error_sweep_2"]
    assert not calls(loop, "step_rows")
    assert [(row.kernel, row.vertices, row.reason) for row in chosen if row.kernel.startswith("linear")] == [
        ("linear_predict", ("2",), "fast"),
        ("linear_predict", ("4",), "fast"),
        ("linear_error", ("2",), "fast; no linear_step: too slow"),
        ("linear_error", ("4",), "fast"),
    ]
    assert not any("mm" in target for target in operators(loop))


def test_a_layer_of_a_strict_loop_for_which_nothing_is_fast_stays_operators():
    found = graphs(mlp(), pccompile.Strict(steps=5, step_size=0.1), lambda match: (False, "slow"))
    loop, chosen = found["error_sweep_2"]
    assert {(row.kernel, row.reason) for row in chosen} == {("aten", "slow")}
    assert "aten.mm.default" in operators(loop)


def test_a_prediction_that_something_else_reads_is_a_launch_of_its_own():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            z = self.b(torch.tanh(self.a(x)))
            return self.c(torch.tanh(z) + z)

    loop, chosen = graphs(Reads(), pccompile.Strict(steps=5, step_size=0.1))["error_sweep_2"]
    assert not calls(loop, "step_rows")
    assert {row.kernel for row in chosen} == {"linear_predict", "linear_error", "pointwise"}


def test_what_somebody_else_reads_stays_where_it_is():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            z = self.a(x)
            return self.b(torch.tanh(z) + z)

    found = graphs(Reads())
    prediction, chosen = found["prediction_sweep"]
    assert [arguments[3] for arguments in calls(prediction, "predict_rows")] == ["identity", "identity"]
    assert [row.vertices for row in chosen if row.kernel == "pointwise"] == [("tanh", "add")]
    _, chosen = found["error_sweep"]
    (row,) = [row for row in chosen if row.kernel == "pointwise"]
    assert "tanh" in row.vertices  # its derivative goes with the sum that reads it, not with the layer


def test_frozen_weights_and_inputs_ask_for_what_is_read_only():
    model = mlp()
    for parameter in (*model[0].parameters(), model[2].weight):
        parameter.requires_grad_(False)
    sweep, _ = graphs(model)["error_sweep"]
    asked = [arguments[4:7] for arguments in calls(sweep, "sweep_rows")]
    assert asked == [(True, True, True)]  # the last layer; of the one before, the bias alone is the sum of its error


@pytest.fixture
def timed(monkeypatch, tmp_path):
    """Kernels are allowed, and measured to take as long as the test says."""
    monkeypatch.setenv("PCCOMPILE_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("PCCOMPILE_KERNELS", raising=False)
    monkeypatch.setattr(choice, "objection", lambda match: "")
    monkeypatch.setattr(choice, "is_on_gpu", lambda kinds: True)
    seconds, measured = {"kernel": 1e-6, "operators": 2e-6}, []

    def seconds_of(graph, rest):
        measured.append(graph)
        return seconds["operators" if rest else "kernel"]

    monkeypatch.setattr(choice, "seconds_of", seconds_of)
    return seconds, measured


def rewritten(model):
    pc = trained(model, "aten", verify=False)
    (plan,) = pc._latest.backend.plans.values()
    return triton.rewrite(plan.prediction.piece.graph, choice.by_measurement(triton.as_it_is))


@pytest.mark.parametrize("kernel, expected", [(1e-6, "linear_predict"), (3e-6, "aten")])
def test_the_faster_one_is_chosen_and_the_choice_outlives_the_process(timed, kernel, expected):
    seconds, measured = timed
    seconds["kernel"] = kernel
    first = rewritten(mlp())
    assert {row.kernel for row in first} == {expected}
    assert all(f"kernel {1e6 * kernel:.3g} us, operators 2 us" in row.reason for row in first)
    count = len(measured)
    assert rewritten(mlp()) == first
    assert len(measured) == count


def test_equal_layers_are_measured_once(timed):
    _, measured = timed
    rewritten(nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(6, 6), nn.Tanh()))))
    assert len(measured) == 2  # the kernel and the operators, once


def test_a_kernel_that_fails_leaves_its_operators_and_a_warning(timed, monkeypatch, caplog):
    def fails(graph, rest):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(choice, "seconds_of", fails)
    assert {(row.kernel, row.reason) for row in rewritten(mlp())} == {("aten", "linear_predict fails: RuntimeError")}
    assert "no such luck" in caplog.text


def test_an_unknown_setting_is_refused(monkeypatch):
    monkeypatch.setenv("PCCOMPILE_KERNELS", "sometimes")
    with pytest.raises(UsageError, match="PCCOMPILE_KERNELS=sometimes"):
        choice.by_measurement(triton.as_it_is)


# Reports --------------------------------------------------------------------------------------------------------------


def test_the_report_counts_operators_by_vertex_and_phase():
    report = trained(mlp(), "aten").backend_report()
    rows = {(row.phase, row.vertices): row for row in report}
    first = rows["prediction", ("0",)]
    assert (first.launches, first.operations) == (1, 2 * 5 * 6 * 8)
    assert first.bytes == 4 * (5 * 6 + 6 * 8 + 8 + 5 * 8)
    assert rows["error sweep", ("2",)].operations == 2 * 2 * 5 * 8 * 8  # the parent's error, and dW
    assert rows["error sweep", ("2",)].launches == 3
    assert rows["prediction", ("loss",)].launches == 2


def test_the_report_prints_as_a_table_and_explain_repeats_it(monkeypatch):
    monkeypatch.setattr(choice, "objection", lambda match: "no GPU")
    pc = trained(mlp())
    lines = str(pc.backend_report()).splitlines()
    assert lines[0] == "backend 'triton'"
    assert lines[1].split() == ["phase", "vertex", "runs", "as", "launches", "bytes", "operations", "reason"]
    assert any(line.startswith("prediction   0, 1") and line.endswith("no GPU") for line in lines)
    told = pc.explain("0")
    assert told.startswith(pc.program.explain("0"))
    assert "runs in the prediction as: aten (no GPU)" in told


@pytest.mark.parametrize("backend", ["aten", "auto", "eager"])
def test_every_back_end_has_a_report(backend, tmp_path, monkeypatch):
    monkeypatch.setenv("PCCOMPILE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("pccompile.backends.auto.is_available", lambda device: False)
    report = trained(mlp(), backend).backend_report()
    assert isinstance(report, BackendReport) and report.backend == backend
    assert bool(len(report)) == (backend != "eager")
    assert ("autograd engine" in str(report)) == (backend == "eager")


def test_there_is_no_report_before_the_first_call():
    with pytest.raises(UsageError, match="no program yet"):
        pccompile.compile(mlp(), backend="triton").backend_report()
