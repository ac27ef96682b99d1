"""Folding by module: which group each vertex is drawn in, and a program seen with some groups opened and others not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

from pccompile.errors import UsageError
from pccompile.ir.grammar import Kind, Program, Vertex
from pccompile.ir.text import type_of

__all__ = [
    "Group",
    "Grouping",
    "Node",
    "View",
    "backstage",
    "detail_of",
    "grouping",
    "label_of",
    "opened_first",
    "view",
]

COMFORTABLE = 60  # vertices and groups that one picture shows at first
LONG_ROW = 120  # members of one group; longer rows, of models without modules, are cut into pieces
PIECE = 50
NO_TENSOR = "object"  # the dtype of a component that is a number, such as the size of an input


@dataclass(frozen=True)
class Group:
    """A module with several vertices, or a line of delays.

    Attributes:
        name: the module's path, or "SOURCE.delays".
        label: the name without the parent's.
        parent: the group that it is in; "" at the top.
        vertices: how many vertices are in it and in the groups below, parameters and buffers not counted.
        delays: it is a line of delays.
    """

    name: str
    label: str
    parent: str
    vertices: int
    delays: bool = False


@dataclass
class Grouping:
    """Every group by name, parents first; the innermost group of every vertex ("" at the top); what is `backstage`."""

    groups: dict[str, Group] = field(default_factory=dict)
    home: dict[str, str] = field(default_factory=dict)
    hidden: dict[str, None] = field(default_factory=dict)

    def lineage(self, group: str) -> Iterator[str]:
        """The group and those around it, innermost first."""
        while group:
            yield group
            group = self.groups[group].parent


@dataclass(frozen=True)
class Node:
    """What one box of a picture stands for: a vertex, or a folded group, whose name ends in "/"."""

    name: str
    label: str
    detail: str
    kind: str
    group: str
    vertices: int


@dataclass(frozen=True)
class View:
    """A program as a picture shows it: boxes, the open groups around them, and edges between boxes."""

    groups: tuple[Group, ...]
    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str], ...]


def grouping(program: Program) -> Grouping:
    """Group the vertices by module; a module with one vertex is no group, nor is one with nothing but a group in it."""
    hidden = backstage(program)
    home = _homes([vertex for vertex in program.vertices if vertex.name not in hidden])
    count: dict[str, int] = {}
    for path in home.values():
        for group in _prefixes(path):
            count[group] = count.get(group, 0) + 1
    children: dict[str, set[str]] = {}
    for path, name in [(_above(group), group) for group in count] + [(path, f"\0{v}") for v, path in home.items()]:
        children.setdefault(path, set()).add(name)
    kept = {group for group, members in count.items() if members > 1 and len(children[group]) > 1}
    result = Grouping(hidden=hidden)
    for group in sorted(kept, key=lambda path: (path.count("\0"), path.count("."), path)):
        parent = next((above for above in reversed(list(_prefixes(_above(group)))) if above in kept), "")
        name, line = _plain(group), "\0" in group
        result.groups[name] = Group(name, _label(group, parent), _plain(parent), count[group], line)
    for name, path in home.items():
        result.home[name] = _plain(next((g for g in reversed(list(_prefixes(path))) if g in kept), ""))
    _split_long_rows(result, [vertex.name for vertex in program.vertices if vertex.name in home])
    for name in reversed(list(hidden)):
        readers = sorted(program.children(name), key=lambda child: child.order)
        result.home[name] = next((result.home[reader.name] for reader in readers if reader.name in result.home), "")
    return result


def _split_long_rows(result: Grouping, names: list[str]) -> None:
    """Cut a group (or the top) with very many members into pieces, in order, so that it can be folded at all."""
    members: dict[str, dict[str, bool]] = {}  # group -> its members in order, and whether each is a group
    for name in names:
        inner, is_group = name, False
        for group in [*result.lineage(result.home[name]), ""]:
            members.setdefault(group, {}).setdefault(inner, is_group)
            inner, is_group = group, True
    ends: dict[str, tuple[str, str]] = {}
    for parent, row in list(members.items()):
        while len(row) > LONG_ROW:
            row = _pieces(result, parent, row, ends)


def _pieces(result: Grouping, parent: str, row: dict[str, bool], ends: dict[str, tuple[str, str]]) -> dict[str, bool]:
    """Put the members of a row into new groups of about 50; returns these, and notes the ends of each."""
    ordered, made = list(row.items()), dict[str, bool]()
    size = math.ceil(len(ordered) / math.ceil(len(ordered) / PIECE))
    for start in range(0, len(ordered), size):
        piece = ordered[start : start + size]
        first = ends.get(piece[0][0], (piece[0][0],))[0]
        last = ends.get(piece[-1][0], (piece[-1][0],))[-1]
        name = f"{first} to {last}"
        ends[name] = first, last
        count = sum(result.groups[member].vertices if is_group else 1 for member, is_group in piece)
        result.groups[name] = Group(name, f"{_label(first, parent)} to {_label(last, parent)}", parent, count)
        made[name] = True
        for member, is_group in piece:
            if is_group:
                result.groups[member] = replace(result.groups[member], parent=name)
            else:
                result.home[member] = name
    return made


def backstage(program: Program) -> dict[str, None]:
    """Parameters, buffers, the constants made of nothing else, and sizes, in order: what pictures show when asked."""
    found: dict[str, None] = {}
    for vertex in program.vertices:
        constant = vertex.kind is Kind.CONSTANT and all(p.name in found for p in program.parents(vertex.name))
        size = vertex.kind is Kind.CONSTANT and all(part.dtype == NO_TENSOR for part in vertex.components)
        if constant or size or vertex.kind in (Kind.PARAMETER, Kind.BUFFER):
            found[vertex.name] = None
    return found


def opened_first(groups: Grouping) -> frozenset[str]:
    """The groups that a first picture opens: whole levels of modules, as long as it stays comfortable to read."""
    homes = [home for name, home in groups.home.items() if name not in groups.hidden]
    inside = Counter([*homes, *(group.parent for group in groups.groups.values())])
    opened: set[str] = set()
    shown = inside[""]
    level = [name for name, group in groups.groups.items() if not group.parent]
    while level:
        openable = [name for name in level if not groups.groups[name].delays]
        shown += sum(inside[name] - 1 for name in openable)
        if shown > COMFORTABLE:
            break
        opened.update(openable)
        level = [name for name, group in groups.groups.items() if group.parent in openable]
    return frozenset(opened)


def view(program: Program, opened: str | Collection[str] = "auto", parameters: bool = False) -> View:
    """The program as a picture shows it.

    Args:
        opened: names of the groups to open, with those around them; "auto", as many as are comfortable to read; "all".
        parameters: show what is `backstage` as well.

    Raises:
        UsageError: a name that is no group.
    """
    groups = grouping(program)
    visible = _opened(groups, opened)
    hidden = {} if parameters else backstage(program)
    box: dict[str, str] = {}
    nodes: dict[str, Node] = {}
    for vertex in program.vertices:
        if vertex.name in hidden:
            continue
        folded = next((g for g in reversed(list(groups.lineage(groups.home[vertex.name]))) if g not in visible), None)
        box[vertex.name] = vertex.name if folded is None else f"{folded}/"
        if folded is None:
            nodes[vertex.name] = _vertex_node(vertex, groups.home[vertex.name])
        elif f"{folded}/" not in nodes:
            nodes[f"{folded}/"] = _group_node(groups.groups[folded])
    edges = dict.fromkeys(
        (box[parent], box[child])
        for parent, child in program.graph.edges
        if parent in box and child in box and box[parent] != box[child]
    )
    shown = tuple(group for group in groups.groups.values() if group.name in visible)
    order = {vertex.name: vertex.order for vertex in program.vertices}
    return View(shown, tuple(nodes.values()), tuple(sorted(edges, key=lambda edge: _edge_order(edge, order))))


def _edge_order(edge: tuple[str, str], order: dict[str, int]) -> tuple[int, int]:
    return order.get(edge[0], -1), order.get(edge[1], -1)


def _opened(groups: Grouping, opened: str | Collection[str]) -> frozenset[str]:
    if opened == "auto":
        return opened_first(groups)
    if opened == "all":
        return frozenset(groups.groups)
    names = (opened,) if isinstance(opened, str) else tuple(opened)
    unknown = [name for name in names if name not in groups.groups]
    if unknown:
        some = ", ".join(map(repr, list(groups.groups)[:8])) or "none"
        raise UsageError(f"no group is called {unknown[0]!r}", cure=f'choose "auto", "all", or among {some}, ...')
    return frozenset(around for name in names for around in groups.lineage(name))


def label_of(vertex: Vertex, group: str) -> str:
    """The vertex's name inside its group; what a numbered module does itself is "add", not "0"."""
    label = _label(vertex.name, group)
    return detail_of(vertex).partition(" ")[0] if vertex.name == group and label.isdecimal() else label


def _vertex_node(vertex: Vertex, group: str) -> Node:
    return Node(vertex.name, label_of(vertex, group), detail_of(vertex), vertex.kind.value, group, 1)


def _group_node(group: Group) -> Node:
    detail = f"{group.vertices} delays" if group.delays else f"{group.vertices} vertices"
    kind = "delay" if group.delays else "group"
    return Node(f"{group.name}/", group.label, detail, kind, group.parent, group.vertices)


def detail_of(vertex: Vertex) -> str:
    """Operator and shape in a few characters: "conv2d f32[6, 4, 8, 8]"."""
    operator = vertex.operator.partition(".")[0].strip("_").removeprefix("native_").removesuffix("_legit_functional")
    types = type_of(part for part in vertex.components if part.free or vertex.clamped)
    return " ".join(word for word in (operator if vertex.nodes or not vertex.clamped else "", types) if word)


def _homes(vertices: list[Vertex]) -> dict[str, str]:
    """The path of the module that each vertex is drawn in; one that is all of its module stands beside it.

    A line of delays is a group beside its source.
    """
    within = Counter(
        group for vertex in vertices if vertex.kind is not Kind.DELAY for group in _prefixes(vertex.module)
    )
    home: dict[str, str] = {}
    for vertex in vertices:
        delay = vertex.kind is Kind.DELAY
        name = vertex.name.rpartition(".delay_")[0] if delay else vertex.name.removesuffix(".output")
        alone = name == vertex.module and within[vertex.module] == 1
        path = vertex.module.rpartition(".")[0] if alone else vertex.module
        home[vertex.name] = f"{path}\0{name}.delays" if delay else path
    return home


def _prefixes(path: str) -> Iterator[str]:
    """Every group around a path, outermost first; the part after a zero character is one name with dots in it."""
    modules, separator, line = path.partition("\0")
    parts = modules.split(".") if modules else []
    for length in range(1, len(parts) + 1):
        yield ".".join(parts[:length])
    if separator:
        yield f"{modules}\0{line}"


def _above(group: str) -> str:
    return group.partition("\0")[0] if "\0" in group else group.rpartition(".")[0]


def _plain(group: str) -> str:
    return group.rpartition("\0")[2]


def _label(name: str, parent: str) -> str:
    """The name without its group's; a number keeps the word before it, and a group's own vertex its last word."""
    if name == parent:
        return name.rpartition(".")[2]
    short = _plain(name).removeprefix(f"{_plain(parent)}.") if parent else _plain(name)
    return ".".join(_plain(name).split(".")[-2:]) if short.isdecimal() else short
