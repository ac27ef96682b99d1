"""Networks that capture opened are run whole where errors have a closed form, and learn as their time steps do."""

import pytest
import torch
import torch.nn.functional as F
from test_recurrence_numerics import LAUNCHES, Reader, sequences
from test_triton_numerics import LOSS, agree
from torch import nn

import pccompile
from pccompile.backends import choice, learned_recurrences


def fixed_prediction(steps=20, step_size=0.4):
    return pccompile.FixedPrediction(steps=steps, step_size=step_size, levelled=True)


def opened(model, device, **options):
    options = {"dynamic": False, "verify": False, "decompose": True, **options}
    return pccompile.compile(model.to(device), loss_fn=F.cross_entropy, **options)


def of_recurrences(launches):
    return {name: count for name, count in launches.items() if "recurrence" in name}


def once_a_layer(kind, layers=1):
    return {f"{LAUNCHES[kind]}_recurrence": layers, f"{LAUNCHES[kind]}_recurrence_error": layers}


class Encoder(nn.Module):
    """A network reads another; the first one's inputs and first states are computed, and so have errors."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.first = nn.Linear(6, 6), nn.Linear(6, 5)
        self.a, self.b = kind(6, 5), kind(5, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        first = self.first(x.mean(1))[None]
        states = (first, torch.tanh(first)) if isinstance(self.a, nn.LSTM) else first
        outputs, last = self.a(torch.tanh(self.embed(x)).transpose(0, 1), states)
        hidden = last[0] if isinstance(last, tuple) else last
        return self.head(self.b(outputs.transpose(0, 1))[0]).mean(1) + hidden[0, :, :3]


@pytest.mark.parametrize("steps", [1, 20])
@pytest.mark.parametrize("kind", LAUNCHES)
def test_a_layer_is_one_error_launch(kind, steps, device):
    pc = opened(Reader(kind, learned=False), device)
    assert "net.l0.hidden@3" in pc.prepare(*sequences(device)).graph
    launches = agree(pc, fixed_prediction(steps), *sequences(device))
    # what the inputs contribute, and the head; back, both weights of the layer and the head's
    assert launches == {**once_a_layer(kind), "linear_predict": 2, "linear_error": 3, **LOSS}
    assert not pc.backend_report().notes
    assert f"runs in the error sweep as: {LAUNCHES[kind]}" in pc.explain("net.l0.hidden@3")


def test_however_many_time_steps_there_are(device):
    launches = agree(opened(Reader(nn.LSTM, learned=False), device), fixed_prediction(), *sequences(device, steps=9))
    assert of_recurrences(launches) == once_a_layer(nn.LSTM)


@pytest.mark.parametrize("kind", LAUNCHES)
def test_gradients_are_those_of_the_literal_program_in_float64(kind, device):
    model, (x, y) = Reader(kind, learned=False), sequences(device)
    pc = opened(model, device, rule=fixed_prediction(), backend="triton")
    ours = torch.autograd.grad(pc.loss(x, y), list(model.parameters()))
    exact = opened(Reader(kind, learned=False).double(), device, rule=fixed_prediction(), optimize=False)
    theirs = torch.autograd.grad(exact.loss(x.double(), y), list(exact.model.parameters()))
    for mine, other in zip(ours, theirs, strict=True):
        assert float(other.norm()) > 0
        assert float((mine - other).norm()) <= 2e-6 * float(other.norm())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_what_is_before_a_network_has_the_error_of_all_its_time_steps(kind, device):
    pc = opened(Encoder(kind), device)
    for rule in (fixed_prediction(), pccompile.ZIL()):
        assert of_recurrences(agree(pc, rule, *sequences(device))) == once_a_layer(kind, layers=2)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize(
    "options",
    [{"num_layers": 2, "bidirectional": True, "batch_first": True}, {"num_layers": 2, "bias": False}],
    ids=str,
)
def test_layers_and_directions(kind, options, device):
    model = Reader(kind, learned=False, **options)
    launches = agree(opened(model, device), fixed_prediction(30, 0.6), *sequences(device))
    layers = model.net.num_layers * (1 + model.net.bidirectional)
    assert of_recurrences(launches) == once_a_layer(kind, layers)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.RNN])
def test_first_states_learn_with_the_gain_of_what_reads_them(kind, options, device):
    pc = opened(Reader(kind, **options), device)
    layers = pc.model.net.num_layers * (1 + pc.model.net.bidirectional)
    assert of_recurrences(agree(pc, fixed_prediction(40), *sequences(device))) == once_a_layer(kind, layers)


def test_networks_of_rectified_units(device):
    model = Reader(nn.RNN, learned=False, nonlinearity="relu")
    assert of_recurrences(agree(opened(model, device), fixed_prediction(), *sequences(device))) == once_a_layer(nn.RNN)


def test_every_node_a_vertex(device):
    pc = opened(Reader(nn.GRU, learned=False), device, vertices="nodes")
    assert of_recurrences(agree(pc, fixed_prediction(30), *sequences(device))) == once_a_layer(nn.GRU)


@pytest.mark.parametrize("frozen", ["weight_ih", "weight_hh", "bias_hh"])
def test_what_is_frozen_does_not_learn(frozen, device):
    model = Reader(nn.LSTM, learned=False)
    getattr(model.net, f"{frozen}_l0").requires_grad_(False)
    assert of_recurrences(agree(opened(model, device), fixed_prediction(), *sequences(device))) == once_a_layer(nn.LSTM)


def test_networks_of_half_precision(device):
    x, y = sequences(device)
    pc = opened(Reader(nn.LSTM, learned=False).half(), device)
    assert of_recurrences(agree(pc, fixed_prediction(), x.half(), y, tolerance=1e-2)) == once_a_layer(nn.LSTM)


def test_a_loss_outside(device):
    model, (x, y) = Reader(nn.LSTM, learned=False), sequences(device)
    pc = pccompile.compile(model.to(device), rule=fixed_prediction(), dynamic=False, verify=False, decompose=True)
    found = {}
    for backend in ("eager", "triton"):
        pc.backend = backend
        found[backend] = torch.autograd.grad(F.cross_entropy(pc(x), y), list(model.parameters()))
    assert pc._latest.backend.joined
    for ours, theirs in zip(found["triton"], found["eager"], strict=True):
        assert float((ours - theirs).norm()) <= 1e-5 * float(theirs.norm())


def test_the_number_of_steps_and_their_size_are_read_when_it_runs(device):
    pc = opened(Reader(nn.LSTM, learned=False), device)
    agree(pc, fixed_prediction(20, 0.4), *sequences(device))
    (plan,) = pc._latest.backend.plans.values()
    agree(pc, fixed_prediction(12, 0.7), *sequences(device))
    assert list(pc._latest.backend.plans.values()) == [plan]


DECLINED = {
    "strict": (Reader, {}, pccompile.Strict(steps=2, step_size=0.1), "its errors are not computed in one step"),
    "unlevelled": (Reader, {}, pccompile.FixedPrediction(steps=3, step_size=0.4), "its errors are not computed in one"),
    "projections": (Reader, {"proj_size": 3}, fixed_prediction(), "a network with projections has no kernel"),
    "double": (Reader, {"dtype": torch.float64}, fixed_prediction(), "float64 has no kernel"),
}


@pytest.mark.parametrize(("make", "options", "rule", "reason"), DECLINED.values(), ids=DECLINED)
def test_time_steps_that_stay_apart_learn_one_by_one_and_the_report_says_why(make, options, rule, reason, device):
    dtype, (x, y) = options.get("dtype"), sequences(device)
    pc = opened(make(nn.LSTM, **{"learned": False, **options}).to(dtype), device)
    launches = agree(pc, rule, x.to(dtype), y)
    assert not of_recurrences(launches)
    assert any(note.startswith(f"net: its time steps run one by one: {reason}") for note in pc.backend_report().notes)


def test_a_first_state_that_is_learned_at_several_levels_keeps_time_steps_apart(device):
    pc = opened(Reader(nn.GRU), device)
    assert not of_recurrences(agree(pc, fixed_prediction(), *sequences(device)))
    (note,) = pc.backend_report().notes
    assert note.endswith("its first state, of first.0, is learned at several levels")


def test_a_frozen_network_has_no_errors_to_be_joined(device):
    model = Reader(nn.LSTM, learned=False)
    model.net.requires_grad_(False)
    pc = opened(model, device)
    assert not of_recurrences(agree(pc, fixed_prediction(), *sequences(device)))
    assert pc.backend_report().notes == ("net: its time steps run one by one: no error reaches it",)


@pytest.mark.parametrize("kernel_is_faster", [True, False])
def test_networks_are_run_whole_where_that_takes_no_longer_than_their_operators(
    kernel_is_faster, device, monkeypatch, tmp_path
):
    def seconds_of(graph, rest):
        ours = any("lstm_recurrence" in str(node.target) for node in graph.nodes)
        return 1e-6 if ours == kernel_is_faster else 2e-6

    monkeypatch.setenv("PCCOMPILE_KERNELS", "measured")
    monkeypatch.setenv("PCCOMPILE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(learned_recurrences, "is_on_gpu", lambda kinds: True)
    monkeypatch.setattr(choice, "seconds_of", seconds_of)
    pc = opened(Reader(nn.LSTM, learned=False), device)
    launches = agree(pc, fixed_prediction(), *sequences(device))
    assert of_recurrences(launches) == (once_a_layer(nn.LSTM) if kernel_is_faster else {})
    slower = ("net: its time steps run one by one: kernel 2 us, operators 1 us",)
    assert pc.backend_report().notes == (() if kernel_is_faster else slower)


@pytest.mark.usefixtures("every_time_a_microsecond")
def test_both_ways_are_timed_on_tensors_of_the_vertexs_kinds(device):
    pc = opened(Reader(nn.GRU, learned=False), device)
    agree(pc, fixed_prediction(), *sequences(device))
    (reason,) = {row.reason for row in pc.backend_report().of("net") if row.kernel == "gru"}
    assert reason == "kernel 1 us, operators 1 us"
