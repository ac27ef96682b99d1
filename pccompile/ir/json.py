"""A program as JSON and back, with its history. The schema is versioned; every field is the dataclass's own."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import networkx as nx

from pccompile.errors import ProgramError
from pccompile.ir.grammar import Action, Component, Kind, Program, Schedule, Span, Time, Update, Vertex, Work

__all__ = ["SCHEMA_VERSION", "from_json", "to_json"]

SCHEMA_VERSION = 2


def to_json(program: Program) -> str:
    """JSON text: {"schema": 1, "rule", "observed", "stages": [{"name", "why", "vertices", "edges", "schedule"}]}."""
    stages = [_stage(stage) for stage in program.stages.values()]
    return json.dumps(
        {"schema": SCHEMA_VERSION, "rule": program.rule, "observed": program.observed, "stages": stages}, indent=1
    )


def from_json(text: str) -> Program:
    """The program that `to_json` wrote.

    Raises:
        ProgramError: the text is not such JSON, or of another schema version.
    """
    try:
        data = json.loads(text)
        if data["schema"] != SCHEMA_VERSION:
            raise ProgramError(f"schema {data['schema']} instead of {SCHEMA_VERSION}")
        program: Program | None = None
        for stage in data["stages"]:
            program = Program(
                _graph(stage["vertices"], stage["edges"]),
                _schedule(stage["schedule"]),
                data["rule"],
                stage["name"],
                stage["why"],
                data["observed"],
                program,
            )
    except (KeyError, TypeError, ValueError) as error:
        raise ProgramError(f"not a program in JSON: {error!r}") from error
    if program is None:
        raise ProgramError("the JSON has no stages")
    return program


def _stage(program: Program) -> dict[str, Any]:
    return {
        "name": program.name,
        "why": program.why,
        "vertices": [{**asdict(vertex), "kind": vertex.kind.value} for vertex in program.vertices],
        "edges": [
            [parent.name, vertex.name, list(program.graph.edges[parent.name, vertex.name]["reads"])]
            for vertex in program.vertices
            for parent in program.parents(vertex.name)
        ],
        "schedule": [
            {
                "action": update.action.value,
                "vertex": update.vertex,
                "start": str(update.span.start),
                "stop": str(update.span.stop),
                "gain": update.gain,
                "exact": update.exact,
            }
            for update in program.schedule
        ],
    }


def _graph(vertices: list[dict[str, Any]], edges: list[list[Any]]) -> nx.DiGraph:
    graph = nx.DiGraph()
    for fields in vertices:
        components = tuple(Component(**{**part, "shape": tuple(part["shape"])}) for part in fields["components"])
        values = {
            **fields,
            "kind": Kind(fields["kind"]),
            "nodes": tuple(fields["nodes"]),
            "components": components,
            "work": Work(**fields["work"]),
        }
        graph.add_node(fields["name"], vertex=Vertex(**values))
    for parent, child, names in edges:
        if parent not in graph or child not in graph:
            raise ProgramError(f"the edge {parent} -> {child} joins a vertex that does not exist")
        graph.add_edge(parent, child, reads=tuple(names))
    return nx.freeze(graph)


def _schedule(updates: list[dict[str, Any]]) -> Schedule:
    return tuple(
        Update(
            Action(fields["action"]),
            fields["vertex"],
            Span(Time.parse(fields["start"]), Time.parse(fields["stop"])),
            fields["gain"],
            fields["exact"],
        )
        for fields in updates
    )
