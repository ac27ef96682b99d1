"""The graph's vertices: what each is, what it predicts and of which tensors its value consists."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["CLAMPED", "Component", "Kind", "Vertex", "Work"]


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
