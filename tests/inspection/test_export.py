"""DOT, SVG, GraphML and the JSON schema: for other tools."""

import json
import re
import sys
from importlib import resources
from io import BytesIO
from xml.etree import ElementTree

import jsonschema
import networkx as nx
import pytest
from generated import RULES, graph_of, strangely_named_graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import zil_program

from pccompile.errors import MissingPackageError, UsageError
from pccompile.inspection import svg
from pccompile.inspection.dot import legal_in_xml
from pccompile.inspection.modules import view
from pccompile.ir.json import SCHEMA_VERSION
from pccompile.passes import run
from pccompile.rules import ZIL, literal_program

SCHEMA = json.loads(resources.files("pccompile.ir").joinpath("schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
NESTED = literal_program(ZIL(), graph_of([[], [0], [1]]))


@settings(max_examples=25, deadline=None)
@given(strangely_named_graphs, st.sampled_from(RULES))
def test_the_json_of_any_program_follows_the_published_schema(graph, rule):
    data = json.loads(run(literal_program(rule, graph), rule.passes).to_json())
    VALIDATOR.validate(data)
    assert SCHEMA["properties"]["schema"]["const"] == SCHEMA_VERSION == data["schema"]


def test_the_schema_refuses_what_is_no_program():
    data = json.loads(NESTED.to_json())
    data["stages"][0]["vertices"][0]["kind"] = "alive"
    assert not VALIDATOR.is_valid(data)
    assert not VALIDATOR.is_valid({"schema": 2})


@settings(max_examples=25, deadline=None)
@given(strangely_named_graphs)
def test_graphml_reads_back_with_every_vertex_and_edge(graph):
    program = literal_program(ZIL(), graph)
    back = nx.read_graphml(BytesIO(program.to_graphml().encode()))
    assert set(back.nodes) == {legal_in_xml(name).replace("\r", "\n") for name in program.graph.nodes}
    assert back.number_of_edges() == program.graph.number_of_edges()
    assert back.nodes["x"]["kind"] == "input"


def test_dot_has_a_cluster_for_every_open_module_and_quotes_what_it_must():
    program = zil_program("resnet50")
    dot = program.to_dot(["layer1.0"])
    assert [line.strip().split('"')[1] for line in dot.splitlines() if "subgraph" in line] == [
        "cluster layer1",
        "cluster layer1.0",
    ]
    assert '"layer1.1/" [label="layer1.1\\n10 vertices"' in dot
    assert '"layer1.0.conv1" -> "layer1.0.bn1";' in dot
    assert dot.count("{") == dot.count("}")
    strange = literal_program(ZIL(), graph_of([[]], '"\\')).to_dot()
    assert r'"layer0\"\\"' in strange


def test_an_svg_shows_every_box_of_the_view_without_overlaps():
    picture = ElementTree.fromstring(NESTED.to_svg("all", parameters=True))
    titles = [title.text for title in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert sorted(titles) == sorted(node.name for node in view(NESTED, "all", parameters=True).nodes)
    placed = svg._layout(view(NESTED, "all", parameters=True))["nodes"]
    for i, a in enumerate(placed):
        for b in placed[:i]:
            apart = a["x"] + a["width"] <= b["x"] or b["x"] + b["width"] <= a["x"]
            assert apart or a["y"] + a["height"] <= b["y"] or b["y"] + b["height"] <= a["y"]
        assert len(a["label"]) * 12 * 0.602 + 26 <= a["width"] + 1


def test_the_svg_of_resnet_50_folds_and_opens():
    program = zil_program("resnet50")
    folded, opened = program.to_svg(), program.to_svg("all")
    assert len(opened) > 2 * len(folded)
    assert len(re.findall("<title>", opened)) == len(view(program, "all").nodes)


@settings(max_examples=10, deadline=None)
@given(strangely_named_graphs)
def test_the_svg_of_any_program_is_well_formed(graph):
    ElementTree.fromstring(literal_program(ZIL(), graph).to_svg("all"))


def test_without_mini_racer_the_error_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "py_mini_racer", None)
    svg._engine.cache_clear()
    with pytest.raises(MissingPackageError, match=r'pip install "pccompile\[viz\]"'):
        NESTED.to_svg()
    with pytest.raises(UsageError, match="nowhere"):
        NESTED.to_svg(["nowhere"])
