"""backend="auto" measures once for each kind of inputs, remembers, and leaves nothing changed behind."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import pccompile
from pccompile.backends import auto
from pccompile.backends.executables import as_it_is


@pytest.fixture(autouse=True)
def without_inductor(tmp_path, monkeypatch):
    """What is measured here are two ways of running the same graphs, so that no compiler is needed."""
    monkeypatch.setenv("PCCOMPILE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(auto, "with_inductor", as_it_is)
    monkeypatch.setattr(auto, "is_available", lambda device: True)


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))


X, Y = torch.linspace(-1, 1, 30).view(5, 6), torch.tensor([0, 1, 2, 1, 0])


def compiled(model, rule=None):
    return pccompile.compile(model, rule, loss_fn=F.cross_entropy, backend="auto", dynamic=False)


@pytest.mark.parametrize("seconds, expected", [((1.0, 2.0), "aten"), ((2.0, 1.0), "inductor")])
def test_the_faster_one_runs_and_the_choice_outlives_the_process(monkeypatch, seconds, expected):
    measured = []

    def measure(calls, on_cuda):
        measured.append(list(calls))
        return {name: [value] for name, value in zip(calls, seconds, strict=True)}

    monkeypatch.setattr(auto, "measure", measure)
    for _ in range(2):  # the second module finds the first one's entry in the cache
        pc = compiled(make())
        for _ in range(3):
            pc.loss(X, Y).backward()
        assert set(pc._latest.backend.chosen.values()) == {expected}
        assert pc.code.startswith(f"# backend '{expected}'")
    assert measured == [["aten", "inductor"]]


def test_what_is_not_clearly_faster_is_not_taken():
    aten = [10.0, 11.0, 10.0, 12.0, 10.0, 11.0, 10.0, 10.0]
    assert auto.fastest({"aten": aten, "inductor": [9.0] * 8}) == "inductor"
    assert auto.fastest({"aten": aten, "inductor": [9.0] * 5 + [13.0] * 3}) == "aten"  # its median is less
    assert auto.fastest({"aten": aten, "inductor": [9.0] * 8, "triton": [8.0] * 8}) == "triton"
    assert auto.fastest({"aten": aten}) == "aten"


def test_another_kind_of_inputs_is_measured_again(monkeypatch):
    measured = []
    monkeypatch.setattr(auto, "measure", lambda calls, _: measured.append(1) or {name: [1.0] for name in calls})
    pc = compiled(make())
    for batch in (5, 4, 5):
        pc.loss(X[:batch], Y[:batch]).backward()
    assert len(measured) == 2


@pytest.mark.parametrize(
    "rule", [pccompile.ZIL(), pccompile.Strict(steps=3), pccompile.Incremental(steps=3)], ids=lambda rule: rule.name
)
def test_measuring_changes_neither_the_model_nor_the_random_numbers(rule):
    trained = {}
    for backend in ("aten", "auto"):
        model = make()
        pc = pccompile.compile(model, rule, loss_fn=F.cross_entropy, backend=backend, dynamic=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        torch.manual_seed(5)
        for _ in range(2):
            pc.step(X, Y, optimizer)
        trained[backend] = [*(t.clone() for t in model.state_dict().values()), torch.rand(3)]
    assert all(torch.equal(a, b) for a, b in zip(*trained.values(), strict=True))


def test_every_contestant_is_timed_in_turn():
    order = []
    found = auto.measure({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, on_cuda=False)
    assert order[:4] == ["a", "b", "a", "b"]
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 9, "b": 9}


def test_without_what_inductor_needs_there_is_nothing_to_choose(monkeypatch):
    monkeypatch.setattr(auto, "is_available", lambda device: False)
    monkeypatch.setattr(auto, "measure", None)
    pc = compiled(make())
    pc.loss(X, Y).backward()
    assert pc.code.startswith("# backend 'aten'")


def test_the_kernels_take_part_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr(auto, "is_installed", lambda: True)
    pc = compiled(make())
    pc.loss(X, Y).backward()
    contestants = pc._latest.backend._contestants
    with FakeTensorMode():
        on = {device: torch.empty(2, device=device) for device in ("cpu", "cuda")}
    assert contestants({"x": (on["cpu"],)}) == ["aten", "inductor"]
    assert contestants({"x": (on["cpu"],), "weight": (on["cuda"],)}) == ["aten", "inductor", "triton"]
    monkeypatch.setattr(auto, "is_installed", lambda: False)
    assert contestants({"x": (on["cuda"],)}) == ["aten", "inductor"]


def test_what_fails_is_not_measured_and_a_warning_says_so(caplog):
    def fails():
        raise RuntimeError("no such luck")

    for name in ("triton", "inductor"):
        assert not auto._runs(name, fails)
        assert f"backend {name!r} cannot run this program: RuntimeError: no such luck" in caplog.text
    assert auto._runs("aten", fails)  # what fails there is the user's own, and told when the step runs
