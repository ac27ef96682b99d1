"""A program as Graphviz DOT and as GraphML, for other tools."""

from __future__ import annotations

import json
import re
from collections.abc import Collection

import networkx as nx

from pccompile.inspection.modules import Group, Node, View, view
from pccompile.ir.grammar import Program
from pccompile.ir.text import spans, type_of

__all__ = ["FILLS", "legal_in_xml", "to_dot", "to_graphml"]

# Fill and outline by kind; on both, black text reads well.
FILLS = {
    "input": ("#e6e8ec", "#8b93a1"),
    "parameter": ("#d8efe0", "#2f8f5b"),
    "buffer": ("#e4ece7", "#7a9a88"),
    "constant": ("#eceef1", "#a3abb8"),
    "hidden": ("#dbe8fb", "#3b7dd8"),
    "delay": ("#fbf0d6", "#b58a2a"),
    "output": ("#e8defb", "#7a4fd0"),
    "loss": ("#fbdfda", "#c9452f"),
    "group": ("#ffffff", "#5b6472"),
}


def to_dot(program: Program, opened: str | Collection[str] = "auto", parameters: bool = False) -> str:
    """DOT text with a cluster for every open group; arguments as for `modules.view`."""
    seen = view(program, opened, parameters)
    title = json.dumps(f"{program.rule}, {program.name}", ensure_ascii=False)
    lines = [
        "digraph program {",
        f"  label={title}; labelloc=t; fontname=Helvetica; compound=true;",
        '  node [shape=box, style="rounded,filled", fontname=Helvetica, fontsize=10];',
        "  edge [color=gray40, arrowsize=0.6];",
        *_inside(seen, "", 1),
        *(f"  {_quoted(source)} -> {_quoted(target)};" for source, target in seen.edges),
        "}",
    ]
    return "\n".join(lines) + "\n"


def to_graphml(program: Program) -> str:
    """GraphML text: every vertex with its kind, operator, type, level, module, source and updates."""
    graph = nx.DiGraph(rule=legal_in_xml(program.rule), stage=legal_in_xml(program.name))
    for vertex in program.vertices:
        facts = {
            "kind": vertex.kind.value,
            "operator": vertex.operator,
            "type": type_of(vertex.components),
            "module": vertex.module,
            "source": vertex.source,
            "updates": spans(program.updates_of(vertex.name)),
        }
        level = {} if vertex.level is None else {"level": vertex.level}
        graph.add_node(legal_in_xml(vertex.name), **{key: legal_in_xml(text) for key, text in facts.items()}, **level)
    for parent, child, data in program.graph.edges(data=True):
        graph.add_edge(legal_in_xml(parent), legal_in_xml(child), reads=legal_in_xml(" ".join(data["reads"])))
    return "\n".join(nx.generate_graphml(graph)) + "\n"


def _inside(seen: View, group: str, depth: int) -> list[str]:
    """The lines of what stands in an open group."""
    indent = "  " * depth
    lines = [f"{indent}{_node(node)}" for node in seen.nodes if node.group == group]
    for inner in seen.groups:
        if inner.parent == group:
            lines += [f"{indent}{_cluster(inner)}", *_inside(seen, inner.name, depth + 1), f"{indent}}}"]
    return lines


def _cluster(group: Group) -> str:
    name, label = _quoted("cluster " + group.name), _quoted(group.label)
    return f'subgraph {name} {{ label={label}; style=rounded; color="#a3abb8"; fontsize=10;'


def _node(node: Node) -> str:
    fill, outline = FILLS[node.kind]
    peripheries = ", peripheries=2" if node.vertices > 1 else ""
    label = f'"{_escaped(node.label)}\\n{_escaped(node.detail)}"'
    return f'{_quoted(node.name)} [label={label}, fillcolor="{fill}", color="{outline}"{peripheries}];'


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    """Text between double quotes in DOT; a backslash would otherwise begin one of DOT's own escapes."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def legal_in_xml(text: str) -> str:
    """The text without the characters that XML cannot hold."""
    return re.sub("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)
