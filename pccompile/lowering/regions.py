"""Cut a flat graph where it repeats itself, so that each distinct part is compiled once, however deep the model."""

from __future__ import annotations

import operator
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import fx

from pccompile.lowering.fragments import is_write, may_be_alias

__all__ = ["Region", "region", "regions", "signature", "tandem_repeat"]

_FEWEST_NODES = 64  # a graph of fewer nodes is not worth cutting
_FEWEST_IN_BLOCK = 24  # a call costs as much as a few operators
_FEWEST_BLOCKS = 3
_MOST_PERIODS = 32  # periods that are tried


@dataclass(frozen=True)
class Region:
    """A part of a flat graph, in order, as a graph of its own.

    Attributes:
        graph: takes the values in `inputs` as placeholders and returns those in `outputs`.
        inputs, outputs: nodes of the whole graph.
        signature: equal for regions that compute the same function of values of the same kinds.
    """

    graph: fx.Graph
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    signature: str

    @property
    def is_opaque(self) -> bool:
        """Whether there is nothing in it to compile: calls of kernels, or views."""
        nodes = [node for node in self.graph.nodes if node.op == "call_function"]
        return all("kernel" in node.meta or may_be_alias(node) for node in nodes)


def regions(graph: fx.Graph) -> list[Region]:
    """The graph in one piece, or cut into repeated blocks and what lies between them; before that at calls of kernels.

    Calls of kernels (nodes with "kernel" in their meta) that follow one another are a part.
    """
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    parts: list[Region] = []
    for kernels, together in groupby(nodes, key=lambda node: "kernel" in node.meta):
        run = list(together)
        parts += [region(run)] if kernels else _cut(run)
    return parts


def _cut(nodes: list[fx.Node]) -> list[Region]:
    """Consecutive nodes, whole, or cut into repeated blocks and what lies between them."""
    if len(nodes) < _FEWEST_NODES:
        return [region(nodes)]
    nodes = _selections_first(nodes)
    found = tandem_repeat([_kind_of_node(node) for node in nodes])
    if found is None:
        return [region(nodes)]
    start, period, count = found
    times = -(-_FEWEST_IN_BLOCK // period)
    period, count = period * times, count // times
    if count < _FEWEST_BLOCKS or period * count < len(nodes) // 3:
        return [region(nodes)]
    start, count = _best_phase(nodes, start, period, count)
    cuts = [0, *(start + block * period for block in range(count + 1)), len(nodes)]
    return [region(nodes[a:b]) for a, b in pairwise(cuts) if a < b]


def _selections_first(nodes: list[fx.Node]) -> list[fx.Node]:
    """The nodes with every selection right behind what it selects from.

    The steps of a recurrence select each its own input: only without that are they equal.
    """
    moved = [node for node in nodes if node.target is torch.ops.aten.select.int]
    if not moved or any(map(is_write, nodes)):
        return nodes
    inside, behind = set(nodes), defaultdict[fx.Node | None, list[fx.Node]](list)
    for node in moved:
        source = node.all_input_nodes[0]
        behind[source if source in inside else None].append(node)
    ordered: list[fx.Node] = []
    waiting: list[fx.Node] = list(reversed([*behind[None], *(node for node in nodes if node not in set(moved))]))
    while waiting:
        node = waiting.pop()
        ordered.append(node)
        waiting += reversed(behind[node])
    return ordered


def tandem_repeat(kinds: Sequence[Hashable]) -> tuple[int, int, int] | None:
    """The longest stretch in which a sequence repeats itself: its start, its shortest period, how often; None if none.

    Tries the distances that are most frequent between one occurrence of something and the next.
    """
    number: dict[Hashable, int] = {}
    codes = torch.tensor([number.setdefault(kind, len(number)) for kind in kinds])
    latest: dict[Hashable, int] = {}
    distances: Counter[int] = Counter()
    for position, kind in enumerate(kinds):
        if kind in latest:
            distances[position - latest[kind]] += 1
        latest[kind] = position
    best: tuple[int, int, int] | None = None
    periods = {d for d, _ in distances.most_common(_MOST_PERIODS)} | set(_largest(distances))
    for period in sorted(periods):
        start, length = _longest_run(codes[:-period] == codes[period:])
        count = length // period + 1
        if count > 1 and (best is None or period * count > 1.2 * best[1] * best[2]):
            best = start, period, count
    return best


def _largest(distances: Counter[int]) -> list[int]:
    """Distances that occur at least twice, largest first: the period of a large block is that of its rarest part."""
    return sorted((d for d, count in distances.items() if count > 1), reverse=True)[:_MOST_PERIODS]


def _longest_run(matches: torch.Tensor) -> tuple[int, int]:
    """Start and length of the longest run of True."""
    edges = torch.diff(torch.cat([torch.zeros(1), matches.float(), torch.zeros(1)]))
    starts, stops = torch.nonzero(edges > 0).flatten(), torch.nonzero(edges < 0).flatten()
    if not len(starts):
        return 0, 0
    longest = int((stops - starts).argmax())
    return int(starts[longest]), int(stops[longest] - starts[longest])


def _best_phase(nodes: list[fx.Node], start: int, period: int, count: int) -> tuple[int, int]:
    """Where to begin the blocks, at the cost of one of them, so that fewest values pass from one to the next."""
    position = {node: index for index, node in enumerate(nodes)}
    change = [0] * (len(nodes) + 1)
    for index, node in enumerate(nodes):
        last = max((position.get(user, len(nodes)) for user in node.users), default=index)
        change[index + 1] += 1
        if last < len(nodes):
            change[last + 1] -= 1
    live, alive = [0], 0
    for difference in change[1:]:
        alive += difference
        live.append(alive)
    # a value that leaves the graph is alive to its end at every phase alike
    costs = {phase: sum(live[start + phase + b * period] for b in range(count)) for phase in range(period)}
    phase = min(costs, key=lambda p: (costs[p], p))
    return start + phase, count if phase == 0 else count - 1


def region(nodes: list[fx.Node]) -> Region:
    """Some nodes of a graph, in order, as one part."""
    inside = set(nodes)
    inputs: dict[fx.Node, None] = {}
    for node in nodes:
        for parent in node.all_input_nodes:
            if parent not in inside:
                inputs[parent] = None
    outputs = [node for node in nodes if any(user not in inside for user in node.users)]
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for position, node in enumerate(inputs):
        copies[node] = part.placeholder(f"input_{position}")
        copies[node].meta = dict(node.meta)
    for node in nodes:
        copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(tuple(copies[node] for node in outputs))
    return Region(part, tuple(inputs), tuple(outputs), signature(part))


def signature(graph: fx.Graph) -> str:
    """A text that is equal for graphs that compute the same function of values of the same kinds."""
    number: dict[fx.Node, str] = {}
    lines: list[str] = []
    for node in graph.nodes:
        number[node] = f"%{len(number)}"
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: _Name(number[n]))
        kind = repr(_kind(node.meta.get("val"))) if node.op == "placeholder" else _name_of(node.target)
        lines.append(f"{kind} {args!r} {kwargs!r}")
    return "\n".join(lines)


class _Name(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _kind_of_node(node: fx.Node) -> Hashable:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: _Name("%"))
    if node.target is operator.getitem:
        return "getitem", node.args[1]
    return _name_of(node.target), repr(args), repr(kwargs), repr(_kind(node.meta.get("val")))


def _name_of(target: Any) -> str:
    return str(target) if isinstance(target, torch._ops.OpOverload | str) else f"{target.__module__}.{target.__name__}"


def _kind(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), tuple(value.stride()), value.dtype, value.device.type, value.device.index
    if isinstance(value, tuple | list):
        return tuple(_kind(part) for part in value)
    return type(value).__name__
