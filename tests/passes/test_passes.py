"""Each pass: a golden before and after, the result unchanged, and nothing done where there is nothing to do.

Refresh the golden files with PCCOMPILE_REFRESH_GOLDEN=1.
"""

import functools
import os
import re
from pathlib import Path

import pytest
import torch
from models import NAMES, Skips, loss_fn, make, mlp

import pccompile
from pccompile.backends import LiteralBackend
from pccompile.backends.run import Run
from pccompile.call import Call
from pccompile.capture import capture, leaf_value
from pccompile.compiled import compile_captured
from pccompile.derivatives import local_functions
from pccompile.ir import Action, Kind, Program, Span, Time, Update, verify
from pccompile.passes import PASSES
from pccompile.passes.closed_form import binomial_tail
from pccompile.passes.zero_errors import first_error_steps

GOLDEN = Path(__file__).parent / "golden"
ZIL, FPA, LEVELLED = (
    pccompile.ZIL(),
    pccompile.FixedPrediction(steps=5, step_size=0.4),
    pccompile.FixedPrediction(steps=9, step_size=0.4, levelled=True),
)
STRICT = pccompile.Strict(steps=3)
APPEARANCES = {
    "level": (ZIL, LEVELLED),
    "zero errors": (ZIL,),
    "liveness": (ZIL, FPA, STRICT),
    "reuse": (ZIL, STRICT),
    "error state": (ZIL, FPA),
    "closed form": (LEVELLED,),
    "bypass": (ZIL, LEVELLED),
}


@functools.cache
def captured_of(name: str):
    """A model of tests/models.py with its loss, captured once: (captured, model, flat inputs, parameter nodes)."""
    model, inputs, target = make(name, torch.float64)
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    captured = capture(Call(model, loss_fn, args, {}, (target,)), "auto")
    wanted = tuple(node for node, leaf in captured.leaves.items() if leaf.kind is Kind.PARAMETER)
    return captured, model, [*args, target], wanted


def program_of(rule, name="skips"):
    captured, _, _, wanted = captured_of(name)
    return compile_captured(captured, rule, "auto", wanted, optimize=True).program


def interpret(program: Program, rule, name: str):
    """The gradients of a stage by the reference evaluator."""
    captured, model, flat, _ = captured_of(name)
    clamped = {
        vertex.name: (leaf_value(captured.leaves[vertex.components[0].node], model, loss_fn, flat).detach(),)
        for vertex in program.vertices
        if vertex.clamped and not vertex.nodes
    }
    backend, run = LiteralBackend(program, local_functions(program, captured)), Run(rule)
    torch.manual_seed(0)
    state = backend.feed_forward(run, clamped)
    loss = next(vertex.name for vertex in program.vertices if vertex.kind is Kind.LOSS)
    return backend.infer(run, state, {loss: (torch.ones((), dtype=torch.float64),)})


def before_and_after(program, pass_name):
    stages = list(program.stages.values())
    position = next(i for i, stage in enumerate(stages) if stage.name == pass_name)
    return stages[position - 1], stages[position]


@pytest.mark.parametrize(("pass_name", "rule"), [(p, r) for p, rules in APPEARANCES.items() for r in rules], ids=str)
def test_the_printed_change_is_the_golden_one(pass_name, rule):
    program = program_of(rule)
    before, after = before_and_after(program, pass_name)
    text = f"{before}\n\n{after}\n\n{program.diff(before.name, after.name)}\n"
    text = re.sub(r" +models\.py:.*", "", text)  # the source column moves with every edit of that file
    levelled = " levelled" if getattr(rule, "levelled", False) else ""
    path = GOLDEN / f"{pass_name} {rule.name}{levelled}.txt".replace(" ", "-")
    if os.environ.get("PCCOMPILE_REFRESH_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("rule", [ZIL, FPA, LEVELLED, STRICT], ids=["zil", "fixed", "levelled", "strict"])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "mnist network"])
def test_no_pass_changes_what_the_program_computes(name, rule):
    program = program_of(rule, name)
    stages = list(program.stages.values())
    # unlevelled Z-IL is another algorithm; from the level pass on every stage computes the same
    start = 1 if rule.name == "ZIL" or getattr(rule, "levelled", False) else 0
    expected = interpret(stages[start], rule, name)
    size = sum(float(g[0].square().sum()) for g in expected.values() if g)
    for stage in stages[start + 1 :]:
        found = interpret(stage, rule, name)
        assert {k for k, g in found.items() if g} == {k for k, g in expected.items() if g}
        error = sum(float((found[key][0] - g[0]).square().sum()) for key, g in expected.items() if g)
        assert error <= 1e-22 * size, stage.name


@pytest.mark.parametrize("pass_name", PASSES)
def test_a_pass_that_has_nothing_to_do_changes_nothing(pass_name):
    rule = STRICT if pass_name in ("error state", "bypass", "closed form") else ZIL
    final = program_of(rule, "mlp")
    again = verify(PASSES[pass_name](final))
    assert again.schedule == final.schedule
    if pass_name != "level":
        assert again.vertices == final.vertices
    assert set(again.graph.edges) == set(final.graph.edges)


def test_every_pass_says_why():
    for rule in (ZIL, LEVELLED):
        assert all(stage.why for stage in program_of(rule).stages.values())


def test_after_levelling_every_edge_joins_consecutive_levels_and_one_line_serves_all_skips():
    levelled = program_of(ZIL).stages["level"]
    errors = [v for v in levelled.vertices if v.level is not None]
    for vertex in errors:
        for child in levelled.children(vertex.name):
            assert child.level is None or vertex.level - child.level == 1
    delays = [vertex.name for vertex in errors if vertex.kind is Kind.DELAY]
    source = {name.rpartition(".delay")[0] for name in delays}
    assert len(source) == 1 and len(delays) == 3  # tanh(a) is read three and four levels on: one line of three


def test_errors_arrive_after_the_shortest_path():
    program = program_of(ZIL).stages["literal"]
    arrival = first_error_steps(program)
    assert arrival["c"] == 0
    assert min(arrival[parent.name] for parent in program.parents("c") if parent.name in arrival) == 1
    assert all(arrival[v.name] <= v.level for v in program.vertices if v.name in arrival)


def test_liveness_drops_the_errors_of_a_frozen_branch():
    model = mlp().double()
    model[0].requires_grad_(False)
    for rule in (ZIL, FPA):
        program = pccompile.compile(model, rule, example_inputs=torch.randn(6, 4).double()).program
        assert not [u for u in program.schedule if u.vertex in ("0", "1") and u.action is not Action.PREDICT]
    strict = pccompile.compile(model, STRICT, loss_fn=loss_fn)
    program = strict.prepare(torch.randn(6, 4).double(), torch.randint(5, (6,)))
    # under strict the frozen layer's belief moves, and the layer above it learns from where it is
    assert [u for u in program.schedule if u.vertex == "0" and u.action is Action.INFER]
    assert not [u for u in program.schedule if u.vertex == "0" and u.action is Action.LEARN]


def test_reuse_predicts_the_first_layer_of_strict_inference_once():
    program = program_of(STRICT, "mlp")
    first, second = (program.updates[Action.PREDICT, name] for name in ("0", "2"))
    assert [str(update.span) for update in first] == ["[0, 1)"]
    assert [str(update.span) for update in second] == ["[0, T+1)"]


def test_the_first_layer_of_incremental_inference_is_predicted_again_because_its_parameters_move():
    program = program_of(pccompile.Incremental(steps=3), "mlp")
    assert [str(update.span) for update in program.updates[Action.PREDICT, "0"]] == ["[0, T)"]


def test_the_closed_form_is_refused_where_an_edge_skips_levels():
    program = program_of(FPA, "residual blocks with batch norm")
    assert "does not apply" in program.stages["closed form"].why
    assert any(str(update.span) == "[0, T)" for update in program.schedule)
    assert all(update.span.single for update in program_of(FPA, "mlp").schedule)


@pytest.mark.parametrize(("trials", "probability"), [(1, 0.3), (5, 0.1), (20, 0.1), (40, 0.7), (7, 1.0)])
def test_the_binomial_tail_is_the_sum_of_its_terms(trials, probability):
    from math import comb

    for at_least in range(trials + 3):
        terms = [
            comb(trials, k) * probability**k * (1 - probability) ** (trials - k) for k in range(at_least, trials + 1)
        ]
        assert binomial_tail(trials, probability, at_least) == pytest.approx(sum(terms), rel=1e-12, abs=1e-300)


def test_times_count_from_the_start_or_from_the_end():
    assert [str(t) for t in (Time(False, 3), Time(True, 0), Time(True, 1), Time(True, -1))] == ["3", "T", "T+1", "T-1"]
    assert Time(False, 999) < Time(True, -5)
    assert (Span.final().start.at(7), Span.final().last.at(7)) == (7, 7)
    assert str(Update(Action.LEARN, "fc", Span.steps(1, 2), gain="c(1)")) == "Learn(fc) @ [1, 2) gain c(1)"


def test_skips_really_has_skips():
    model = Skips().double()
    program = pccompile.compile(model, example_inputs=torch.randn(6, 4).double()).program
    assert any(
        vertex.level is not None and child.level is not None and vertex.level - child.level > 1
        for vertex in program.vertices
        if not vertex.clamped
        for child in program.children(vertex.name)
    )
