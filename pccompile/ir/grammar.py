"""The intermediate representation: a graph of vertices and a schedule of local updates.

    program  ::= rule graph schedule
    vertex   ::= name ":" kind operator component+ ["level" integer]
    kind     ::= "input" | "parameter" | "buffer" | "constant"          (clamped: a value, never an error)
               | "hidden" | "delay" | "output" | "loss"
    update   ::= action "(" name ")" "@" span ["gain" gain] ["exact"]
    action   ::= "Predict" | "Compare" | "Infer" | "Relax" | "Learn" | "Descend"
    span     ::= "[" time "," time ")"
    time     ::= integer | "T" | "T+" integer | "T-" integer            (T: the number of inference steps)

What an update does at step t (J(c, i) is taken where the last Predict(c) was evaluated):

    Predict(i)   mu_i <- f_i(v_parents; theta_i)         a hidden vertex that has no value yet takes mu_i as value;
                                                         an output vertex, the loss and a constant always do
    Compare(i)   e_i  <- v_i - mu_i                      an output vertex: e_i <- -dL/dmu_i
    Infer(i)     v_i  <- v_i + eta * (-e_i + sum over children c of J(c, i)^T e_c)
    Relax(i)     e_i  <- (1 - eta) * e_i + eta * sum over children c of J(c, i)^T e_c
    Learn(i)     dF/dtheta_i += -gain * J(i, theta_i)^T e_i
    Descend(p)   theta_p <- the parameter optimizer's step, dF/dtheta_p <- 0

Within a step Predict comes first (in the order of the graph), then Compare, then Infer, Relax and Learn simultaneously,
then Descend. A run-time step size, gain or number of steps changes nothing here: they are named, not stored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import networkx as nx

from pccompile.ir.schedule import ACTION_ORDER, Action, Schedule, Span, Time, Update
from pccompile.ir.vertex import CLAMPED, Component, Kind, Vertex, Work

if TYPE_CHECKING:
    from pccompile.inspection.cost import Cost
    from pccompile.inspection.recording import Recording

__all__ = [
    "CLAMPED",
    "Action",
    "Component",
    "Kind",
    "Program",
    "Schedule",
    "Span",
    "Time",
    "Update",
    "Vertex",
    "Work",
]


@dataclass(frozen=True)
class Program:
    """A predictive-coding program: the graph, the schedule, and the history of the passes that made it.

    Attributes:
        graph: a frozen `networkx.DiGraph` from parents to children. Node data "vertex" holds the `Vertex`; edge data
            "reads" holds the FX nodes of the parent's components that the child reads.
        schedule: every update, with the range of steps in which it runs.
        rule: name of the rule, "ZIL".
        observed: somebody reads the energy in every step, so every error has to be right in every step.
        name: name of the stage: "literal", or the pass that made it.
        why: one line that says why the pass preserves the result.
        previous: the program before that pass; None for the literal one.
    """

    graph: nx.DiGraph
    schedule: Schedule
    rule: str
    name: str = "literal"
    why: str = "the rule, written out"
    observed: bool = False
    previous: Program | None = field(default=None, repr=False, compare=False)

    def __eq__(self, other: object) -> bool:
        """Programs are equal when their graphs, schedules, rules and stage names are.

        A schedule is a set: within a step the order of updates is that of the grammar, not of the list.
        """
        if not isinstance(other, Program):
            return NotImplemented
        return (
            (self.rule, self.observed, self.name, self.why) == (other.rule, other.observed, other.name, other.why)
            and frozenset(self.schedule) == frozenset(other.schedule)
            and self.vertices == other.vertices
            and {(a, b): data["reads"] for a, b, data in self.graph.edges(data=True)}
            == {(a, b): data["reads"] for a, b, data in other.graph.edges(data=True)}
        )

    __hash__ = object.__hash__

    # The graph ----------------------------------------------------------------------------------------------------

    def vertex(self, name: str) -> Vertex:
        """The vertex of that name; KeyError if there is none."""
        found: Vertex = self.graph.nodes[name]["vertex"]
        return found

    @cached_property
    def vertices(self) -> tuple[Vertex, ...]:
        """Every vertex in the order of the feed-forward pass."""
        return tuple(sorted((data["vertex"] for _, data in self.graph.nodes(data=True)), key=lambda v: v.order))

    def parents(self, name: str) -> list[Vertex]:
        """The vertices that the vertex's prediction reads."""
        return [self.vertex(parent) for parent in self.graph.predecessors(name)]

    def children(self, name: str) -> list[Vertex]:
        """The vertices whose predictions read this one, latest in the feed-forward pass first.

        Autograd sums gradients in this order, so sums taken in it agree with autograd's bit for bit.
        """
        return sorted(map(self.vertex, self.graph.successors(name)), key=lambda vertex: -vertex.order)

    def learned(self, name: str) -> list[Vertex]:
        """theta_i: the clamped parents whose gradient somebody wants."""
        return [parent for parent in self.parents(name) if parent.clamped and parent.requires_grad]

    @cached_property
    def depth(self) -> int:
        """The highest level of the graph."""
        return max((vertex.level for vertex in self.vertices if vertex.level is not None), default=0)

    # The schedule -------------------------------------------------------------------------------------------------

    @cached_property
    def updates(self) -> dict[tuple[Action, str], tuple[Update, ...]]:
        """The schedule by action and vertex."""
        table: dict[tuple[Action, str], list[Update]] = {}
        for update in self.schedule:
            table.setdefault((update.action, update.vertex), []).append(update)
        return {key: tuple(found) for key, found in table.items()}

    @cached_property
    def ordered(self) -> tuple[Update, ...]:
        """The schedule in the order in which updates of one step run."""
        order = {vertex.name: vertex.order for vertex in self.vertices}
        return tuple(sorted(self.schedule, key=lambda update: (ACTION_ORDER[update.action], order[update.vertex])))

    def updates_of(self, name: str) -> Iterator[Update]:
        """The updates of one vertex, in the order in which they run within a step."""
        for action in Action:
            yield from self.updates.get((action, name), ())

    def pulls_back_to(self, name: str) -> list[str]:
        """The parents whose inference or learning reads J(c, parent)^T e_c of the vertex c called `name`."""
        learns = (Action.LEARN, name) in self.updates
        readers = (Action.INFER, Action.RELAX)
        is_loss = self.vertex(name).kind is Kind.LOSS
        return [
            parent.name
            for parent in self.parents(name)
            if any((action, parent.name) in self.updates for action in readers)
            or (is_loss and parent.kind is Kind.OUTPUT and (Action.COMPARE, parent.name) in self.updates)
            or (learns and parent.clamped and parent.requires_grad)
        ]

    # The history --------------------------------------------------------------------------------------------------

    def after(self, name: str, why: str, schedule: Iterable[Update], graph: nx.DiGraph | None = None) -> Program:
        """The program that the pass called `name` makes of this one."""
        frozen = nx.freeze(graph) if graph is not None else self.graph
        return Program(frozen, tuple(schedule), self.rule, name, why, self.observed, previous=self)

    @property
    def stages(self) -> dict[str, Program]:
        """Every stage by name, from the literal program to this one."""
        chain: list[Program] = []
        stage: Program | None = self
        while stage is not None:
            chain.append(stage)
            stage = stage.previous
        return {stage.name: stage for stage in reversed(chain)}

    # Views: each is written where it belongs and only reached from here ---------------------------------------------

    def __str__(self) -> str:
        return self.text()

    def text(self, verbose: bool = False) -> str:
        """The program as a typed table.

        Args:
            verbose: show every vertex of repeated blocks, and every field of each: `Program.parse` reads it back.
        """
        from pccompile.ir.text import full_table, table

        return full_table(self) if verbose else table(self)

    @staticmethod
    def parse(text: str) -> Program:
        """The program that `text(verbose=True)` printed, without its history.

        Raises:
            ProgramError: the text is no such table; names the line.
        """
        from pccompile.ir.parse import parse

        return parse(text)

    def _repr_html_(self) -> str:
        """The table for notebooks."""
        from pccompile.inspection.notebook import notebook_table

        return notebook_table(self)

    def explain(self, vertex: str) -> str:
        """Who predicts a vertex, who reads its error, when it learns, which updates which pass removed and why."""
        from pccompile.inspection.explain import explain

        return explain(self, vertex)

    def diff(self, before: str, after: str) -> str:
        """What changed between two stages, as a unified diff of their updates."""
        from pccompile.inspection.diff import diff

        return diff(self.stages, before, after)

    def cost(self, steps: int = 20) -> Cost:
        """Operations, bytes and launches by vertex and in all, against autograd's; prints as a table.

        Args:
            steps: T, for the rules that infer for T steps.
        """
        from pccompile.inspection.cost import cost

        return cost(self, steps)

    def to_json(self) -> str:
        """The program with its history as JSON; `Program.from_json` reads it back."""
        from pccompile.ir.json import to_json

        return to_json(self)

    @staticmethod
    def from_json(text: str) -> Program:
        """The program that `to_json` wrote."""
        from pccompile.ir.json import from_json

        return from_json(text)

    def to_dot(self, opened: str | Collection[str] = "auto", parameters: bool = False) -> str:
        """Graphviz DOT text, grouped by module.

        Args:
            opened: names of the modules to open; "auto", as many as are comfortable to read; "all".
            parameters: show parameters, buffers and the constants made of them as vertices of their own.

        Raises:
            UsageError: a name that is no group.
        """
        from pccompile.inspection.dot import to_dot

        return to_dot(self, opened, parameters)

    def to_svg(self, opened: str | Collection[str] = "auto", parameters: bool = False) -> str:
        """An SVG picture, grouped by module; arguments as for `to_dot`.

        Raises:
            MissingPackageError: mini-racer, which runs the layout, is not installed.
            UsageError: a name that is no group.
        """
        from pccompile.inspection.svg import to_svg

        return to_svg(self, opened, parameters)

    def to_graphml(self) -> str:
        """GraphML text, for other tools."""
        from pccompile.inspection.dot import to_graphml

        return to_graphml(self)

    def save_html(
        self, path: str | PathLike[str], steps: int = 20, title: str = "", recording: Recording | None = None
    ) -> None:
        """Write the page: one HTML file that needs no network.

        Args:
            path: the file.
            steps: T, for the rules that infer for T steps.
            title: of the page; the rule's name if empty.
            recording: what `pccompile.record` saw, to be replayed.
        """
        from pccompile.inspection.page import page

        Path(path).write_text(page(self, steps, title, recording), encoding="utf-8")

    @property
    def code(self) -> str:
        """The Python that the program lowers to."""
        from pccompile.lowering import lower

        return lower(self).code
