"""The printed program: it parses back, and long programs are printed without their repetitions."""

import pytest
from generated import RULES, graph_of, strangely_named_graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from models import make

import pccompile
from pccompile.errors import ProgramError
from pccompile.ir import Program
from pccompile.passes import run
from pccompile.rules import ZIL, literal_program

TALL = run(literal_program(ZIL(), graph_of([[]] * 40)), ZIL.passes)


@settings(max_examples=25, deadline=None)
@given(strangely_named_graphs, st.sampled_from(RULES), st.booleans())
def test_every_stage_of_every_rule_parses_back_from_its_full_table(graph, rule, observed):
    for stage in run(literal_program(rule, graph, observed), rule.passes).stages.values():
        back = Program.parse(stage.text(verbose=True))
        assert back == stage
        assert back.text(verbose=True) == stage.text(verbose=True)
        assert [[p.name for p in back.parents(v.name)] for v in back.vertices] == [
            [p.name for p in stage.parents(v.name)] for v in stage.vertices
        ]


@pytest.mark.parametrize("name", ["residual blocks with batch norm", "transformer encoder with dropout", "lstm"])
def test_the_full_table_of_a_model_parses_back(name):
    model, inputs, _ = make(name)
    program = pccompile.compile(model, example_inputs=inputs).program
    assert Program.parse(program.text(verbose=True)) == program


def broken(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ZIL program", "Z-IL program", "first lines"),
        ("  reads", "  grins", "first lines"),
        ("hidden", "hiding", "line 5 of the table"),
        ("Learn[", "Learns", "line 5 of the table"),
        ("f32[2, 3]", "f32[2; 3]", "line 3 of the table"),
    ],
)
def test_a_text_that_is_no_full_table_is_refused_with_the_line(old, new, message):
    text = run(literal_program(ZIL(), graph_of([[], []])), ZIL.passes).text(verbose=True)
    with pytest.raises(ProgramError, match=message):
        Program.parse(broken(text, old, new))
    with pytest.raises(ProgramError):
        Program.parse("")


def test_the_folded_table_is_refused_by_the_parser():
    with pytest.raises(ProgramError, match="verbose=True"):
        Program.parse(str(TALL))


def test_a_block_that_repeats_is_printed_once_and_verbose_opens_it():
    lines = str(TALL).splitlines()
    folds = [line for line in lines if line.startswith("    ... ")]
    what = "12 more blocks of 6 vertices like these: layer3.weight to layer38"
    assert folds == [f"    ... {what} (verbose=True shows them)"]
    assert len(lines) == 2 + len(TALL.vertices) - 12 * 6 + 1
    assert len(TALL.text(verbose=True).splitlines()) == 2 + len(TALL.vertices)


def test_a_short_program_and_a_program_without_repetitions_are_printed_whole():
    short = run(literal_program(ZIL(), graph_of([[]] * 20)), ZIL.passes)
    assert len(str(short).splitlines()) == 2 + len(short.vertices)
