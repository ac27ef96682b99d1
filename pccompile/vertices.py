"""Which FX nodes are vertices: every node, every layer, or the outputs of named modules.

The nodes that are not chosen are evaluated inside the predictions that read them. The elementary operators of what was
opened (see `pccompile.capture.decompose`) are always chosen.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import fx

from pccompile.capture import Captured, moves_only
from pccompile.errors import UsageError
from pccompile.ir.grammar import Kind

__all__ = ["Roles", "choose"]


@dataclass
class Roles:
    """What each node of a captured graph is to predictive coding; everything is linear in the graph.

    `active` nodes are differentiable functions of an input or a parameter: they can be vertices with an error.
    `data` nodes depend on an input; the other active ones are functions of parameters alone.
    `parametric` nodes depend on data and read a parameter (or something made of parameters alone).
    """

    captured: Captured

    @cached_property
    def nodes(self) -> list[fx.Node]:
        """Every node but the output."""
        return [node for node in self.captured.graph.nodes if node.op != "output"]

    @cached_property
    def by_name(self) -> dict[str, fx.Node]:
        """The nodes by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def position(self) -> dict[str, int]:
        """Where each node stands in the graph."""
        return {node.name: index for index, node in enumerate(self.nodes)}

    @cached_property
    def active(self) -> set[str]:
        """Nodes through which a derivative flows, from an input or a parameter."""
        facts, leaves = self.captured.facts, self.captured.leaves
        return {n.name for n in self.nodes if facts[n.name].differentiable and n.name not in leaves}

    @cached_property
    def data(self) -> set[str]:
        """Nodes that depend on the values of an input; its sizes are no data."""
        found: set[str] = set()
        for node in self.nodes:
            leaf = self.captured.leaves.get(node.name)
            is_input = leaf is not None and leaf.kind is Kind.INPUT
            reads_one = any(parent.name in found for parent in node.all_input_nodes)
            if is_input or (reads_one and self._holds_tensors(node)):
                found.add(node.name)
        return found

    def _holds_tensors(self, node: fx.Node) -> bool:
        fact = self.captured.facts[node.name]
        return fact.shape is not None or fact.differentiable or self._is_tuple(node)

    @cached_property
    def of_parameters(self) -> set[str]:
        """Nodes computed from parameters and not from data, the parameters included."""
        found: set[str] = set()
        for node in self.nodes:
            leaf = self.captured.leaves.get(node.name)
            is_parameter = leaf is not None and leaf.kind is Kind.PARAMETER
            reads_one = any(parent.name in found for parent in node.all_input_nodes)
            if is_parameter or (reads_one and node.name not in self.data and node.name in self.active):
                found.add(node.name)
        return found

    @cached_property
    def parametric(self) -> set[str]:
        """Active nodes that bring a parameter to data."""
        return {
            node.name
            for node in self.nodes
            if node.name in self.data
            and node.name in self.active
            and any(parent.name in self.of_parameters for parent in node.all_input_nodes)
        }

    def producer(self, name: str) -> str:
        """The node that computes a tensor: itself, or the operator whose tuple of results it is taken from."""
        node: fx.Node = self.by_name[name]
        while node.target in (operator.getitem, getattr) and self._is_tuple(node.args[0]):
            node = node.args[0]  # type: ignore[assignment]
        return str(node.name)

    def is_tuple(self, name: str) -> bool:
        """Whether the node yields several values, which getitem nodes take apart."""
        return name in self._tuples

    def _is_tuple(self, node: object) -> bool:
        return isinstance(node, fx.Node) and node.name in self._tuples

    @cached_property
    def _tuples(self) -> set[str]:
        facts, leaves = self.captured.facts, self.captured.leaves
        takers = [node for node in self.nodes if node.target in (operator.getitem, getattr)]
        names = {node.args[0].name for node in takers if isinstance(node.args[0], fx.Node)}
        return {name for name in names if name not in leaves and facts[name].shape is None}


def choose(roles: Roles, vertices: str | Sequence[str], every_node: bool) -> set[str]:
    """The nodes whose tensors are vertices.

    Args:
        vertices: "nodes", "layers", or module paths.
        every_node: take functions of parameters alone as vertices too (for rules whose result does not depend on it).

    Raises:
        UsageError: a module path that the forward never passes, or an unknown word.
    """
    tensors = {name for name in roles.active if not roles.is_tuple(name)}
    candidates = tensors if every_node else tensors & roles.data
    # what the model returns beside a loss inside (a cache, hidden states) is no prediction for being returned
    outputs = {name for name in roles.captured.outputs if name in tensors} if roles.captured.loss is None else set()
    loss_reads = {p.name for name in roles.captured.loss_nodes for p in roles.by_name[name].all_input_nodes}
    ends = (outputs | (loss_reads & tensors)) - roles.captured.loss_nodes
    if vertices == "nodes":
        chosen = candidates
    elif vertices == "layers":
        chosen = _layer_ends(roles, tensors)
    elif isinstance(vertices, str):
        raise UsageError(f"vertices={vertices!r}", cure='choose "nodes", "layers", or a list of module names')
    else:
        chosen = set().union(*(_module_outputs(roles, name, tensors) for name in vertices)) if vertices else set()
    chosen |= roles.captured.elementary & candidates
    return ((chosen & _leading_to(roles, ends)) | ends) - roles.captured.loss_nodes - {roles.captured.loss}


def _leading_to(roles: Roles, ends: set[str]) -> set[str]:
    """The nodes from which the loss, or one of the outputs it may read, can be reached along active nodes."""
    found = ends | ({roles.captured.loss} if roles.captured.loss else set())
    for node in reversed(roles.nodes):
        if node.name in roles.active and any(user.name in found for user in node.users):
            found.add(node.name)
    return found


def _layer_ends(roles: Roles, tensors: set[str]) -> set[str]:
    """Where each parametric node, with the non-parametric nodes that follow it, is read by the next parametric one.

    What opened operators read ends a layer too: where it was computed, not where a time step was cut out of it.
    """
    below: set[str] = set()
    for node in roles.nodes:
        inputs = [parent.name for parent in node.all_input_nodes]
        if node.name in roles.parametric or (node.name in roles.active and any(name in below for name in inputs)):
            below.add(node.name)
    elementary = roles.captured.elementary
    readers = [roles.by_name[name] for name in roles.parametric - elementary]
    read = {parent.name for node in readers for parent in node.all_input_nodes}
    opened = [roles.by_name[name] for name in elementary]
    read |= {source.name for node in opened for source in _before_moves(node)}
    return (read & below & tensors & roles.data) - _moved(roles)


def _before_moves(reader: fx.Node) -> set[fx.Node]:
    """Where the values that a node reads were computed; they may have been moved around since."""
    found: set[fx.Node] = set()
    stack = list(reader.all_input_nodes)
    while stack:
        node = stack.pop()
        if moves_only(node):
            stack += node.all_input_nodes
        else:
            found.add(node)
    return found


def _moved(roles: Roles) -> set[str]:
    """What only moves elementary vertices around: the outputs of all time steps put together, the last one cut out."""
    found = set(roles.captured.elementary)
    for node in roles.nodes:
        inputs = {parent.name for parent in node.all_input_nodes}
        if inputs and inputs <= found and moves_only(node):
            found.add(node.name)
    return found - roles.captured.elementary


def _module_outputs(roles: Roles, module: str, tensors: set[str]) -> set[str]:
    def inside(name: str) -> bool:
        path = roles.captured.modules.get(name, ("", ""))[0]
        bare = ".".join(part.partition("@")[0] for part in path.split("."))
        return bare == module or bare.startswith(module + ".")

    members = {name for name in tensors & roles.data if inside(name)}
    if not members:
        raise UsageError(
            f"no vertex comes from the module {module!r}", cure="name modules as model.named_modules() does"
        )
    kept = {name for name in members if any(not inside(user.name) for user in roles.by_name[name].users)}
    return kept or {max(members, key=roles.position.__getitem__)}
