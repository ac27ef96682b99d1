"""The parser: the program that `Program.text(verbose=True)` printed. Cells stand under the words of the header."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise

import networkx as nx

from pccompile.errors import ProgramError
from pccompile.ir.grammar import Action, Component, Kind, Program, Span, Time, Update, Vertex, Work
from pccompile.ir.text import FULL_COLUMNS, LONG_DTYPES

__all__ = ["parse"]

WORD = r'(?:"(?:[^"\\]|\\.)*"|[\w.@+*/<>=-]+)'
FIRST = re.compile(r'(?P<rule>\w+) program, stage (?P<name>"(?:[^"\\]|\\.)*")(?P<observed>, observed)?: (?P<why>".*")')
COMPONENT = re.compile(rf"(?P<held>\()?(?P<node>{WORD}):(?P<dtype>\w+)\[(?P<shape>[-\d, ]*)\]\)?")
READ = re.compile(rf"(?P<parent>{WORD})(?:\((?P<nodes>(?:{WORD} ?)*)\))?")
UPDATE = re.compile(
    r"(?P<action>[A-Z][a-z]+)\[(?P<start>[T\d+-]+), (?P<stop>[T\d+-]+)\)(?:\*(?P<gain>c\(\d+\)))?(?P<exact>!)?"
)


def parse(text: str) -> Program:
    """The program of a full table, without its history.

    Raises:
        ProgramError: the text is no such table; names the line.
    """
    lines = text.strip("\n").splitlines()
    first = FIRST.fullmatch(lines[0]) if lines else None
    if first is None or len(lines) < 2 or lines[1].split() != list(FULL_COLUMNS):
        raise ProgramError("not a table that text(verbose=True) printed: its two first lines are missing")
    cells = [_cells(line, lines[1]) for line in lines[2:]]
    graph, schedule = nx.DiGraph(), list[Update]()
    for number, row in enumerate(cells, start=3):
        try:
            vertex = _vertex(row)
            schedule += _updates(vertex.name, row["updates"])
        except (ValueError, KeyError, TypeError) as error:
            raise ProgramError(f"line {number} of the table cannot be read: {error}") from error
        graph.add_node(vertex.name, vertex=vertex)
    for number, row in enumerate(cells, start=3):
        for parent, nodes in _reads(row["reads"]):
            if parent not in graph:
                raise ProgramError(f"line {number} of the table reads {parent!r}, which is not in it")
            every = tuple(component.node for component in graph.nodes[parent]["vertex"].components)
            graph.add_edge(parent, _unquoted(row["vertex"]), reads=every if nodes is None else nodes)
    return Program(
        nx.freeze(graph),
        tuple(schedule),
        first["rule"],
        _unquoted(first["name"]),
        _unquoted(first["why"]),
        first["observed"] is not None,
    )


def _cells(line: str, header: str) -> dict[str, str]:
    """The cells of a line by column: each begins where its column's word does in the header."""
    starts = [re.search(rf"(?<!\S){column}(?!\S)", header).start() for column in FULL_COLUMNS]  # type: ignore[union-attr]
    bounds = list(pairwise([*starts, None]))
    return {column: line[start:stop].strip() for column, (start, stop) in zip(FULL_COLUMNS, bounds, strict=True)}


def _vertex(row: dict[str, str]) -> Vertex:
    kind, _, wanted = row["kind"].partition(" ")
    return Vertex(
        name=_unquoted(row["vertex"]),
        kind=Kind(kind),
        operator=_unquoted(row["operator"]),
        nodes=tuple(_words(row["nodes"])),
        components=tuple(_component(found) for found in _all(COMPONENT, row["type"])),
        order=int(row["order"]),
        module=_unquoted(row["module"]),
        source=_unquoted(row["source"]),
        requires_grad=wanted == "wanted",
        level=int(row["level"]) if row["level"] else None,
        work=Work(*map(int, row["work"].split("/"))) if row["work"] else Work(),
    )


def _component(found: re.Match[str]) -> Component:
    shape = tuple(int(size) for size in found["shape"].split(",") if size.strip())
    dtype = LONG_DTYPES.get(found["dtype"], found["dtype"])
    return Component(_unquoted(found["node"]), shape, dtype, free=found["held"] is None)


def _updates(vertex: str, cell: str) -> Iterator[Update]:
    for found in _all(UPDATE, cell):
        span = Span(Time.parse(found["start"]), Time.parse(found["stop"]))
        yield Update(Action(found["action"]), vertex, span, found["gain"] or "1", found["exact"] is not None)


def _reads(cell: str) -> Iterator[tuple[str, tuple[str, ...] | None]]:
    for found in _all(READ, cell):
        nodes = None if found["nodes"] is None else tuple(_words(found["nodes"]))
        yield _unquoted(found["parent"]), nodes


def _words(cell: str) -> list[str]:
    return [_unquoted(found[0]) for found in _all(re.compile(WORD), cell)]


def _all(pattern: re.Pattern[str], cell: str) -> list[re.Match[str]]:
    """Every match in a cell that consists of nothing else."""
    left = pattern.sub("", cell).strip()
    if left:
        raise ValueError(f"{left!r} in {cell!r}")
    return list(pattern.finditer(cell))


def _unquoted(word: str) -> str:
    return str(json.loads(word)) if word.startswith('"') else word
