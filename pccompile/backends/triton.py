"""Flat graphs with this package's Triton kernels in the places of the nodes that they compute.

What no kernel takes runs as ATen operators, or compiled by Inductor where there is a GPU. Kernels run on a GPU, and
under Triton's interpreter for tests. On a GPU a kernel is chosen by measurement, against what would run in its place
(choice.py). Kernels are called by their launchers: an operator's dispatch more than doubles the cost of a call.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from pccompile.backends.choice import Choose, by_measurement
from pccompile.backends.executables import Compile, Executable, as_it_is
from pccompile.backends.inductor import is_available, with_inductor
from pccompile.backends.networks import Joined, join, without_gaps
from pccompile.backends.opened import Apart, Opened, opened_networks
from pccompile.backends.report import Row, bytes_in, bytes_of, covered, launches_of, operations_of
from pccompile.derivatives import LocalFunction
from pccompile.ir.grammar import Program
from pccompile.lowering.expand import FlatPiece
from pccompile.lowering.fragments import Fragment, Leaf, Substitution

if TYPE_CHECKING:
    from pccompile.backends.patterns import Match, Pattern
    from pccompile.backends.patterns.pieces import Group, Pieces

__all__ = ["is_installed", "joined_networks", "with_groups", "with_joined", "with_kernels", "with_recurrences"]


def is_installed() -> bool:
    """Whether there is a Triton to run kernels with."""
    return find_spec("triton") is not None


def with_kernels(piece: FlatPiece, rest: Compile | None = None) -> Executable:
    """Make a flat graph ready with kernels where they are chosen.

    Args:
        rest: what runs the other operators; None: Inductor on a GPU, ATen elsewhere.
    """
    rest = rest or _rest(_kinds_in(piece))
    if not is_installed():
        return rest(piece)
    graph = copy.deepcopy(piece.graph)
    choices = rewrite(graph, by_measurement(rest))
    executable = rest(replace(piece, graph=graph))
    return replace(executable, choices=tuple(choices), graph=graph)


def _kinds_in(piece: FlatPiece) -> list[Any]:
    return [node.meta.get("val") for node in piece.graph.nodes]


def _rest(kinds: Iterable[Any]) -> Compile:
    """What runs the operators on tensors like these that no kernel takes."""
    on_gpu = any(isinstance(kind, torch.Tensor) and kind.is_cuda for kind in kinds)
    return with_inductor if on_gpu and is_available("cuda") else as_it_is


def with_groups(pieces: Sequence[FlatPiece]) -> list[FlatPiece]:
    """Put kernels into the graphs of a program where what one keeps for another is not what the operators keep."""
    if not is_installed():
        return list(pieces)
    from pccompile.backends.patterns.pieces import Pieces

    together = Pieces(pieces)
    rewrite_together(together, by_measurement(_rest(_kinds_in(pieces[0]))))
    return together.finish()


def with_recurrences(
    function: LocalFunction, kinds: Mapping[Leaf, Any], known: dict[Hashable, Fragment]
) -> Substitution:
    """What a vertex is traced with: the kernels of recurrent layers where they are chosen.

    Args:
        kinds: a stand-in for each tensor that the local function reads.
        known: fragments traced before, to which new ones are added.
    """
    if not is_installed():
        return Substitution()
    from pccompile.backends.recurrences import substitution_for

    return substitution_for(function, kinds, known, _rest(kinds.values()))


def with_joined(
    joined: Joined, function: LocalFunction, kinds: Mapping[Leaf, Any], known: dict[Hashable, Fragment]
) -> Substitution:
    """What the vertex of a network that was joined is traced with: its kernels.

    Args:
        function: the vertex's.
        kinds, known: as for `with_recurrences`.

    Raises:
        Apart: it has no kernels, or they take longer than the operators.
    """
    from pccompile.backends.learned_recurrences import substitution_for_joined

    rest = _rest(kinds.values())
    return substitution_for_joined(function, joined, kinds, known, rest)


def joined_networks(
    program: Program, functions: Mapping[str, LocalFunction], kinds: Sequence[Any], apart: dict[str, str]
) -> list[Joined]:
    """The networks that were opened and can be joined, one after the other; the last one's program has all of them.

    Args:
        kinds: stand-ins for what the program is given.
        apart: why networks, by name, stay apart; reasons that are found are added.
    """
    found: list[Joined] = []
    for network in opened_networks(functions):
        opened = Opened(program, functions, network)
        if opened.name not in apart and not _can_run(kinds):
            apart[opened.name] = "no GPU"
        elif opened.name not in apart:
            from pccompile.backends.learned_recurrences import learned_network

            try:
                found.append(join(opened, learned_network))
                program, functions = found[-1].program, found[-1].functions
            except Apart as reason:
                apart[opened.name] = str(reason)
    return [*found[:-1], *(replace(last, program=without_gaps(last.program)) for last in found[-1:])]


def _can_run(kinds: Iterable[Any]) -> bool:
    """Whether kernels can run at all on tensors like these."""
    if not is_installed():
        return False
    from pccompile.kernels.devices import interpreted

    return interpreted() or any(isinstance(kind, torch.Tensor) and kind.is_cuda for kind in kinds)


def rewrite_together(pieces: Pieces, choose: Choose) -> None:
    """Put groups of kernels into graphs, in place; each call bears its row of the report."""
    from pccompile.backends.patterns import GROUPS
    from pccompile.backends.patterns.match import declined

    for pattern in GROUPS:
        for heart in pieces.nodes(pattern.hearts):
            reasons = []
            for group in pattern.find(heart, pieces):
                if not all(Order(match.graph).takes(match) for match in group.matches):
                    reasons.append("its results are read elsewhere or too early")
                    continue
                taken, reason = choose(*group.matches)
                if taken:
                    _put(group, reason)
                    break
                reasons.append(reason)
            else:
                if reasons:
                    declined(heart, reasons[-1], group.kernel)


def _put(group: Group, reason: str) -> None:
    for match in group.matches:
        Order(match.graph).put(match, _row(match, match.kernel, reason))
    for node, kind in group.changed.items():
        node.meta["val"] = kind


def rewrite(graph: fx.Graph, choose: Choose) -> list[Row]:
    """Put kernels into a graph, in place, and say for each place that fits one what was chosen and why.

    What a pattern finds and is not chosen stays operators, unless a later pattern starts at the same node.
    """
    from pccompile.backends.patterns import PATTERNS
    from pccompile.backends.patterns.match import declined

    rows = [node.meta["row"] for node in graph.nodes if "row" in node.meta]
    order = Order(graph)
    for place, pattern in enumerate(PATTERNS, start=1):
        for heart in [node for node in graph.nodes if _is_heart(node, pattern)]:
            if heart in order.gone or "chosen" in heart.meta:
                continue
            tried: list[tuple[Match, str]] = []
            for match in pattern.candidates(heart):
                if not order.takes(match):
                    continue
                taken, reason = (True, match.decided) if match.decided else choose(match)
                if taken:
                    rows.append(_row(match, match.kernel, reason))
                    order.put(match)
                    break
                tried.append((match, reason))
            else:
                if tried and any(_is_heart(heart, later) for later in PATTERNS[place:]):
                    declined(heart, tried[0][1], pattern.kernel)
                elif tried:
                    rows.append(_left(*tried[0]))
    graph.eliminate_dead_code()
    graph.lint()
    return rows


def _is_heart(node: fx.Node, pattern: Pattern) -> bool:
    origin = node.meta.get("origin")
    is_one = node.op == "call_function" and node.target in pattern.hearts and origin is not None
    return is_one and pattern.part in ("", origin.part)


def _row(match: Match, kernel: str, reason: str) -> Row:
    tensors = sum(bytes_in(match.kind(node)) for node in {*match.inputs, *match.results})
    operations = sum(map(operations_of, match.replaced))
    others = dict.fromkeys(node.meta["left_by"] for node in match.replaced if "left_by" in node.meta)
    return Row(covered(match.replaced), kernel, "; ".join([reason, *others]), match.launches, tensors, operations)


def _left(match: Match, reason: str) -> Row:
    """Nodes that a kernel could have taken and that stay."""
    nodes = [node for node in match.replaced if "chosen" not in node.meta]
    for node in nodes:
        node.meta["chosen"] = "aten"
    launches, moved, operations = (sum(map(each, nodes)) for each in (launches_of, bytes_of, operations_of))
    return Row(covered(nodes), "aten", reason, launches, moved, operations)


class Order:
    """Where the nodes of a graph stand while calls of kernels take the places of some of them."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.position = {node: float(index) for index, node in enumerate(graph.nodes)}
        self.gone: set[fx.Node] = set()

    def takes(self, match: Match) -> bool:
        """Whether the call has a place: after all it reads, before all that read its results, and these are all."""
        if self.gone.intersection((*match.replaced, *match.inputs)):
            return False
        inner = (user for node in {*match.replaced} - {*match.results} for user in node.users)
        if any("chosen" in node.meta for node in match.replaced) or any(user not in match.replaced for user in inner):
            return False
        last = max(self.position[node] for node in match.inputs)
        readers = (user for node in match.results for user in node.users if user not in match.replaced)
        return all(self.position[user] > last for user in readers)

    def put(self, match: Match, row: Row | None = None) -> None:
        """Replace the nodes of a match by the call of its kernel, which bears the row of the report if there is one."""
        first = min(match.replaced, key=self.position.__getitem__)
        latest = max(match.inputs, key=self.position.__getitem__)
        before = first if self.position[latest] < self.position[first] else latest.next
        names = [node.name for node in match.results]
        with self.graph.inserting_before(before):
            new = match.write(self.graph, lambda node: node)
        for node in self._settle(before, first):
            if row is not None and "kernel" in node.meta and node.target is not operator.getitem:
                node.meta["row"] = row
        for old, result in zip(match.results, new, strict=True):
            old.replace_all_uses_with(result)
        for node in sorted(match.replaced, key=self.position.__getitem__, reverse=True):
            self.graph.erase_node(node)
            self.gone.add(node)
        for name, result in zip(names, new, strict=True):
            if result.op == "call_function" and result not in match.inputs:
                result._rename(name)

    def _settle(self, before: fx.Node, heart: fx.Node) -> list[fx.Node]:
        """Nodes written just before another stand between it and its predecessor, and belong to the heart's vertex."""
        node, written = before.prev, []
        while node not in self.position:
            written.append(node)
            node = node.prev
        for new in written:
            self.position[new] = (self.position[node] + self.position.get(before, self.position[node] + 1)) / 2
            new.meta.setdefault("origin", heart.meta.get("origin"))
            if "kernel" in new.meta:
                new.meta["chosen"] = new.meta["kernel"]
            if isinstance(new.meta["val"], tuple):
                new._rename(f"{heart.name}_{new.meta['kernel']}")
        return written
