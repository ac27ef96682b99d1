"""The timeline says when errors are there; the reference evaluator is asked whether they are."""

import pytest
import torch
from generated import RULES, graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from models import loss_fn, make

import pccompile
from pccompile.backends.literal import TorchSemantics
from pccompile.backends.run import Run
from pccompile.call import Call
from pccompile.capture import capture, leaf_value
from pccompile.compiled import compile_captured
from pccompile.derivatives import local_functions
from pccompile.inspection.timeline import timeline
from pccompile.ir import Action, Evaluator, Kind
from pccompile.passes import run
from pccompile.passes.zero_errors import first_error_steps
from pccompile.rules import ZIL, literal_program

STEPS = 9
MODELS = {"skips": ZIL(), "residual blocks with batch norm": ZIL(), "mlp": pccompile.Strict(steps=STEPS)}


class Watching(TorchSemantics):
    """Notes after every step which errors are not zero."""

    seen: list[set[str]]

    def end_step(self, evaluator: Evaluator, compared: bool) -> bool:
        parts = {name: [p for p in error or () if p is not None] for name, error in evaluator.error.items()}
        self.seen.append({name for name, found in parts.items() if any(bool((p != 0).any()) for p in found)})
        return super().end_step(evaluator, compared)


def observed_errors(program, captured, model, flat, rule) -> list[set[str]]:
    """The vertices with an error that is not zero, as the updates of each step see it."""
    clamped = {
        v.name: (leaf_value(captured.leaves[v.components[0].node], model, loss_fn, flat).detach(),)
        for v in program.vertices
        if v.clamped and not v.nodes
    }
    semantics = Watching(program, local_functions(program, captured), Run(rule))
    semantics.seen = []
    evaluator = Evaluator(program, semantics, rule.steps, rule.step_size)
    evaluator.feed_forward(clamped)
    semantics.run.loss_error = (-torch.ones((), dtype=torch.float64),)
    evaluator.infer({})
    relaxed = {name for action, name in program.updates if action is Action.RELAX}
    before = [set[str](), *semantics.seen]
    return [
        {name for name in now if name not in relaxed} | (earlier & relaxed)
        for earlier, now in zip(before, semantics.seen, strict=False)
    ]


@pytest.mark.parametrize(("name", "rule"), MODELS.items())
def test_errors_are_there_exactly_when_the_evaluator_finds_them(name, rule):
    model, inputs, target = make(name, torch.float64)
    captured = capture(Call(model, loss_fn, (inputs,), {}, (target,)), "auto")
    wanted = tuple(node for node, leaf in captured.leaves.items() if leaf.kind is Kind.PARAMETER)
    final = compile_captured(captured, rule, "auto", wanted, optimize=True).program
    for stage in (s for s in final.stages.values() if s.name != "literal" or rule.name != "ZIL"):
        times = timeline(stage, rule.steps)
        for step, errors in enumerate(observed_errors(stage, captured, model, [inputs, target], rule)):
            expected = {v for v, (first, until) in times.errors.items() if first <= step < until}
            still_read = {v for v in errors if step < times.errors.get(v, (0, 0))[1]}
            assert still_read == expected, (stage.name, step)


@settings(max_examples=25, deadline=None)
@given(graphs)
def test_under_zil_the_wavefront_is_the_one_that_the_zero_errors_pass_knows(graph):
    levelled = run(literal_program(ZIL(), graph), ["level"])
    arrival = first_error_steps(levelled)
    times = timeline(levelled, 0)
    assert {name: first for name, (first, _) in times.errors.items()} == arrival
    assert times.length == levelled.depth + 1


@settings(max_examples=25, deadline=None)
@given(graphs, st.sampled_from(RULES), st.integers(1, 6))
def test_every_update_runs_within_the_timeline(graph, rule, steps):
    program = run(literal_program(rule, graph), rule.passes)
    times = timeline(program, steps)
    assert all(0 <= start < stop <= times.length for start, stop in times.runs.values())
    for name, (first, until) in times.errors.items():
        assert program.vertex(name).has_error and 0 <= first < until <= times.length
