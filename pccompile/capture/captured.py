"""What capturing a model yields: a functional torch.fx graph, and what each of its placeholders and outputs is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from pccompile.capture.shapes import ShapeDomain
from pccompile.ir.grammar import Kind

__all__ = ["Captured", "Effect", "Fact", "Leaf"]


@dataclass(frozen=True)
class Leaf:
    """Where the value of a placeholder (or get_attr node) comes from.

    `path` is the parameter's, buffer's or attribute's path in the model; for an input, `index` is its position among
    the flattened arguments. `constant` is the tensor itself where it belongs to the graph alone.
    """

    kind: Kind
    path: str
    index: int = -1
    constant: torch.Tensor | None = None

    @property
    def home(self) -> tuple[str, int]:
        """What tells one leaf from another: its path, or its position among the inputs."""
        return self.path, self.index


@dataclass(frozen=True)
class Effect:
    """A tensor that the forward changes: after the feed-forward pass `leaf` receives the value of `node`."""

    leaf: Leaf
    node: str


@dataclass(frozen=True)
class Fact:
    """What running a node once showed.

    Attributes:
        shape, dtype: of the tensor; None where the node yields something else.
        differentiable: whether a derivative flows through it from an input or a parameter.
        refused: the operator's output asks for a derivative that does not exist.
        random: the node draws random numbers.
        operations: as `torch.utils.flop_counter` counts them.
        bytes: of the tensors that the node reads and writes; 0 for a view.
    """

    shape: tuple[int, ...] | None
    dtype: str | None
    differentiable: bool
    refused: bool = False
    random: bool = False
    operations: int = 0
    bytes: int = 0


@dataclass
class Captured:
    """A captured model.

    Attributes:
        graph: placeholder, get_attr and call nodes; no node writes into another's value.
        leaves: placeholder and get_attr nodes by name.
        outputs: for each flattened output of the model, the FX node's name, or None where it is a constant.
        constants: for each flattened output, the constant it is where it is one.
        rebuild: puts the flattened outputs together again.
        domain: the input shapes for which the graph holds.
        effects: buffers and inputs that the forward changes.
        modules: for each node the module path and its type, "layer1.0.conv1" and "Conv2d".
        sources: for each node the user's source line.
        loss: the node whose value is the loss, or None if the loss is outside.
        loss_nodes: the nodes that compute the loss from the model's outputs.
        labels: the names, inside their modules, of the nodes that opened operators became.
        elementary: the nodes of opened operators that are to be vertices.
        autocast: whether nodes run under the caller's autocast state (else casts are in the graph).
        facts: by node name, filled by `observe`.
        input_names: a readable name for each flattened input.
        example_outputs: the model's outputs on the example inputs, until the loss has been looked at.
        mean_loss: whether the loss is a mean over the batch (else it is a sum).
    """

    graph: fx.Graph
    leaves: dict[str, Leaf]
    outputs: list[str | None]
    constants: list[Any]
    rebuild: Callable[[list[Any]], Any]
    domain: ShapeDomain
    effects: list[Effect]
    modules: dict[str, tuple[str, str]]
    sources: dict[str, str]
    loss: str | None = None
    loss_nodes: frozenset[str] = frozenset()
    labels: dict[str, str] = field(default_factory=dict)
    elementary: frozenset[str] = frozenset()
    autocast: bool = False
    facts: dict[str, Fact] = field(default_factory=dict)
    input_names: list[str] = field(default_factory=list)
    example_outputs: Any = None
    mean_loss: bool = True
