"""The trainable module: a model's own parameters, buffers and state_dict, trained by predictive coding."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pccompile.backends.report import BackendReport
from pccompile.backends.run import Run
from pccompile.call import Call, Loss, flattened
from pccompile.capture import Captured, capture, is_symbolic, leaf_value
from pccompile.capture.rehearse import initialise_lazy_modules
from pccompile.compiled import Compiled, compile_captured
from pccompile.errors import UsageError
from pccompile.execution import Execution, linked
from pccompile.ir.grammar import Program
from pccompile.losses import averages_over_batch
from pccompile.modelstate import ModelState, is_tensor_that_learns
from pccompile.recent import Recent
from pccompile.rules import Rule
from pccompile.straight import Straight
from pccompile.variants import Variants
from pccompile.verify import verify

__all__ = ["PCModule", "as_arguments", "loss_among"]

logger = logging.getLogger("pccompile")


class PCModule(nn.Module):
    """A model that learns by predictive coding; made by `pccompile.compile`, which documents the arguments.

    It shares the model's parameters, buffers and submodules under the model's own names, so that `state_dict`,
    `parameters`, `to`, `train` and `eval` act on the model. Called under `no_grad` it is the model.

    Attributes:
        model: the model.
        rule: the rule; assigning one that differs only in step size or number of steps compiles nothing again.
        energies: the energy of each inference step of the last backward pass, if `record_energies` is set.
        record_energies: note the energies; only rules that move values have them.
    """

    model: nn.Module

    def __init__(
        self,
        model: nn.Module,
        rule: Rule,
        loss_fn: Loss | None,
        vertices: str | Sequence[str],
        backend: str,
        capture_method: str,
        dynamic: bool,
        optimize: bool,
        verify: bool = True,
        decompose: bool | str = "auto",
        cuda_graph: bool | str = "auto",
    ) -> None:
        super().__init__()
        self.__dict__["model"] = model
        self.__dict__["loss_fn"] = loss_fn
        for shared in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[shared] = getattr(model, shared)
        self.training = model.training
        self.rule = rule
        self.vertices = vertices if isinstance(vertices, str) else tuple(vertices)
        self.backend = backend
        self.capture_method, self.dynamic, self.optimize = capture_method, dynamic, optimize
        self.verify = verify
        self.decompose = decompose
        self.cuda_graph = cuda_graph
        self.record_energies = False
        self.energies: list[float] = []
        self.recorder: Any = None  # a Recording while `pccompile.record` is on
        self._variants = Variants()
        self._states: dict[bool, ModelState] = {}  # without and with the loss
        self._recent: dict[bool, Recent] = {}
        self._latest: Compiled | None = None

    # Calls --------------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's outputs; backward through them runs the program's error sweep.

        Raises:
            CaptureError, ShapeError, NoDerivativeError: at the first call with inputs of this kind.
            UsageError: the rule needs the loss inside the program, and the model has none.
        """
        found = self._served(None, args, kwargs)
        if found is None:
            return self.model(*args, **kwargs)
        recent, flat = found
        captured, shortest = recent.compiled.captured, self._shortest(recent, flat)
        if shortest is not None:
            return captured.rebuild([shortest(flat)])
        execution = self._execution(recent, flat, None, args, kwargs)
        outputs = linked(execution, self._when_done)
        if captured.loss is not None:  # the model's own loss is the loss vertex; its other outputs carry no gradient
            return captured.rebuild(self._around_own_loss(outputs[0], execution))
        recent.ran(execution.run)
        return captured.rebuild(outputs)

    def loss(self, inputs: Any, target: Any = None) -> torch.Tensor:
        """The loss, evaluated inside the program; `backward()` on it fills the parameters' gradients.

        Args:
            inputs: the model's input: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
            target: what loss_fn(outputs, target) compares with; a tuple is passed as several arguments. Leave it out
                where the model computes its own loss.

        Raises:
            UsageError: no loss_fn and the model returns no loss; or the rule trains through `step` only.
        """
        args, kwargs = as_arguments(inputs)
        targets = _as_targets(target)
        if self.rule.name == "Incremental" and torch.is_grad_enabled():
            raise UsageError(
                "the incremental rule changes the parameters while it infers", cure="call pc.step(x, y, optimizer)"
            )
        if self.loss_fn is None:
            outputs = self(*args, **kwargs)
            return loss_among(outputs)
        found = self._served(self.loss_fn, args, kwargs, targets)
        if found is None:
            value: torch.Tensor = self.loss_fn(self.model(*args, **kwargs), *targets)
            return value
        recent, flat = found
        shortest = self._shortest(recent, flat)
        if shortest is not None:
            return shortest(flat)
        execution = self._execution(recent, flat, self.loss_fn, args, kwargs, targets)
        loss: torch.Tensor = linked(execution, self._when_done)[0]
        recent.ran(execution.run)
        return loss

    def step(self, inputs: Any, target: Any, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        """One whole training step under any rule: gradients, and the parameters' optimizer step.

        For the incremental rule the optimizer steps in every inference step.

        Args:
            inputs, target: as for `loss`.
            optimizer: any torch optimizer over the parameters.

        Returns:
            The loss before the step, detached.
        """
        optimizer.zero_grad(set_to_none=True)
        if self.rule.name != "Incremental":
            loss = self.loss(inputs, target)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            return loss.detach()
        targets = () if self.loss_fn is None else _as_targets(target)
        args, kwargs = as_arguments(inputs)
        found = self._served(self.loss_fn, args, kwargs, targets, whatever_learns=True)
        assert found is not None
        execution = self._execution(*found, self.loss_fn, args, kwargs, targets)
        execution.run.parameters, execution.run.optimizer_step = execution.sources, optimizer.step
        with torch.no_grad():
            loss = execution.feed_forward()[0]
            execution.infer([torch.ones_like(loss)], keep=False)
        self._when_done(execution)
        return loss

    # Inspection -----------------------------------------------------------------------------------------------------

    @property
    def program(self) -> Program:
        """The program compiled last (for the last kind of inputs seen).

        Raises:
            UsageError: nothing has been compiled yet.
        """
        if self._latest is None:
            raise UsageError(
                "there is no program yet: the model is captured at its first call",
                cure="call it once, or give example_inputs to pccompile.compile",
            )
        return self._latest.program

    @property
    def code(self) -> str:
        """The Python that ran last: `program.code`, or what the back end made of it.

        Raises:
            UsageError: nothing has been compiled yet.
        """
        program = self.program
        assert self._latest is not None
        code: str = getattr(self._latest.backend, "code", program.code)
        return code

    def backend_report(self) -> BackendReport:
        """What runs each vertex, and why, for the inputs seen last; prints as a table.

        Raises:
            UsageError: nothing has been compiled yet.
        """
        program = self.program
        assert self._latest is not None and program is self._latest.program
        backend: Any = self._latest.backend
        rows = tuple(backend.report()) if hasattr(backend, "report") else ()
        notes, inside = getattr(backend, "notes", ()), getattr(backend, "inside", {})
        return BackendReport(self.backend, rows, tuple(notes), inside)

    def explain(self, name: str) -> str:
        """The story of one vertex: `program.explain`, and what runs it.

        Raises:
            UsageError: nothing has been compiled yet, or no vertex has that name.
        """
        told = self.program.explain(name)
        rows = self.backend_report().of(name)
        return "\n".join([told, *(f"runs in the {row.phase} as: {row.kernel} ({row.reason})" for row in rows)])

    def prepare(self, inputs: Any, target: Any = None) -> Program:
        """Capture and compile for inputs of this kind without training; arguments as for `loss`."""
        targets = _as_targets(target)
        loss_fn = self.loss_fn if targets else None
        self._served(loss_fn, *as_arguments(inputs), targets, whatever_learns=True)
        return self.program

    # The model's own ------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> PCModule:
        """Set the model, and this module with it, to training or evaluation mode."""
        self.model.train(mode)
        self.training = mode
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The model's state_dict, keys unchanged."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load the model's state_dict."""
        return self.model.load_state_dict(state_dict, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "model" not in self.__dict__:
                raise
            return getattr(self.model, name)

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles carry: not what was captured and compiled, which is made again when needed."""
        return {
            **self.__dict__,
            "_variants": Variants(),
            "_states": {},
            "_recent": {},
            "_latest": None,
            "recorder": None,
        }

    def extra_repr(self) -> str:
        """The rule."""
        return repr(self.rule)

    @property
    def options(self) -> tuple[Any, ...]:
        """What may be set on the module between calls and changes what runs."""
        return (
            *(self.rule, self.vertices, self.backend, self.decompose, self.record_energies),
            *(self.optimize, self.verify, self.capture_method, self.dynamic, self.cuda_graph),
        )

    # Compilation ----------------------------------------------------------------------------------------------------

    def _served(
        self,
        loss_fn: Loss | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        targets: tuple[Any, ...] = (),
        whatever_learns: bool = False,
    ) -> tuple[Recent, list[Any]] | None:
        """What serves a call, and its flattened inputs.

        None where gradients are disabled or there is nothing to learn, unless asked for.
        """
        if not (whatever_learns or torch.is_grad_enabled()):
            return None
        flat, structure = flattened(args, kwargs, targets)
        recent = self._recent.get(loss_fn is None)
        if recent is None or not recent.serves(self, flat, structure):
            call = Call(self.model, loss_fn, args, kwargs, targets)
            state = self._model_state(call)
            learns = state.learns or any(map(is_tensor_that_learns, flat))
            if not (whatever_learns or learns):
                return None
            compiled = self._variant(call, state)
            if compiled not in state.held:
                state.held[compiled] = compiled.hold(self.model, loss_fn)
            recent = self._recent[loss_fn is None] = Recent(self, call, state, compiled, learns)
        elif not (whatever_learns or recent.learns):
            return None
        self.__dict__["_latest"] = recent.compiled
        return recent, flat

    def _shortest(self, recent: Recent, flat: list[Any]) -> Straight | None:
        """The shortest way for a call like the last one, if there is one, and nobody watches what happens on it."""
        if self.recorder is not None or self.energies or torch._C._are_functorch_transforms_active():
            return None
        return recent.straight(len(flat))

    def _execution(
        self,
        recent: Recent,
        flat: list[Any],
        loss_fn: Loss | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        targets: tuple[Any, ...] = (),
    ) -> Execution:
        """What runs for a call."""
        run = Run(self.rule, recent.kinds, record_energies=self.record_energies, cuda_graph=self.cuda_graph)
        execution = Execution(recent.compiled, run, self.model, loss_fn, flat, recent.held)
        if self.recorder is not None:
            execution = self.recorder.watched(execution, Call(self.model, loss_fn, args, kwargs, targets))
        return execution

    def _model_state(self, call: Call) -> ModelState:
        state = self._states.get(call.loss_fn is None)
        if state is None or not state.holds():
            initialise_lazy_modules(self.model, call.args, call.kwargs)
            state = self._states[call.loss_fn is None] = ModelState(self.model, call.loss_fn)
        return state

    def _variant(self, call: Call, state: ModelState) -> Compiled:
        """The compiled program for a call of this kind, from the cache or made now."""
        opens = self._opens()
        observed = self.rule.needs_loss and (self.record_energies or getattr(self.rule, "tolerance", 0.0) > 0)

        def trace() -> Captured:
            captured = capture(call, self.capture_method, self.dynamic, opens)
            if call.loss_fn is not None:
                captured.mean_loss = averages_over_batch(call.loss_fn, captured.example_outputs, call.targets)
            captured.example_outputs = None
            return captured

        def build(captured: Captured) -> Compiled:
            values = {
                node: leaf_value(leaf, self.model, call.loss_fn, call.flat) for node, leaf in captured.leaves.items()
            }
            wanted = [node for node, value in values.items() if is_tensor_that_learns(value)]

            def compiled_for(backend: str) -> Compiled:
                compiled = compile_captured(
                    captured, self.rule, self.vertices, wanted, self.optimize, observed, backend
                )
                if self.verify:
                    verify(compiled, self.rule, call)
                return compiled

            backends, failed = self._backends(), None
            for backend in backends:
                try:
                    compiled = compiled_for(backend)
                    break
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:
                    if backend == backends[-1]:  # the back ends are not at fault
                        raise
                    failed = failed or error
            if failed is not None:
                name = type(self.model).__name__
                logger.warning("the %s back end runs %s, as %r fails: %s", backend, name, self.backend, failed)
            return compiled

        options = _structure(self.rule), self.vertices, observed, self.backend
        return self._variants.find(state, call, opens, options, trace, build)

    def _backends(self) -> list[str]:
        """The chosen back end, and those that take its place where it fails."""
        others = ["aten", "eager"] if self.optimize and self.backend != "eager" else []
        return list(dict.fromkeys([self.backend, *others]))

    def _opens(self) -> bool:
        """Whether recurrent networks, cells and attention are opened: asked for, or the rule's result depends on it."""
        if self.decompose != "auto":
            return bool(self.decompose)
        by_nodes = self.vertices in ("auto", "nodes")
        return by_nodes and not self.rule.exact and not is_symbolic(self.model, self.capture_method)

    def _when_done(self, execution: Execution) -> None:
        if execution.run.energies or self.energies:
            self.energies = execution.run.energies

    def _around_own_loss(self, loss: torch.Tensor, execution: Execution) -> list[Any]:
        captured = execution.compiled.captured
        return [
            loss if name == captured.loss else constant if name is None else execution.value(name)
            for name, constant in zip(captured.outputs, captured.constants, strict=True)
        ]


def as_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) of a model call, from a tensor, a tuple or list of arguments, or a dict of keyword arguments."""
    if isinstance(inputs, torch.Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, tuple | list) else ((inputs,), {})


def _as_targets(target: Any) -> tuple[Any, ...]:
    if target is None:
        return ()
    return target if isinstance(target, tuple) else (target,)


def loss_among(outputs: Any) -> torch.Tensor:
    """The loss in a model's outputs: the output itself, its "loss" entry or attribute, or its first element."""
    if isinstance(outputs, torch.Tensor):
        found: Any = outputs
    elif isinstance(outputs, Mapping):
        found = outputs.get("loss")
    else:
        found = getattr(outputs, "loss", outputs[0] if isinstance(outputs, tuple | list) else None)
    if not isinstance(found, torch.Tensor) or found.shape != ():
        raise UsageError("the model returns no loss", cure="give loss_fn to pccompile.compile")
    return found


def _structure(rule: Rule) -> tuple[Any, ...]:
    """What of a rule the program depends on; step size and number of steps are read at run time."""
    return rule.name, rule.passes, getattr(rule, "learn_errors", None)
