"""The Inductor back end computes what the eager one does, and compiles each distinct part once."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pccompile
from pccompile.backends import inductor

pytestmark = pytest.mark.skipif(not inductor.is_available("cpu"), reason="Inductor needs a C++ compiler")

RULES = {
    "zil": pccompile.ZIL(),
    "fixed prediction": pccompile.FixedPrediction(steps=6, step_size=0.3),
    "strict": pccompile.Strict(steps=4, step_size=0.1),
    "strict, adam": pccompile.Strict(steps=4, step_size=0.05, optimizer="adam"),
}


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.3)

    def forward(self, x):
        h = torch.tanh(self.norm(self.a(x)))
        return self.c(self.drop(h + torch.relu(self.b(h))))


def step(rule, backend, model, x, y):
    torch.manual_seed(3)
    pc = pccompile.compile(model, rule, loss_fn=F.cross_entropy, backend=backend, dynamic=False)
    loss = pc.loss(x, y)
    found = torch.autograd.grad(loss, list(model.parameters()))
    return pc, [loss.detach(), *found, *(buffer.clone() for buffer in model.buffers())]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_it_agrees_with_the_eager_back_end(rule, caplog):
    x, y = torch.randn(5, 6, dtype=torch.float64), torch.randint(0, 3, (5,))
    results = {}
    for backend in ("eager", "inductor"):
        torch.manual_seed(0)
        _, results[backend] = step(rule, backend, Small().double(), x, y)
    for ours, eager in zip(results["inductor"], results["eager"], strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-9, atol=1e-11)
    assert "cannot compile" not in caplog.text


def test_step_size_number_of_steps_and_gains_are_read_at_run_time():
    torch.manual_seed(0)
    model, x, y = Small().eval(), torch.randn(5, 6), torch.randint(0, 3, (5,))
    pc, _ = step(pccompile.Strict(steps=4, step_size=0.1), "inductor", model, x, y)
    compiled = len(inductor._compiled)
    for rule in (pccompile.Strict(steps=9, step_size=0.1), pccompile.Strict(steps=4, step_size=0.02)):
        pc.rule = rule
        ours = torch.autograd.grad(pc.loss(x, y), list(model.parameters()))
        _, (_, *eager) = step(rule, "eager", model, x, y)
        for mine, theirs in zip(ours, eager, strict=False):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    assert len(inductor._compiled) == compiled


def test_a_deeper_stack_of_the_same_blocks_compiles_hardly_anything_more():
    def stack(depth):
        torch.manual_seed(0)
        block = [layer for _ in range(depth) for layer in (nn.Linear(8, 8), nn.LayerNorm(8), nn.Tanh())]
        return nn.Sequential(*block, nn.Linear(8, 3))

    x, y = torch.randn(4, 8), torch.randint(0, 3, (4,))
    counts = []
    for depth in (36, 72):
        before = len(inductor._compiled)
        pc, found = step(pccompile.ZIL(), "inductor", model := stack(depth), x, y)
        counts.append(len(inductor._compiled) - before)
        autograd = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        for ours, theirs in zip(found[1:], autograd, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
        assert "parts" in pc.code
    assert counts[0] <= 8
    assert counts[1] <= 2


def test_where_inductor_fails_the_graph_runs_as_it_is_and_a_warning_says_so(monkeypatch, caplog):
    def fails(*args, **kwargs):
        raise RuntimeError("no such luck")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx_inner", fails)
    monkeypatch.setattr(inductor, "_compiled", {})
    caplog.set_level(logging.WARNING, "pccompile")
    torch.manual_seed(0)
    model, x, y = Small(), torch.randn(5, 6), torch.randint(0, 3, (5,))
    _, ours = step(pccompile.ZIL(), "inductor", model, x, y)
    assert "no such luck" in caplog.text and "runs as it is" in caplog.text
    torch.manual_seed(0)
    _, eager = step(pccompile.ZIL(), "eager", Small(), x, y)
    assert all(torch.equal(a, b) for a, b in zip(ours, eager, strict=True))


def test_what_was_compiled_once_is_read_from_the_disk(monkeypatch, tmp_path):
    from torch._dynamo.utils import counters

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    found = []
    for _ in range(2):
        monkeypatch.setattr(inductor, "_compiled", type(inductor._compiled)())  # as in another process
        counters.clear()
        torch.manual_seed(0)
        model, x, y = Small().eval(), torch.randn(3, 6), torch.randint(0, 3, (3,))
        found.append(step(pccompile.ZIL(), "inductor", model, x, y)[1])
        kept = {name: counters["inductor"][f"fxgraph_cache_{name}"] for name in ("miss", "hit", "bypass")}
        assert kept == ({"miss": 2, "hit": 0, "bypass": 0} if len(found) == 1 else {"miss": 0, "hit": 2, "bypass": 0})
    assert all(map(torch.equal, *found))
