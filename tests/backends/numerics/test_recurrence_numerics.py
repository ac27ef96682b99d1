"""With the kernels of recurrent layers, networks train as on the eager back end, all time steps in one launch."""

import pytest
import torch
import torch.nn.functional as F
from test_triton_numerics import LOSS, agree
from torch import nn

import pccompile
from pccompile.backends import choice, recurrences
from pccompile.derivatives import LocalFunction
from pccompile.lowering.fragments import Unsupported

RULES = [pccompile.ZIL(), pccompile.FixedPrediction(steps=20, step_size=0.1, levelled=True)]


class Reader(nn.Module):
    """Scores from the outputs of all time steps and from the last states; the first states are learned, or zero."""

    def __init__(self, kind, learned=True, **options):
        super().__init__()
        torch.manual_seed(0)
        self.net = kind(6, 5, **options)
        states = 2 if kind is nn.LSTM else 1
        places = self.net.num_layers * (1 + self.net.bidirectional)
        self.first = nn.ParameterList(torch.randn(states, places, 1, 5).unbind(0)) if learned else None
        self.head = nn.Linear((self.net.proj_size or 5) * (1 + self.net.bidirectional), 3)
        self.last = nn.Linear(5, 3) if learned else None

    def forward(self, x):
        time = int(self.net.batch_first)
        sequence = x if self.net.batch_first else x.transpose(0, 1)
        if self.first is None:
            return self.head(self.net(sequence)[0]).mean(time)
        states = tuple(state.expand(-1, len(x), -1).contiguous() for state in self.first)
        output, last = self.net(sequence, states if len(states) > 1 else states[0])
        read = sum(self.last(state).sum(0) for state in (last if len(states) > 1 else (last,)))
        return self.head(output).mean(time) + read


def sequences(device, samples=3, steps=4):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, steps, 6, generator=generator)
    return x.to(device), torch.randint(0, 3, (samples,), generator=generator).to(device)


def compiled(model, device):
    """A model compiled once, its networks left whole."""
    return pccompile.compile(model.to(device), loss_fn=F.cross_entropy, dynamic=False, verify=False, decompose=False)


def reasons(pc, kernel):
    """What the report says of the network's own launches, by phase."""
    return {(row.phase, row.reason) for row in pc.backend_report().of("net") if row.kernel == kernel}


LAUNCHES = {nn.LSTM: "lstm", nn.GRU: "gru", nn.RNN: "rnn"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("kind", LAUNCHES)
def test_a_layer_is_one_launch_forward_and_one_back_beside_its_products(kind, rule, device):
    pc = compiled(Reader(kind, learned=False), device)
    launches = agree(pc, rule, *sequences(device))
    name = LAUNCHES[kind]
    own = {f"{name}_recurrence": 1, f"{name}_recurrence_error": 1}
    launches.pop("pointwise", None)  # the gains of both biases
    # what the inputs contribute, and the head; back, both weights of the layer and the head's
    assert launches == {**own, "linear_predict": 2, "linear_error": 3, **LOSS}
    assert reasons(pc, name) == {("prediction", "not measured"), ("error sweep", "not measured")}
    rows = [row for row in pc.backend_report() if row.kernel == name]
    products = 2 * 4 * 3 * pc.model.net.weight_hh_l0.numel()  # in 4 time steps, of 3 samples
    assert [(row.launches, row.operations) for row in rows] == [(1, products)] * 2


@pytest.mark.parametrize("kind", LAUNCHES)
def test_networks_of_half_precision(kind, device):
    x, y = sequences(device)
    launches = agree(compiled(Reader(kind).half(), device), pccompile.ZIL(), x.half(), y, tolerance=1e-2)
    assert launches[f"{LAUNCHES[kind]}_recurrence_error"] == 1


@pytest.mark.parametrize("kind", LAUNCHES)
@pytest.mark.parametrize(
    "options",
    [
        {"num_layers": 2, "batch_first": True},
        {"bidirectional": True},
        {"num_layers": 2, "bidirectional": True, "bias": False, "batch_first": True},
        {"num_layers": 2, "dropout": 0.0, "bias": False},
    ],
    ids=str,
)
def test_every_parameter_and_first_state_learns_as_on_the_eager_back_end(kind, options, device):
    model = Reader(kind, **options)
    pc = compiled(model, device)
    layers = model.net.num_layers * (1 + model.net.bidirectional)
    for rule in RULES:
        launches = agree(pc, rule, *sequences(device))
        assert launches[f"{LAUNCHES[kind]}_recurrence"] == launches[f"{LAUNCHES[kind]}_recurrence_error"] == layers


def test_networks_of_rectified_units(device):
    launches = agree(compiled(Reader(nn.RNN, nonlinearity="relu"), device), pccompile.ZIL(), *sequences(device))
    assert launches["rnn_recurrence"] == launches["rnn_recurrence_error"] == 1


def test_biases_that_share_an_error_have_gradients_of_their_own(device):
    pc, (x, y) = compiled(Reader(nn.LSTM), device), sequences(device)
    pc.backend = "triton"
    pc.loss(x, y).backward()
    net = pc.model.net
    assert torch.equal(net.bias_ih_l0.grad, net.bias_hh_l0.grad)
    assert net.bias_ih_l0.grad.data_ptr() != net.bias_hh_l0.grad.data_ptr()


def test_a_frozen_network_under_a_trained_head_has_no_error(device):
    model = Reader(nn.LSTM, learned=False)
    model.net.requires_grad_(False)
    launches = agree(compiled(model, device), pccompile.ZIL(), *sequences(device))
    assert launches == {"lstm_recurrence": 1, "linear_predict": 2, "linear_error": 1, **LOSS}


def test_strict_inference_of_whole_networks(device):
    pc = compiled(Reader(nn.LSTM, learned=False), device)
    launches = agree(pc, pccompile.Strict(steps=3, step_size=0.1), *sequences(device))
    assert launches["lstm_recurrence"] and launches["lstm_recurrence_error"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"num_layers": 2, "dropout": 0.5}, "a network with dropout between its layers has no kernel"),
        ({"proj_size": 3}, "a network with projections has no kernel"),
        ({"dtype": torch.float64}, "float64 has no kernel"),
    ],
    ids=str,
)
def test_what_has_no_kernel_stays_operators_and_the_report_says_why(options, reason, device):
    pc, (x, y) = compiled(Reader(nn.LSTM, learned=False, **options).to(options.get("dtype")), device), sequences(device)
    launches = agree(pc, pccompile.ZIL(), x.to(options.get("dtype")), y)
    assert not launches["lstm_recurrence"]
    assert reason in {row.reason for row in pc.backend_report().of("net")}


@pytest.mark.parametrize("kernel_is_faster", [True, False])
def test_the_kernels_are_taken_where_prediction_and_error_take_no_longer_than_the_operators(
    kernel_is_faster, device, monkeypatch, tmp_path
):
    timed = []

    def seconds_of(graph, rest):
        ours = any("lstm_recurrence" in str(node.target) for node in graph.nodes)
        timed.append(ours)
        return 1e-6 if ours == kernel_is_faster else 2e-6

    monkeypatch.setenv("PCCOMPILE_KERNELS", "measured")
    monkeypatch.setenv("PCCOMPILE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(recurrences, "is_on_gpu", lambda kinds: True)
    monkeypatch.setattr(choice, "seconds_of", seconds_of)
    pc = compiled(Reader(nn.LSTM), device)
    launches = agree(pc, pccompile.ZIL(), *sequences(device))
    told = {True: "kernel 1 us, operators 2 us", False: "kernel 2 us, operators 1 us"}[kernel_is_faster]
    assert launches["lstm_recurrence"] == launches["lstm_recurrence_error"] == int(kernel_is_faster)
    assert reasons(pc, "lstm" if kernel_is_faster else "aten") == {("prediction", told), ("error sweep", told)}
    assert timed == [True, False]  # once, with prediction and error together; what was found is remembered


TIMED = {(phase, "kernel 1 us, operators 1 us") for phase in ("prediction", "error sweep")}


@pytest.mark.usefixtures("every_time_a_microsecond")
def test_both_ways_are_timed_on_tensors_of_the_vertexs_kinds(device):
    pc = compiled(Reader(nn.LSTM), device)
    agree(pc, pccompile.ZIL(), *sequences(device))
    assert reasons(pc, "lstm") == TIMED


@pytest.mark.usefixtures("every_time_a_microsecond")
def test_where_the_operators_cannot_be_traced_the_eager_back_end_is_timed(device, monkeypatch):
    traced, called = recurrences.fragment_of, []

    def fragment_of(function, kinds, errors, known, instead=None):
        if instead is None:
            raise Unsupported("cuDNN takes a storage")
        return traced(function, kinds, errors, known, instead)

    def linearise(self, *inputs):
        called.append(self.vertex.name)
        return forward(self, *inputs)

    pc = compiled(Reader(nn.GRU), device)
    agree(pc, pccompile.ZIL(), *sequences(device))
    forward = LocalFunction.forward
    monkeypatch.setattr(recurrences, "fragment_of", fragment_of)
    monkeypatch.setattr(LocalFunction, "forward", linearise)
    pc.backend = "triton"
    x, y = sequences(device, samples=2)
    pc.loss(x, y).backward()
    assert reasons(pc, "gru") == TIMED
    assert called == ["net"] * 2  # to warm up, and to be timed
