"""The intermediate representation: printing, JSON, the verifier, the locality check."""

import dataclasses
import json

import networkx as nx
import pytest
from generated import RULES, graph_of, graphs
from hypothesis import given, settings
from hypothesis import strategies as st

from pccompile.errors import CycleError, ProgramError
from pccompile.ir import Action, Program, Span, Time, Update, check_locality, verify
from pccompile.ir.check import reads
from pccompile.passes import run
from pccompile.rules import ZIL, Strict, literal_program


@settings(max_examples=40, deadline=None)
@given(graphs, st.sampled_from(RULES))
def test_every_stage_of_every_rule_survives_json(graph, rule):
    program = run(literal_program(rule, graph), rule.passes)
    back = Program.from_json(program.to_json())
    assert back == program
    assert list(back.stages) == list(program.stages)
    assert all(ours == theirs for ours, theirs in zip(back.stages.values(), program.stages.values(), strict=True))
    assert (str(back), back.code) == (str(program), program.code)


@settings(max_examples=40, deadline=None)
@given(graphs)
def test_zil_ends_with_one_update_of_each_kind_a_vertex_in_one_step_each(graph):
    program = run(literal_program(ZIL(), graph), ZIL.passes)
    assert all(update.span.single for update in program.schedule)
    assert all(len(updates) == 1 for updates in program.updates.values())
    for (action, name), (update,) in program.updates.items():
        level = program.vertex(name).level
        if action is Action.LEARN:
            assert update.span.start.offset == max(level, 0)
        if action is Action.RELAX:
            assert update.span.start.offset == level - 1
        if action is Action.PREDICT:
            assert update.span == Span.steps(0, 1)


@settings(max_examples=25, deadline=None)
@given(graphs, st.sampled_from(RULES))
def test_every_update_of_every_stage_reads_neighbours_only(graph, rule):
    for stage in run(literal_program(rule, graph), rule.passes).stages.values():
        check_locality(stage)
        for update in stage.schedule:
            near = {update.vertex, *stage.graph.predecessors(update.vertex), *stage.graph.successors(update.vertex)}
            assert {name for _, name in reads(stage, update)} <= near


CHAIN = graph_of([[], [], []])


def test_the_table_shows_kinds_types_levels_updates_and_sources():
    text = str(literal_program(ZIL(), CHAIN))
    assert text.startswith("ZIL program, stage 'literal': 1 input, 3 parameter, 2 hidden, 1 output, 1 loss;")
    row = next(line for line in text.splitlines() if line.startswith("layer0 "))
    assert row.split()[:5] == ["layer0", "hidden", "aten.op.default", "f32[2,", "3]"]
    assert "Learn[2, 3)" in row and "net.py:1 in forward" in row


def test_json_of_another_schema_or_of_nonsense_is_refused():
    text = literal_program(ZIL(), CHAIN).to_json()
    data = json.loads(text)
    assert data["schema"] == 2
    with pytest.raises(ProgramError, match="schema 99"):
        Program.from_json(json.dumps({**data, "schema": 99}))
    for broken in ("[]", "{", json.dumps({"schema": 2, "rule": "ZIL", "stages": []}), '{"schema": 2}'):
        with pytest.raises(ProgramError):
            Program.from_json(broken)


def with_update(action: Action, name: str, span: Span) -> Program:
    program = literal_program(Strict(), CHAIN)
    return dataclasses.replace(program, schedule=(*program.schedule, Update(action, name, span)))


@pytest.mark.parametrize(
    ("action", "name", "span", "message"),
    [
        (Action.INFER, "x", Span.steps(0, 1), "kind input has no Infer"),
        (Action.INFER, "layer2", Span.steps(0, 1), "kind output has no Infer"),
        (Action.LEARN, "layer1", Span.steps(0, 1), "nothing to learn"),
        (Action.PREDICT, "layer0", Span.steps(0, 1), "runs twice in the same step"),
        (Action.RELAX, "layer0", Span.steps(0, 1), "both its value and its error"),
        (Action.LEARN, "layer0", Span.steps(3, 3), "never runs"),
        (Action.PREDICT, "elsewhere", Span.steps(0, 1), "not in the graph"),
    ],
)
def test_the_verifier_refuses_what_the_grammar_forbids(action, name, span, message):
    verify(literal_program(Strict(), CHAIN))
    with pytest.raises(ProgramError, match=message):
        verify(with_update(action, name, span))


def rewired(program: Program, **changes) -> Program:
    graph = nx.DiGraph(program.graph)
    for name, fields in changes.items():
        graph.nodes[name]["vertex"] = dataclasses.replace(program.vertex(name), **fields)
    return dataclasses.replace(program, graph=graph)


def test_the_verifier_checks_order_levels_and_edges():
    program = literal_program(ZIL(), CHAIN)
    with pytest.raises(ProgramError, match="comes after"):
        verify(rewired(program, layer0={"order": 99}))
    with pytest.raises(ProgramError, match="not above"):
        verify(rewired(program, layer0={"level": 1}))
    with pytest.raises(ProgramError, match="has a level"):
        verify(rewired(program, x={"level": 3}))
    graph = nx.DiGraph(program.graph)
    graph.edges["layer0", "layer1"]["reads"] = ("nowhere",)
    with pytest.raises(ProgramError, match="nowhere"):
        verify(dataclasses.replace(program, graph=graph))
    graph = nx.DiGraph(program.graph)
    graph.add_edge("layer1", "layer0", reads=("node_layer1",))
    with pytest.raises(CycleError):
        verify(dataclasses.replace(program, graph=graph))


def test_times_print_as_they_parse():
    for time in (Time(False, 0), Time(False, 7), Time(True, 0), Time(True, 1), Time(True, -2)):
        assert Time.parse(str(time)) == time
    assert [str(span) for span in (Span.steps(1, 2), Span.inference(), Span.whole(), Span.final())] == [
        "[1, 2)",
        "[0, T)",
        "[0, T+1)",
        "[T, T+1)",
    ]
    assert Span.steps(2, 2).empty and Span.final().single and not Span.inference().empty
