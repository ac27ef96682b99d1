"""Lowered programs: pieces, loops, and what crosses between them."""

import pytest
import torch
from models import loss_fn, make

import pccompile
from pccompile.lowering import lower


def lowered(rule, name="mlp"):
    model, inputs, target = make(name)
    return lower(pccompile.compile(model, rule, loss_fn=loss_fn).prepare(inputs, target))


def test_zil_lowers_to_one_prediction_sweep_and_one_straight_error_sweep():
    found = lowered(pccompile.ZIL(), "residual blocks with batch norm")
    assert [piece.loop for piece in found.error_sweep] == [False]
    assert found.negated


def test_strict_lowers_to_one_loop_body_however_many_steps_it_runs():
    short, long = lowered(pccompile.Strict(steps=2)), lowered(pccompile.Strict(steps=500))
    assert short.code == long.code
    assert [(str(piece.span), piece.loop) for piece in short.error_sweep] == [
        ("[0, 1)", False),
        ("[1, T)", True),
        ("[T, T+1)", False),
    ]
    assert not short.negated


def test_each_vertex_is_linearised_and_pulled_back_once_under_zil():
    found = lowered(pccompile.ZIL(), "skips")
    calls = [str(node.target) for node in found.prediction_sweep.graph.nodes if node.op == "call_module"]
    pulls = [node.args[0].name for node in found.error_sweep[0].graph.nodes if node.target == "pull_back"]
    assert len(calls) == len(set(calls)) and len(pulls) == len(set(pulls))
    assert set(pulls) <= set(calls)


def test_the_local_graph_is_freed_by_its_last_product_with_the_jacobian():
    found = lowered(pccompile.ZIL())
    pulls = [node for node in found.error_sweep[0].graph.nodes if node.target == "pull_back"]
    assert pulls and all(node.args[3] is True for node in pulls)
    body = lowered(pccompile.FixedPrediction(), "residual blocks with batch norm").error_sweep[1]
    assert body.loop and not any(n.args[3] for n in body.graph.nodes if n.target == "pull_back")


def test_tied_weights_are_summed_in_reverse_execution_order():
    graph = lowered(pccompile.ZIL(), "tied weights").error_sweep[0].graph
    sums = [node for node in graph.nodes if node.name.startswith("embedding_weight_gradient")]
    assert len(sums) == 2 and sums[1].args[0] is sums[0]
    assert sums[0].args[2].args[0].name == "head_back" and sums[1].args[2].args[0].name == "embedding_back"


@pytest.mark.parametrize("rule", [pccompile.ZIL(), pccompile.Strict(), pccompile.Incremental()], ids=lambda r: r.name)
def test_the_code_of_every_piece_is_valid_python(rule):
    compile(lowered(rule).code, "program", "exec")


def test_parameters_shared_by_pieces_keep_their_identity_when_names_collide():
    class Colliding(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a_b = torch.nn.Linear(3, 3)
            self.a = torch.nn.Sequential()
            self.a.add_module("b", torch.nn.Linear(3, 3))

        def forward(self, x):
            return self.a(self.a_b(x))

    model, x = Colliding(), torch.randn(4, 3)
    pc = pccompile.compile(model)
    ours = torch.autograd.grad(pc(x).square().sum(), list(model.parameters()))
    theirs = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
