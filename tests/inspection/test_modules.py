"""Folding by module: which groups there are, and what a view shows."""

import pytest
from generated import strangely_named_graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import zil_program

from pccompile.errors import UsageError
from pccompile.inspection.modules import COMFORTABLE, backstage, grouping, opened_first, view
from pccompile.ir import Kind
from pccompile.passes import run
from pccompile.rules import ZIL, literal_program

RESNET = zil_program("resnet18")


def test_modules_are_groups_and_modules_with_one_vertex_are_not():
    groups = grouping(RESNET)
    assert groups.groups["layer1.0"].parent == "layer1"
    assert groups.groups["layer2.0.downsample"].parent == "layer2.0"
    assert groups.home["layer1.0.conv1"] == "layer1.0"
    assert groups.home["layer1.0.conv1.weight"] == "layer1.0"
    assert groups.home["fc"] == "" and "fc" not in groups.groups
    assert groups.groups["layer1"].vertices == sum(g.vertices for g in groups.groups.values() if g.parent == "layer1")


def test_a_residual_sum_is_in_the_group_that_has_its_name():
    groups = grouping(RESNET)
    own = [v.name for v in RESNET.vertices if groups.home[v.name] == "layer1.0" and v.kind is Kind.HIDDEN]
    assert len(own) == 7
    labels = {node.name: node.label for node in view(RESNET, ["layer1.0"]).nodes}
    assert labels["layer1.0"] == "add" and labels["layer1.0.conv1"] == "conv1" and labels["layer1.1/"] == "layer1.1"


def test_a_line_of_delays_is_a_group_that_stays_folded():
    levelled = RESNET.stages["level"]
    groups = grouping(levelled)
    lines = [name for name in groups.groups if name.endswith(".delays")]
    delays = [vertex.name for vertex in levelled.vertices if vertex.kind is Kind.DELAY]
    assert lines and all(groups.home[name] in lines for name in delays)
    assert not set(lines) & opened_first(groups)


def test_a_first_view_is_comfortable_and_a_view_of_all_has_every_vertex():
    for program in map(zil_program, ("resnet50", "transformer")):
        assert 8 < len(view(program).nodes) <= COMFORTABLE
        everything = view(program, "all", parameters=True)
        assert [node.name for node in everything.nodes] == [vertex.name for vertex in program.vertices]
        assert set(everything.edges) == set(program.graph.edges)


def test_a_group_opens_with_those_around_it():
    names = {node.name for node in view(RESNET, ["layer3.1"]).nodes}
    assert {"layer1/", "layer3.0/", "layer3.1.conv1", "fc"} <= names
    assert "layer3/" not in names and "layer3.0.conv1" not in names
    with pytest.raises(UsageError, match=r"layer3\.7"):
        view(RESNET, ["layer3.7"])


def test_parameters_buffers_and_constants_made_of_them_stay_backstage():
    hidden = backstage(RESNET)
    assert "conv1.weight" in hidden and "bn1.running_mean" in hidden and "bn1.add" in hidden and "x" not in hidden
    assert not hidden.keys() & {node.name for node in view(RESNET, "all").nodes}


@settings(max_examples=25, deadline=None)
@given(strangely_named_graphs, st.booleans())
def test_views_of_any_graph_show_every_edge_between_what_they_show(graph, parameters):
    for stage in run(literal_program(ZIL(), graph), ZIL.passes).stages.values():
        folded, opened = view(stage, (), parameters), view(stage, "all", parameters)
        assert len({node.name for node in opened.nodes}) == len(opened.nodes) >= len(folded.nodes)
        assert {end for edge in folded.edges for end in edge} <= {node.name for node in folded.nodes}
        shown = {node.name for node in opened.nodes}
        assert set(opened.edges) == {edge for edge in stage.graph.edges if set(edge) <= shown}
