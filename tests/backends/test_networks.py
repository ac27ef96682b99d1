"""Opened networks joined again: whose gains their parameters get, and what the program is then."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pccompile
from pccompile.backends import choice, triton
from pccompile.backends.networks import join, without_gaps
from pccompile.backends.opened import Apart, Opened, opened_networks
from pccompile.ir.check import verify
from pccompile.ir.grammar import Action

STEPS = 3


class Tagger(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.net, self.head = kind(6, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.net(x)[0]).mean(1)


def joined(kind, rule=None):
    rule = rule or pccompile.FixedPrediction(steps=20, step_size=0.3, levelled=True)
    options = {"dynamic": False, "verify": False, "decompose": True}
    pc = pccompile.compile(Tagger(kind), rule=rule, loss_fn=F.cross_entropy, backend="aten", **options)
    program = pc.prepare(torch.randn(4, STEPS, 6), torch.randint(2, (4,)))
    functions = pc._latest.backend.functions
    (network,) = opened_networks(functions)
    return program, join(Opened(program, functions, network), called)


def called(*arguments):
    """What the vertex of a network calls, here never."""
    raise AssertionError


def level(program, name):
    """At which a vertex learns."""
    (update,) = program.updates[Action.LEARN, f"net.l0.{name}"]
    return int(update.gain[2:-1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_network_is_one_vertex_of_a_program_that_checks(kind):
    program, found = joined(kind)
    verify(found.program)
    assert {vertex.name for vertex in found.program.vertices if vertex.name.startswith("net.l0.")} == set()
    assert [vertex.name for vertex in found.program.children("net")] == ["head"]
    assert set(found.functions) == {v.name for v in found.program.vertices if v.nodes}
    assert found.functions["head"].outputs == ("mean",)
    assert program.previous is not None and found.program.previous is program


def test_every_time_step_learns_with_the_gain_of_its_own_level():
    program, found = joined(nn.LSTM)
    ((inputs, states),) = found.gains["net.gains"]
    assert inputs == tuple((level(program, f"input@{t}"),) * 4 for t in range(STEPS))
    # the first hidden state is constant: what it contributes is no vertex, but part of the sum
    names = ["gates@0", *(f"recurrent@{t}" for t in range(1, STEPS))]
    assert states == tuple((level(program, name),) * 4 for name in names)
    assert states[0][0] == inputs[0][0] - 1


def test_gates_that_read_a_constant_state_by_themselves_learn_at_levels_of_their_own():
    program, found = joined(nn.GRU)
    ((_, states),) = found.gains["net.gains"]
    assert states[0] == tuple(level(program, f"{name}@0") for name in ("reset", "update", "gated"))
    assert len(set(states[0])) == 3
    assert states[1] == (level(program, "recurrent@1"),) * 3


def test_steps_in_which_nothing_runs_are_left_out():
    _, found = joined(nn.LSTM)
    program = without_gaps(found.program)
    starts = sorted({update.span.start.offset for update in program.schedule})
    assert starts == list(range(len(starts)))
    before = [u.vertex for u in sorted(found.program.schedule, key=lambda u: u.span.start.offset)]
    assert [u.vertex for u in sorted(program.schedule, key=lambda u: u.span.start.offset)] == before
    verify(program)


def test_what_infers_stays_apart():
    with pytest.raises(Apart, match="not computed in one step"):
        joined(nn.LSTM, pccompile.Strict(steps=2, step_size=0.1))


def test_without_a_gpu_time_steps_run_one_by_one_as_on_the_aten_back_end(monkeypatch):
    monkeypatch.setattr(triton, "_can_run", lambda kinds: False)  # also where there is one
    monkeypatch.setattr(choice, "objection", lambda match: "no GPU")
    rule = pccompile.FixedPrediction(steps=20, step_size=0.3, levelled=True)
    gradients = {}
    for backend in ("aten", "triton"):
        torch.manual_seed(0)
        options = {"dynamic": False, "verify": False, "decompose": True, "backend": backend}
        pc = pccompile.compile(Tagger(nn.GRU), rule=rule, loss_fn=F.cross_entropy, **options)
        pc.loss(torch.randn(4, STEPS, 6), torch.randint(2, (4,))).backward()
        gradients[backend] = [parameter.grad for parameter in pc.model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(*gradients.values(), strict=True))
    assert pc.backend_report().notes == ("net: its time steps run one by one: no GPU",)
