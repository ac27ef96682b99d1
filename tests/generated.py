"""Generated graphs: hypothesis strategies for property tests of the intermediate representation."""

from __future__ import annotations

import dataclasses

import networkx as nx
from hypothesis import strategies as st

from pccompile.build import with_levels
from pccompile.ir import Component, Kind, Vertex, Work
from pccompile.rules import ZIL, FixedPrediction, Incremental, Strict

RULES = [ZIL(), FixedPrediction(), FixedPrediction(levelled=True), Strict(), Incremental()]


def vertex(name: str, kind: Kind, order: int, **options) -> Vertex:
    nodes = () if kind in (Kind.INPUT, Kind.PARAMETER, Kind.BUFFER) else (f"node_{name}",)
    free = kind in (Kind.HIDDEN, Kind.OUTPUT)
    component = Component(f"node_{name}", (2, 3), "float32", free)
    return Vertex(name, kind, "aten.op.default", nodes, (component,), order, **options)


def graph_of(edges: list[list[int]], suffix: str = "") -> nx.DiGraph:
    """A network of len(edges) hidden vertices; vertex i reads its own parameter and the earlier ones in edges[i].

    The suffix ends every name.
    """
    graph = nx.DiGraph()
    graph.add_node("x", vertex=vertex("x", Kind.INPUT, 0))
    names = ["x"]
    for i, parents in enumerate(edges):
        name, weight = f"layer{i}{suffix}", f"layer{i}{suffix}.weight"
        graph.add_node(weight, vertex=vertex(weight, Kind.PARAMETER, 2 * i + 1, requires_grad=i % 3 != 1))
        kind = Kind.OUTPUT if i == len(edges) - 1 else Kind.HIDDEN
        source, work = "net.py:1 in forward: <b>x</b>", Work(i, 0, 2, 3, 4, 5)
        graph.add_node(name, vertex=vertex(name, kind, 2 * i + 2, source=source, work=work))
        for parent in [names[p] for p in sorted({p % len(names) for p in parents} | {len(names) - 1})] + [weight]:
            graph.add_edge(parent, name, reads=(f"node_{parent}",))
        names.append(name)
    graph.add_node("loss", vertex=dataclasses.replace(vertex("loss", Kind.LOSS, 10**6), nodes=("node_loss",)))
    graph.add_edge(names[-1], "loss", reads=(f"node_{names[-1]}",))
    return with_levels(graph)


edges = st.lists(st.lists(st.integers(0, 20), max_size=3), min_size=1, max_size=12)
graphs = edges.map(graph_of)
strangely_named_graphs = st.builds(graph_of, edges, st.text(max_size=8))
