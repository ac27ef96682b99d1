"""Compare a captured program with the model's own forward, once, on the inputs it was captured with.

What analysis of the forward misses shows here: both run from the same random state, and outputs, buffers, inputs that
are written into and, for an exact rule, gradients have to agree. It costs about one training step of the model and one
of the program; nothing remains of either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from pccompile.backends.run import Run
from pccompile.call import Call, Loss
from pccompile.capture import Captured, Leaf, leaf_value, place_of
from pccompile.capture.rehearse import rehearsal, with_line
from pccompile.capture.state import PythonState
from pccompile.capture.structure import Structure
from pccompile.capture.watch import refuse_custom_functions
from pccompile.compiled import Compiled
from pccompile.errors import Place, ReplayError
from pccompile.execution import Execution
from pccompile.ir.grammar import Kind
from pccompile.rules import Rule

__all__ = ["verify"]

_TOLERANCE = {"float64": 1e-6, "complex128": 1e-6, "bfloat16": 5e-2, "float16": 5e-2}  # of the norm; else:
_TOLERANCE_OF_FLOAT32 = 1e-3
_FLOOR = 1e-2  # what is this much smaller than the largest of its kind is compared with that: it may be rounding


def verify(compiled: Compiled, rule: Rule, call: Call) -> None:
    """Run the model and the program once each, from the same state, and compare.

    Raises:
        ReplayError: names the first output, buffer, input or parameter that differs.
        PythonStateError: the forward changes the Python state, as it did not while it was captured.
    """
    replay = _Replay(compiled, rule, call)
    theirs = replay.of_model()
    found = _first_difference(replay.of_program(theirs.gradients is not None), theirs, replay.tolerance)
    if found is None:
        return
    name, problem = found
    if _first_difference(replay.of_model(), theirs, replay.tolerance) is not None:
        problem += " (the model run twice from the same state disagrees with itself: it reads something outside)"
    raise ReplayError(f"{name} {problem}", replay.place(name))


@dataclass
class _Result:
    """What one run yields, by name: outputs and what the forward may write into; gradients, if they can be taken."""

    values: dict[str, Any]
    gradients: dict[str, torch.Tensor | None] | None = None


@dataclass
class _Replay:
    compiled: Compiled
    rule: Rule
    call: Call

    @property
    def model(self) -> nn.Module:
        return self.call.model

    @property
    def loss_fn(self) -> Loss | None:
        return self.call.loss_fn

    @property
    def captured(self) -> Captured:
        return self.compiled.captured

    @cached_property
    def tracked(self) -> list[bool]:
        return self.compiled.tracked_outputs

    @cached_property
    def tolerance(self) -> float:
        dtypes = {fact.dtype or "" for fact in self.captured.facts.values()}
        floats = [dtype for dtype in dtypes if "float" in dtype or "complex" in dtype]
        return max((_TOLERANCE.get(dtype, _TOLERANCE_OF_FLOAT32) for dtype in floats), default=0.0)

    def of_model(self) -> _Result:
        """One step of the model itself."""
        given = _detached(self.call.flat)
        inputs = _each(given, torch.clone)  # what requires a gradient must not be a leaf if it is written into
        call = self.call.given(inputs)
        with self._rehearsal() as state, refuse_custom_functions():
            found = call.run()
            outputs, parts = self._compared(found), self._parts(found)
            change = next(state.changes(), None)
            passed_on = {id(value) for value in inputs}
            carries = [  # an input that is returned has its gradient either way: passed on, or repeated by a node
                is_tracked and _is_computed(value) if id(value) in passed_on else _is_computed(value)
                for value, is_tracked in zip(outputs, self.tracked, strict=True)
            ]
            result = _Result(self._values(parts, carries, inputs))
            if change is None and self.rule.exact:
                result.gradients = self._model_gradients(outputs, self._sources(given))
        if change is not None:
            raise with_line(change.refused(), self.model, self.loss_fn, call.run)
        return result

    def of_program(self, with_gradients: bool) -> _Result:
        """One step of the program."""
        inputs = _each(_detached(self.call.flat), lambda t: t.detach().clone().requires_grad_(t.requires_grad))
        with self._rehearsal():
            execution = self._execution(inputs)
            outputs = execution.feed_forward()
            inside = self.captured.loss is not None
            parts = {"the loss": outputs[0]} if inside else _parts_of(self.captured.rebuild(outputs))
            result = _Result(self._values(parts, self.tracked, inputs))
            if with_gradients:
                found = execution.infer(_directions(outputs, self.tracked), keep=False) if any(self.tracked) else {}
                by_tensor: dict[int, Any] = {}
                for name, tensor in execution.sources.items():
                    if name in found:
                        before = by_tensor.get(id(tensor))
                        by_tensor[id(tensor)] = found[name] if before is None else before + found[name]
                result.gradients = {name: by_tensor.get(id(t)) for name, t in self._sources(inputs).items()}
            return result

    def place(self, name: str) -> Place:
        """Where in the model the output, buffer or gradient of that name is computed."""
        captured = self.captured
        nodes = dict(zip(self._output_names, captured.outputs, strict=True)) if captured.loss is None else {}
        nodes |= {self._written_name(effect.leaf): effect.node for effect in captured.effects}
        readers = {node.name: next(iter(node.users), node).name for node in captured.graph.nodes}
        nodes |= {_gradient_name(leaf.path): readers[node] for node, leaf in captured.leaves.items() if leaf.path}
        node = nodes.get(name.removesuffix(_CARRIES)) or captured.loss
        return place_of(captured, node) if node else Place(type(self.model).__name__, name)

    # Parts --------------------------------------------------------------------------------------------------------

    def _execution(self, inputs: list[Any]) -> Execution:
        held = self.compiled.hold(self.model, self.loss_fn)
        return Execution(self.compiled, Run(self.rule, self.call.kinds), self.model, self.loss_fn, inputs, held)

    def _rehearsal(self) -> AbstractContextManager[PythonState]:
        written = [
            leaf_value(effect.leaf, self.model, self.loss_fn, self.call.flat) for effect in self.captured.effects
        ]
        return rehearsal(self.model, self.loss_fn, written)

    def _parts(self, outputs: Any) -> dict[str, Any]:
        """What the model returned, by name; the loss alone where it is inside the program."""
        if self.captured.loss is None:
            return _parts_of(outputs)
        return {"the loss": outputs if self.loss_fn is not None else self._own_loss(outputs)}

    def _own_loss(self, outputs: Any) -> Any:
        assert self.captured.loss is not None
        return _parts_of(outputs).get(self._names_in_order[self.captured.outputs.index(self.captured.loss)])

    def _compared(self, outputs: Any) -> list[Any]:
        """Of what the model returned, what the program yields, in the program's order."""
        parts = self._parts(outputs)
        return [parts.get(name) for name in self._output_names]

    @property
    def _output_names(self) -> list[str]:
        return ["the loss"] if self.captured.loss is not None else self._names_in_order

    @cached_property
    def _names_in_order(self) -> list[str]:
        """The name of each of the captured outputs, found by putting marks in their places."""
        marks = [torch.empty(0) for _ in self.captured.outputs]
        rebuilt = self.captured.rebuild(marks)
        if self.loss_fn is not None:
            return ["the loss"]
        name_of: dict[int, str] = {}
        for name, part in _parts_of(rebuilt).items():
            name_of.setdefault(id(part), name)
        return [name_of.get(id(mark), f"output {position}") for position, mark in enumerate(marks)]

    def _written_name(self, leaf: Leaf) -> str:
        if leaf.kind is Kind.INPUT:
            return f"the input {self.captured.input_names[leaf.index]}, after the forward,"
        return f"{leaf.path}, after the forward,"

    def _values(self, parts: dict[str, Any], carries: Sequence[bool], inputs: list[Any]) -> dict[str, Any]:
        values = dict(parts)
        values |= {name + _CARRIES: carried for name, carried in zip(self._output_names, carries, strict=True)}
        for name, buffer in _named("named_buffers", self.model, self.loss_fn):
            values[f"{name}, after the forward,"] = buffer
        for name, value in zip(self.captured.input_names, inputs, strict=True):
            values[f"the input {name}, after the forward,"] = value
        for effect in self.captured.effects:
            values[self._written_name(effect.leaf)] = leaf_value(effect.leaf, self.model, self.loss_fn, inputs)
        return {name: v.detach().clone() if isinstance(v, torch.Tensor) else v for name, v in values.items()}

    def _sources(self, inputs: list[Any]) -> dict[str, torch.Tensor]:
        """What has a gradient, by name: parameters, inputs, and other tensors that the program follows."""
        found = {_gradient_name(name): p for name, p in _named("named_parameters", self.model, self.loss_fn)}
        found |= {_gradient_name(name): v for name, v in zip(self.captured.input_names, inputs, strict=True)}
        constants = [leaf for leaf in self.captured.leaves.values() if leaf.kind is Kind.CONSTANT]
        found |= {_gradient_name(leaf.path): leaf_value(leaf, self.model, self.loss_fn, inputs) for leaf in constants}
        return {name: v for name, v in found.items() if isinstance(v, torch.Tensor) and v.requires_grad}

    def _model_gradients(
        self, outputs: list[Any], sources: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor | None] | None:
        """Autograd's gradients; None where it has none to give (training will say why)."""
        pairs = [
            (output, direction)
            for output, direction in zip(outputs, _directions(outputs, self.tracked), strict=False)
            if direction is not None and output.requires_grad
        ]
        if not pairs:
            return {}
        ends, directions = zip(*pairs, strict=True)
        known = {id(tensor) for tensor in sources.values()}
        for leaf in _leaves_of(ends):
            if id(leaf) not in known:
                sources[_gradient_name(f"a tensor of shape {tuple(leaf.shape)} that is no parameter of the model")] = (
                    leaf
                )
        devices = {tensor.device.type for tensor in ends}
        try:
            with ExitStack() as stack:
                for device in devices:  # a backward pass does not belong under autocast, which casts there as well
                    stack.enter_context(torch.autocast(device, enabled=False))
                found = torch.autograd.grad(ends, list(sources.values()), directions, allow_unused=True)
        except RuntimeError:
            return None
        return dict(zip(sources, found, strict=True))


_CARRIES = ", whether it carries a gradient,"


def _parts_of(outputs: Any) -> dict[str, Any]:
    """What a forward returned, part by part, by the path to it; of other objects the tensors in them."""
    found: dict[str, Any] = {}
    for path, leaf in pytree.tree_flatten_with_path(outputs)[0]:
        name = f"the output{pytree.keystr(path)}"
        if isinstance(leaf, torch.Tensor | int | float | complex | str | None):
            found[name] = leaf
        else:
            tensors = Structure.take_apart(leaf)[1]
            found |= {f"{name}, tensor {position}": tensor for position, tensor in enumerate(tensors)}
    return found


def _gradient_name(name: str) -> str:
    return f"the gradient of {name}"


def _named(kind: str, model: nn.Module, loss_fn: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from getattr(model, kind)()
    if isinstance(loss_fn, nn.Module):
        yield from getattr(loss_fn, kind)(prefix="loss_fn")


def _detached(flat: list[Any]) -> list[Any]:
    return _each(flat, lambda tensor: tensor.detach().requires_grad_(tensor.requires_grad))


def _each(flat: list[Any], change: Callable[[torch.Tensor], torch.Tensor]) -> list[Any]:
    """Each tensor changed; one that is there twice stays one."""
    made: dict[int, torch.Tensor] = {}
    return [made.setdefault(id(v), change(v)) if isinstance(v, torch.Tensor) else v for v in flat]


def _is_computed(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.grad_fn is not None


def _directions(outputs: list[Any], tracked: list[bool]) -> list[torch.Tensor | None]:
    """What the gradients are the products with: the same random numbers for the model and the program."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
        if is_tracked and output.layout is torch.strided
        else None
        for output, is_tracked in zip(outputs, tracked, strict=True)
    ]


def _leaves_of(outputs: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The leaf tensors to which autograd would give a gradient."""
    waiting: list[Any] = [output.grad_fn for output in outputs]
    known = set(waiting)
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            yield node.variable
        for parent, _ in node.next_functions if node is not None else ():
            if parent is not None and parent not in known:
                known.add(parent)
                waiting.append(parent)


def _first_difference(ours: _Result, theirs: _Result, tolerance: float) -> tuple[str, str] | None:
    """Name and problem of the first thing that differs by more than the tolerance."""
    for left, right in ((ours.values, theirs.values), (ours.gradients or {}, theirs.gradients or {})):
        floor = _FLOOR * max((_norm(value) for value in right.values()), default=0.0)
        for name in {**right, **left}:
            problem = _problem(left.get(name), right.get(name), tolerance, floor)
            if problem:
                return name, problem
    return None


def _problem(ours: Any, theirs: Any, tolerance: float, floor: float) -> str:
    if not isinstance(ours, torch.Tensor) or not isinstance(theirs, torch.Tensor):
        tensor = ours if isinstance(ours, torch.Tensor) else theirs
        if isinstance(tensor, torch.Tensor) and (ours is None or theirs is None):
            there = "the model itself" if ours is None else "the captured program"
            return f"exists in {there} only" if _norm(tensor) else ""
        return "" if ours is theirs or ours == theirs else f"is {ours!r} where the model gives {theirs!r}"
    kinds = [f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in (ours, theirs)]
    if kinds[0] != kinds[1]:
        return f"is {kinds[0]} where the model gives {kinds[1]}"
    if not (theirs.is_floating_point() or theirs.is_complex()):
        return "" if torch.equal(_dense(ours), _dense(theirs)) else "differs from the model's"
    ours, theirs = _dense(ours), _dense(theirs)
    finite = torch.isfinite(theirs)
    if not torch.equal(finite, torch.isfinite(ours)):
        return "is not finite where the model's is, or the other way round"
    difference = _norm(torch.where(finite, ours, 0) - torch.where(finite, theirs, 0))
    size = max(_norm(theirs), floor)
    return "" if difference <= tolerance * size else f"differs by {difference / size:.1e} of its size"


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def _norm(value: Any) -> float:
    if not isinstance(value, torch.Tensor) or not (value.is_floating_point() or value.is_complex()):
        return 0.0
    norm = float(
        torch.linalg.vector_norm(_dense(value.detach()).to(torch.complex128 if value.is_complex() else torch.float64))
    )
    return norm if math.isfinite(norm) else 0.0
