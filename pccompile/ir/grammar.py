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
from enum import StrEnum
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import networkx as nx

if TYPE_CHECKING:
    from pccompile.inspection.cost import Cost
    from pccompile.inspection.recording import Recording

__all__ = [
    "ACTION_ORDER",
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


class Kind(StrEnum):
    """What a vertex is."""

    INPUT = "input"
    PARAMETER = "parameter"
    BUFFER = "buffer"
    CONSTANT = "constant"
    HIDDEN = "hidden"
    DELAY = "delay"
    OUTPUT = "output"
    LOSS = "loss"


CLAMPED = frozenset({Kind.INPUT, Kind.PARAMETER, Kind.BUFFER, Kind.CONSTANT})


class Action(StrEnum):
    """What an update does; see the module docstring."""

    PREDICT = "Predict"
    COMPARE = "Compare"
    INFER = "Infer"
    RELAX = "Relax"
    LEARN = "Learn"
    DESCEND = "Descend"


ACTION_ORDER = {action: position for position, action in enumerate(Action)}


@dataclass(frozen=True, order=True)
class Time:
    """A step: `offset`, counted from step 0, or from step T if `from_end`. Every step before T orders before T."""

    from_end: bool
    offset: int

    def at(self, steps: int) -> int:
        """The step's number when inference runs `steps` steps."""
        return self.offset + steps if self.from_end else self.offset

    def __add__(self, steps: int) -> Time:
        return Time(self.from_end, self.offset + steps)

    @staticmethod
    def parse(text: str) -> Time:
        """The time that `str` printed: "3", "T", "T+1"."""
        from_end = text.startswith("T")
        return Time(from_end, int(text.removeprefix("T") or 0))

    def __str__(self) -> str:
        if not self.from_end:
            return str(self.offset)
        return f"T{self.offset:+d}" if self.offset else "T"


@dataclass(frozen=True)
class Span:
    """The half-open range of steps [start, stop) in which an update runs, once a step."""

    start: Time
    stop: Time

    @staticmethod
    def steps(start: int, stop: int) -> Span:
        """A span between two steps counted from step 0."""
        return Span(Time(False, start), Time(False, stop))

    @staticmethod
    def inference() -> Span:
        """[0, T): every step of inference."""
        return Span(Time(False, 0), Time(True, 0))

    @staticmethod
    def whole() -> Span:
        """[0, T+1): every step of inference and the one in which its result is read."""
        return Span(Time(False, 0), Time(True, 1))

    @staticmethod
    def final() -> Span:
        """[T, T+1): the step after inference."""
        return Span(Time(True, 0), Time(True, 1))

    def later(self, steps: int) -> Span:
        """The span moved by a number of steps."""
        return Span(self.start + steps, self.stop + steps)

    @property
    def empty(self) -> bool:
        """Whether the update never runs, whatever T is."""
        return self.stop <= self.start

    @property
    def single(self) -> bool:
        """Whether the update runs in one step exactly."""
        return self.stop == self.start + 1

    @property
    def last(self) -> Time:
        """The last step in which the update runs."""
        return self.stop + -1

    def __str__(self) -> str:
        return f"[{self.start}, {self.stop})"


@dataclass(frozen=True)
class Component:
    """One tensor of a vertex's value: the FX node it comes from, its shape and dtype.

    `free` says whether inference may move it; a mask or a running statistic that an operator returns beside its
    output is computed once and then held.
    """

    node: str
    shape: tuple[int, ...]
    dtype: str
    free: bool = True


@dataclass(frozen=True)
class Work:
    """What one evaluation of a vertex's f_i costs, and what its products with the transposed Jacobian cost.

    Operations are counted as `torch.utils.flop_counter` does: those of matrix products, convolutions and attention.

    Attributes:
        operations: of one prediction.
        back_within: of one product with the Jacobian, whatever it is asked for.
        back_to_values: more where an unclamped parent asks.
        back_to_parameters: more where a clamped parent asks.
        bytes: read and written by one prediction.
        launches: operators of one prediction that are not mere views.
    """

    operations: int = 0
    back_within: int = 0
    back_to_values: int = 0
    back_to_parameters: int = 0
    bytes: int = 0
    launches: int = 0


@dataclass(frozen=True)
class Vertex:
    """One vertex of the graph.

    Attributes:
        name: unique in the program; the module path, with the operator's name where a module has several vertices.
        kind: see `Kind`.
        operator: the FX target that predicts it (the last one of a group), or what it is for a clamped vertex.
        nodes: the FX nodes that f_i evaluates, in order; empty for an input, a parameter, a delay.
        components: the tensors that its value consists of.
        order: position in the feed-forward pass; parents come before children.
        module: path of the module that called the operator.
        source: the user's source line, "file.py:12 in forward: x = self.conv1(x)".
        requires_grad: for a clamped vertex, whether somebody wants its gradient.
        level: longest path to the loss vertex, minus one; None where no path leads there.
        work: what evaluating f_i costs.
    """

    name: str
    kind: Kind
    operator: str
    nodes: tuple[str, ...]
    components: tuple[Component, ...]
    order: int
    module: str = ""
    source: str = ""
    requires_grad: bool = False
    level: int | None = None
    work: Work = Work()

    @property
    def clamped(self) -> bool:
        """Whether the vertex has a value but never an error."""
        return self.kind in CLAMPED

    @property
    def has_error(self) -> bool:
        """Whether the vertex has an error of its own (the loss contributes L to the energy instead)."""
        return self.kind in (Kind.HIDDEN, Kind.DELAY, Kind.OUTPUT)

    @property
    def follows(self) -> bool:
        """Whether the vertex's value is its prediction in every step."""
        return self.kind in (Kind.OUTPUT, Kind.LOSS)

    @property
    def moves(self) -> bool:
        """Whether inference moves the vertex's value."""
        return self.kind in (Kind.HIDDEN, Kind.DELAY)


@dataclass(frozen=True)
class Update:
    """One local update of one vertex and the steps in which it runs.

    `gain` names the factor of a Learn: "1", or "c(3)" for P[Binomial(T, step_size) >= 3]. `exact` marks an Infer or
    Relax whose step size is 1 whatever the rule's is (Z-IL, and the closed form of fixed prediction).
    """

    action: Action
    vertex: str
    span: Span
    gain: str = "1"
    exact: bool = False

    def __str__(self) -> str:
        gain = f" gain {self.gain}" if self.gain != "1" else ""
        return f"{self.action.value}({self.vertex}) @ {self.span}{gain}"


Schedule = tuple[Update, ...]


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
