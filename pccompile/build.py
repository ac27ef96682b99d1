"""Build the graph of a program from a captured model: vertices, edges, levels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import networkx as nx
from torch import fx

from pccompile.capture import Captured, Leaf, place_of
from pccompile.errors import NoDerivativeError
from pccompile.ir.grammar import Component, Kind, Vertex, Work
from pccompile.names import unique_name
from pccompile.vertices import Roles, choose

__all__ = ["build_graph", "with_levels"]


def build_graph(
    captured: Captured, vertices: str | Sequence[str], every_node: bool, wanted: Iterable[str]
) -> nx.DiGraph:
    """The graph of a captured model: clamped vertices, predictions, outputs and the loss, with levels.

    Args:
        captured: the model's FX graph, observed.
        vertices: "nodes", "layers" or module paths; see `pccompile.vertices`.
        every_node: whether functions of parameters alone are vertices as well.
        wanted: names of the placeholder nodes whose gradient somebody wants.

    Raises:
        NoDerivativeError: an operator without a derivative lies between the loss and something wanted.
        UsageError: `vertices` names something that is not there.
    """
    roles = Roles(captured)
    chosen = choose(roles, vertices, every_node)
    named_modules = () if isinstance(vertices, str) else tuple(vertices)
    builder = _Builder(captured, roles, chosen, set(wanted), named_modules)
    graph = with_levels(builder.build())
    _check_derivatives(captured, graph)
    return graph


def with_levels(graph: nx.DiGraph) -> nx.DiGraph:
    """The graph with every vertex's level; what does not lead to the loss is clamped to its feed-forward value."""
    level: dict[str, int] = {}
    for name in reversed(list(nx.topological_sort(graph))):
        vertex: Vertex = graph.nodes[name]["vertex"]
        if vertex.kind is Kind.LOSS:
            level[name] = -1
        elif not vertex.clamped:
            above = [level[child] + 1 for child in graph.successors(name) if child in level]
            if above:
                level[name] = max(above)
    for name, data in graph.nodes(data=True):
        vertex = data["vertex"]
        if not vertex.clamped and name not in level:
            held = tuple(replace(component, free=False) for component in vertex.components)
            data["vertex"] = replace(vertex, kind=Kind.CONSTANT, level=None, components=held)
        else:
            data["vertex"] = replace(vertex, level=level.get(name))
    return graph


@dataclass
class _Builder:
    captured: Captured
    roles: Roles
    chosen: set[str]
    wanted: set[str]
    named_modules: Sequence[str]
    graph: nx.DiGraph = field(default_factory=nx.DiGraph)
    owner: dict[str, str] = field(default_factory=dict)  # tensor node -> name of its vertex

    def build(self) -> nx.DiGraph:
        self._separate_parametric_loss()
        groups = self._groups()
        slices = {producer: self._slice([producer, *roots]) for producer, roots in groups.items()}
        names = self._names(groups, slices)
        for leaf_node, leaf in self.captured.leaves.items():
            self._add_leaf(leaf_node, leaf)
        for producer, roots in groups.items():
            for root in roots:
                self.owner[root] = names[producer]
        for producer in sorted(groups, key=self.roles.position.__getitem__):
            self._add_computed(names[producer], producer, groups[producer], slices[producer])
        self._add_loss()
        return self.graph

    def _separate_parametric_loss(self) -> None:
        """A loss that the model computes itself starts after the last parametric nodes."""
        if self.captured.loss is not None:
            inside = set(self._slice([self.captured.loss])) - self.captured.loss_nodes - {self.captured.loss}
            self.chosen |= inside & self.roles.parametric

    def _groups(self) -> dict[str, list[str]]:
        """Roots of each computed vertex by the node that produces them, the tensors held beside them included."""
        groups: dict[str, list[str]] = {}
        for name in sorted(self.chosen, key=self.roles.position.__getitem__):
            groups.setdefault(self.roles.producer(name), []).append(name)
        inside: dict[str, str] = {}
        for producer, roots in sorted(groups.items(), key=lambda item: self.roles.position[item[0]]):
            for name in self._slice(roots):
                inside.setdefault(name, producer)
        for name in self._held():
            producer = self.roles.producer(name)
            host = producer if producer in groups else None
            if host is None and self._only_leaves_the_graph(name):
                host = inside.get(producer)
            groups.setdefault(host or producer, []).append(name)
        return groups

    def _held(self) -> list[str]:
        """Tensors (and numbers) outside the flow of derivatives: computed once and then held."""
        needed = [name for name in self.captured.outputs if name is not None]
        needed += [effect.node for effect in self.captured.effects]
        reached = set(needed) | self.chosen | ({self.captured.loss} if self.captured.loss else set())
        for node in reversed(self.roles.nodes):
            if node.name in reached:
                reached.update(parent.name for parent in node.all_input_nodes)
        active = self.roles.active
        outside = [name for name in needed if name in active and name not in self.chosen and name != self.captured.loss]
        return outside + [
            node.name
            for node in self.roles.nodes
            if node.name in reached
            and node.name not in active
            and node.name not in self.captured.leaves
            and not self.roles.is_tuple(node.name)
        ]

    def _only_leaves_the_graph(self, name: str) -> bool:
        return all(user.op == "output" for user in self.roles.by_name[name].users)

    def _slice(self, roots: Iterable[str]) -> list[str]:
        """The nodes to evaluate for the roots, in order, down to other vertices and clamped ones."""
        found: set[str] = set()
        stack = list(roots)
        while stack:
            name = stack.pop()
            if name in found:
                continue
            found.add(name)
            for parent in self.roles.by_name[name].all_input_nodes:
                if not self._is_boundary(parent.name):
                    stack.append(parent.name)
        return sorted(found, key=self.roles.position.__getitem__)

    def _is_boundary(self, name: str) -> bool:
        if name in self.chosen or name in self.captured.leaves:
            return True
        return name not in self.roles.active and not self.roles.is_tuple(name)

    def _names(self, groups: dict[str, list[str]], slices: dict[str, list[str]]) -> dict[str, str]:
        """A name for each vertex: its module's path; with the operator's name where a module has several vertices.

        The nodes that opened operators became have names of their own inside their modules.
        """
        homes = {producer: self._home(producer, nodes) for producer, nodes in slices.items()}
        hidden = {producer for producer, roots in groups.items() if self.chosen.intersection(roots)}
        crowd = Counter(home for producer, (home, _) in homes.items() if producer in hidden)
        taken = {leaf.path for leaf in self.captured.leaves.values()} | set(self.captured.input_names) | {"loss"}
        names: dict[str, str] = {}
        for producer in sorted(slices, key=self.roles.position.__getitem__):
            home, operator = homes[producer]
            alone = producer in hidden and crowd[home] == 1 and producer not in self.captured.labels
            wish = home if home and alone else f"{home}.{operator}" if home else operator
            names[producer] = unique_name(wish, taken)
        return names

    def _home(self, producer: str, nodes: list[str]) -> tuple[str, str]:
        """Module path and operator that name a vertex: the listed module's, or those of its first parametric node."""
        path = self.captured.modules.get(producer, ("", ""))[0]
        if producer in self.captured.labels:
            return path, self.captured.labels[producer]
        listed = [name for name in self.named_modules if path == name or path.startswith((name + ".", name + "@"))]
        main = next((node for node in nodes if node in self.roles.parametric), producer)
        target = self.roles.by_name[main].target
        operator = str(getattr(target, "__name__", target)).partition(".")[0].lower()
        return max(listed, key=len, default=self.captured.modules.get(main, ("", ""))[0]), operator

    def _add_leaf(self, node: str, leaf: Leaf) -> None:
        fact = self.captured.facts[node]
        name = self.captured.input_names[leaf.index] if leaf.kind is Kind.INPUT else leaf.path or node
        if name in self.graph:
            name = node
        component = Component(node, fact.shape or (), fact.dtype or "object", free=False)
        vertex = Vertex(
            name, leaf.kind, leaf.kind.value, (), (component,), self.roles.position[node], "", "", node in self.wanted
        )
        self.graph.add_node(name, vertex=vertex)
        self.owner[node] = name

    def _add_computed(self, name: str, producer: str, roots: list[str], nodes: list[str]) -> None:
        components = tuple(self._component(root) for root in roots)
        hidden = any(component.free for component in components)
        module, source = self.captured.modules.get(producer, ("", ""))[0], self.captured.sources.get(producer, "")
        vertex = Vertex(
            name,
            Kind.HIDDEN if hidden else Kind.CONSTANT,
            str(getattr(self.roles.by_name[producer].target, "__name__", self.roles.by_name[producer].target)),
            tuple(nodes),
            components,
            self.roles.position[producer],
            module,
            source,
            work=self._work(nodes),
        )
        self.graph.add_node(name, vertex=vertex)
        self._add_edges(name, nodes)

    def _component(self, node: str) -> Component:
        fact = self.captured.facts[node]
        free = node in self.chosen
        return Component(node, fact.shape or (), fact.dtype or "object", free)

    def _work(self, nodes: Sequence[str]) -> Work:
        """What evaluating the nodes costs; a product's derivative costs a product for each factor that wants one."""
        facts = [self.captured.facts[node] for node in nodes]
        back = dict.fromkeys(("within", "values", "parameters", "nothing"), 0)
        for node in nodes:
            operations = self.captured.facts[node].operations
            attention = "attention" in str(self.roles.by_name[node].target)
            for factor in _factors(self.roles.by_name[node]) if operations else ():
                # attention is two products; its derivative forms the first again, and two for each
                share = operations * 5 // 6 if attention else operations
                back["within" if factor in nodes else self._asks(factor)] += share
        return Work(
            operations=sum(fact.operations for fact in facts),
            back_within=back["within"],
            back_to_values=back["values"],
            back_to_parameters=back["parameters"],
            bytes=sum(fact.bytes for fact in facts),
            launches=sum(fact.bytes > 0 for fact in facts),
        )

    def _asks(self, node: str) -> str:
        """Who wants the derivative by a node outside the vertex: an unclamped value, a clamped one, or nobody."""
        if node in self.captured.leaves:
            return "parameters" if node in self.wanted else "nothing"
        return "values" if node in self.roles.active else "nothing"

    def _add_edges(self, name: str, nodes: Sequence[str]) -> None:
        reads: dict[str, list[str]] = {}
        members = set(nodes)
        for node in nodes:
            for parent in self.roles.by_name[node].all_input_nodes:
                if parent.name not in members and parent.name not in reads.setdefault(self.owner[parent.name], []):
                    reads[self.owner[parent.name]].append(parent.name)
        for parent_name, read in reads.items():
            self.graph.add_edge(parent_name, name, reads=tuple(read))

    def _add_loss(self) -> None:
        """The loss vertex, and an output vertex for everything it reads that may have an error."""
        last = len(self.roles.nodes)
        components: tuple[Component, ...] = ()
        if self.captured.loss is not None:
            fact = self.captured.facts[self.captured.loss]
            nodes = tuple(self._slice([self.captured.loss]))
            components = (Component(self.captured.loss, fact.shape or (), fact.dtype or "object"),)
            operator = str(getattr(self.roles.by_name[nodes[-1]].target, "__name__", nodes[-1]))
            source = self.captured.sources.get(nodes[-1], "")
        else:
            nodes, operator, source = (), "external", ""
        name = "loss"
        while name in self.graph:
            name += "_"
        work = self._work(nodes)
        loss = Vertex(name, Kind.LOSS, operator, nodes, components, 2 * last + 1, "", source, work=work)
        self.graph.add_node(name, vertex=loss)
        if nodes:
            self._add_edges(name, nodes)
        else:
            for node in dict.fromkeys(self.captured.outputs):
                if node in self.chosen:
                    edge = self.graph.edges.get((self.owner[node], name), {"reads": ()})
                    self.graph.add_edge(self.owner[node], name, reads=(*edge["reads"], node))
        for parent in list(self.graph.predecessors(name)):
            self._make_output(parent, name, last)

    def _make_output(self, name: str, loss: str, last: int) -> None:
        vertex: Vertex = self.graph.nodes[name]["vertex"]
        if vertex.clamped:
            return
        reads = self.graph.edges[name, loss]["reads"]
        if self.graph.out_degree(name) == 1:
            self.graph.nodes[name]["vertex"] = replace(vertex, kind=Kind.OUTPUT)
            return
        components = tuple(component for component in vertex.components if component.node in reads)
        identity = Vertex(
            f"{name}.output",
            Kind.OUTPUT,
            "identity",
            (),
            components,
            last + vertex.order,
            vertex.module,
            vertex.source,
        )
        self.graph.add_node(identity.name, vertex=identity)
        self.graph.remove_edge(name, loss)
        self.graph.add_edge(name, identity.name, reads=reads)
        self.graph.add_edge(identity.name, loss, reads=reads)


def _factors(node: fx.Node) -> list[str]:
    """The factors of a product among a node's inputs: what is not a bias or a mask."""
    inputs = [argument.name for argument in node.args if isinstance(argument, fx.Node)]
    target = str(node.target)
    if "attention" in target:
        return inputs[:3]
    return inputs[1:3] if any(name in target for name in ("addmm", "baddbmm", "addmv", "addbmm")) else inputs[:2]


def _check_derivatives(captured: Captured, graph: nx.DiGraph) -> None:
    """Refuse an operator without a derivative where a gradient would have to pass it."""
    needs: set[str] = set()
    for name in nx.topological_sort(graph):
        vertex: Vertex = graph.nodes[name]["vertex"]
        if vertex.requires_grad or any(parent in needs for parent in graph.predecessors(name)):
            needs.add(name)
        if vertex.level is None or vertex.clamped:
            continue
        for node in vertex.nodes:
            if captured.facts[node].refused and name in needs:
                raise NoDerivativeError(f"{vertex.operator} cannot be differentiated", place_of(captured, node))
