"""Write the updates of a program into torch.fx graphs."""

from __future__ import annotations

import builtins
import keyword
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import fx, nn

from pccompile.errors import ProgramError
from pccompile.ir.check import reads
from pccompile.ir.grammar import Action, Kind, Program, Span, Update
from pccompile.names import unique_name
from pccompile.updates import compare, infer, learn, relax, scaled

__all__ = ["Emitter", "Piece", "Quantity", "identifiers"]

Quantity = tuple[str, str]  # ("value" | "prediction" | "error" | "moment" | "gradient", vertex)


@dataclass(frozen=True)
class Piece:
    """Part of a lowered program: a graph from (run, the quantities in `reads`) to the quantities in `writes`.

    It runs once for each step of `span` if `loop`, else once. `compares` says whether it brings the errors up to date.
    """

    name: str
    span: Span
    loop: bool
    compares: bool
    graph: fx.Graph
    reads: tuple[Quantity, ...]
    writes: tuple[Quantity, ...]
    names: Mapping[str, str]

    def bind(self, functions: Mapping[str, nn.Module]) -> fx.GraphModule:
        """The piece as a module whose submodules are the vertices' local functions."""
        called = {str(node.target) for node in self.graph.nodes if node.op == "call_module"}
        named = {self.names[vertex]: function for vertex, function in functions.items()}
        return fx.GraphModule({name: named[name] for name in called}, self.graph)

    @property
    def code(self) -> str:
        """The piece as a Python function."""
        source: str = self.graph.python_code("self").src
        return source.replace("def forward(", f"def {self.name}(", 1).replace("pccompile_updates_", "").strip()


def identifiers(program: Program) -> dict[str, str]:
    """A Python identifier for every vertex, unique: "layer1_0_conv1"."""
    taken = {*dir(fx.GraphModule), *dir(builtins), *keyword.kwlist, "graph", "training", "run"}
    names: dict[str, str] = {}
    for vertex in program.vertices:
        clean = "".join(c if c.isalnum() and c.isascii() else "_" for c in vertex.name)
        names[vertex.name] = unique_name(clean if clean[:1].isalpha() else f"_{clean}", taken)
    return names


class Emitter:
    """Writes the updates of consecutive steps into one fx graph.

    Args:
        names: identifier of each vertex.
        negated: errors are held with the opposite sign.
        loop: the graph is the body of a loop.
    """

    def __init__(self, program: Program, names: Mapping[str, str], negated: bool, loop: bool = False) -> None:
        self.program, self.names, self.negated, self.loop = program, names, negated, loop
        self.graph = fx.Graph()
        self.run = self.graph.placeholder("run")
        self.states = self.graph.call_function(getattr, (self.run, "random_states"))  # placeholders go before it
        self.states._rename("random_states")
        self.attributes: dict[str, fx.Node] = {"random_states": self.states}
        self.now: dict[Quantity, fx.Node] = {}
        self.read: dict[Quantity, fx.Node] = {}
        self.written: set[Quantity] = set()
        self.pulls: dict[tuple[fx.Node, fx.Node], fx.Node] = {}
        self.targets = {vertex.name: program.pulls_back_to(vertex.name) for vertex in program.vertices}
        self.waiting: dict[str, dict[str, tuple[fx.Node, str, float]]] = {}
        self.learned: dict[fx.Node, fx.Node] = {}
        self.sign = 1.0  # of dF/dtheta in what Learn is given
        self.summed: set[tuple[str, str]] = set()
        self.has_loss = any(vertex.kind is Kind.LOSS and vertex.nodes for vertex in program.vertices)
        self.descends = any(action is Action.DESCEND for action, _ in program.updates)
        self.allowed: set[Quantity] = set()
        self.vertex = ""  # whose update is being written
        self.compares = False

    def emit_step(self, updates: list[Update], first_predictions: bool = False) -> None:
        """Write the updates of one step, already in order; Infer, Relax and Learn read the state before any of them.

        Args:
            first_predictions: this is the feed-forward pass, in which vertices take their predictions as values.
        """
        simultaneous: list[tuple[str, str, fx.Node]] = []
        infers = any(update.action is Action.INFER for update in updates)
        self.sign = -1.0 if infers and not self.negated else 1.0
        for update in updates:
            self.allowed = set(reads(self.program, update))
            self.vertex = name = update.vertex
            if update.action is Action.PREDICT:
                self._predict(name, first_predictions)
            elif update.action is Action.COMPARE:
                self.compares = True
                self._compare(name)
            elif update.action is Action.INFER:
                simultaneous += self._infer(name)
            elif update.action is Action.RELAX:
                simultaneous.append(("error", name, self._relax(update)))
            elif update.action is Action.LEARN:
                self._learn(update)
        for kind, name, node in simultaneous:
            self._set(kind, name, node)
        if self.descends:
            self._sum_all()
            self._descend(updates)

    def finish(self, name: str, span: Span, needed: set[Quantity]) -> Piece:
        """Close the graph: it returns those of its results that are needed later, or in its own next iteration."""
        self._sum_all()
        wanted = needed | (set(self.read) if self.loop else set())
        writes = tuple(sorted(quantity for quantity in self.written & wanted if quantity in self.now))
        self._release_local_graphs(needed | set(writes))
        self.graph.output(tuple(self.now[quantity] for quantity in writes))
        self.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output") or node.target == "descend")
        self.graph.lint()
        return Piece(name, span, self.loop, self.compares, self.graph, tuple(self.read), writes, self.names)

    # State ------------------------------------------------------------------------------------------------------------

    def _get(self, kind: str, vertex: str) -> fx.Node:
        quantity = (kind, vertex)
        if quantity not in self.now:
            with self.graph.inserting_before(self.states):
                node = self.graph.placeholder(self._identifier(kind, vertex))
            self.now[quantity] = self.read[quantity] = node
        return self.now[quantity]

    def _set(self, kind: str, vertex: str, node: fx.Node) -> None:
        node._rename(self._identifier(kind, vertex))
        self.now[kind, vertex] = node
        self.written.add((kind, vertex))

    def _operand(self, kind: str, vertex: str) -> fx.Node:
        """A quantity that the present update declares to read; anything else would break locality."""
        if (kind, vertex) not in self.allowed:
            raise ProgramError(f"an update reads the {kind} of {vertex}, which it does not declare")
        return self._get(kind, vertex)

    def _attribute(self, name: str) -> fx.Node:
        """An attribute of the run: a scalar or option that is not part of the program."""
        if name not in self.attributes:
            with self.graph.inserting_after(self.states):
                self.attributes[name] = self.graph.call_function(getattr, (self.run, name))
            self.attributes[name]._rename(name)
        return self.attributes[name]

    def _identifier(self, kind: str, vertex: str) -> str:
        return self.names[vertex] + ("" if kind == "prediction" else f"_{kind}")

    def _call(self, function: Callable[..., object], *arguments: object) -> fx.Node:
        node = self.graph.call_function(function, arguments)  # type: ignore[arg-type]
        node.meta["vertex"] = self.vertex
        return node

    # Updates ----------------------------------------------------------------------------------------------------------

    def _predict(self, name: str, first: bool) -> None:
        parents = [self._operand("value", parent.name) for parent in self.program.parents(name)]
        node = self.graph.call_module(self.names[name], (self.states, *parents))
        self._set("prediction", name, node)
        if first or self.program.vertex(name).follows:
            self._set("value", name, self._call(getattr, node, "prediction"))

    def _compare(self, name: str) -> None:
        vertex = self.program.vertex(name)
        if vertex.kind is not Kind.OUTPUT:
            prediction = self._call(getattr, self._operand("prediction", name), "prediction")
            prediction._rename(f"{self.names[name]}_prediction")
            free = tuple(component.free for component in vertex.components)
            self._set("error", name, self._call(compare, self._operand("value", name), prediction, free))
        elif self.has_loss:
            self._set("error", name, self._call(relax, None, 1.0, *self._contributions(name)))

    def _infer(self, name: str) -> list[tuple[str, str, fx.Node]]:
        state = [self._operand("value", name), self._operand("error", name), self._get("moment", name)]
        pair = self._call(infer, self._attribute("optimizer"), *state, *self._contributions(name))
        pair._rename(f"{self.names[name]}_moved")
        return [
            ("value", name, self._call(operator.getitem, pair, 0)),
            ("moment", name, self._call(operator.getitem, pair, 1)),
        ]

    def _relax(self, update: Update) -> fx.Node:
        contributions = self._contributions(update.vertex)
        if update.exact:
            return self._call(relax, None, 1.0, *contributions)
        error = self._operand("error", update.vertex)
        return self._call(relax, error, self._attribute("step_size"), *contributions)

    def _learn(self, update: Update) -> None:
        """Contributions to dF/dtheta wait for each other, to be summed in reverse execution order, as autograd does."""
        for parent in self.program.learned(update.vertex):
            part = self._contribution(update.vertex, parent.name, learns=True)
            if part is not None:
                self.waiting.setdefault(parent.name, {})[update.vertex] = (part, update.gain, self.sign)
                self._sum(parent.name, all_are_here=False)

    def _sum(self, parameter: str, all_are_here: bool) -> None:
        waiting = self.waiting[parameter]
        for child in self.program.children(parameter):
            if child.name in waiting:
                part, gain, sign = waiting.pop(child.name)
                before = self.now.get(("gradient", parameter))
                self.vertex = child.name
                self._set("gradient", parameter, self._call(learn, before, self._factor(gain, sign), part))
                self.summed.add((parameter, child.name))
            elif not all_are_here and self._will_learn(parameter, child.name):
                return

    def _will_learn(self, parameter: str, child: str) -> bool:
        return (Action.LEARN, child) in self.program.updates and (parameter, child) not in self.summed

    def _sum_all(self) -> None:
        for parameter in self.waiting:
            self._sum(parameter, all_are_here=True)
        self.waiting.clear()
        self.summed.clear()

    def _factor(self, gain: str, sign: float) -> fx.Node | float:
        if gain == "1":
            return sign
        return self.graph.call_method("gain", (self.run, int(gain[2:-1]), sign))

    def _descend(self, updates: list[Update]) -> None:
        for update in updates:
            if update.action is Action.DESCEND:
                gradient = self.now.pop(("gradient", update.vertex), None)
                self.graph.call_method("descend", (self.run, update.vertex, gradient))

    # Contributions ----------------------------------------------------------------------------------------------------

    def _contributions(self, name: str) -> list[fx.Node]:
        """J(c, i)^T e_c of each child c, in reverse execution order."""
        found = [self._contribution(child.name, name) for child in self.program.children(name)]
        return [node for node in found if node is not None]

    def _contribution(self, child: str, target: str, learns: bool = False) -> fx.Node | None:
        """J(child, target)^T e. For a Learn that shares it with no Infer, e has the factor that the gradient needs."""
        vertex = self.program.vertex(child)
        is_loss = vertex.kind is Kind.LOSS
        if vertex.clamped or (is_loss and not vertex.nodes) or target not in self.targets[child]:
            return None
        error = self._attribute("loss_error") if is_loss else self._operand("error", child)
        if learns and self.sign == 1 and not self.negated:
            error = self._learned(error, child)
        linearisation = self._operand("prediction", child)
        pull = self.pulls.get((linearisation, error))
        if pull is None:
            pull = self.graph.call_method("pull_back", (linearisation, error, (), False))
            pull._rename(f"{self.names[child]}_back")
            self.pulls[linearisation, error] = pull
        asked: tuple[str, ...] = pull.args[2]  # type: ignore[assignment]
        if target not in asked:
            pull.args = (linearisation, error, (*asked, target), False)
        contribution = self.graph.call_method("get", (pull, target))
        contribution._rename(f"{self.names[child]}_to_{self.names[target]}")
        return contribution

    def _learned(self, error: fx.Node, vertex: str) -> fx.Node:
        if error not in self.learned:
            self.learned[error] = self._call(scaled, self._attribute("learn_factor"), error)
            self.learned[error]._rename(f"learned_{self.names[vertex]}_error")
        return self.learned[error]

    def _release_local_graphs(self, later: set[Quantity]) -> None:
        """The last product with a Jacobian frees its local graph, unless something after this piece needs it."""
        last = {linearisation: pull for (linearisation, _), pull in self.pulls.items()}
        kept = {node for quantity, node in self.now.items() if quantity in later and quantity[0] == "prediction"}
        for linearisation, pull in last.items():
            if linearisation not in kept and not (self.loop and linearisation.op == "placeholder"):
                pull.args = (*pull.args[:3], True)
