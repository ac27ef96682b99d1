"""One model with its batch, which every contestant trains in turn, and what they are held to."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

import pccompile
from bench.steps.ceiling import CountedOperations
from bench.steps.models import TOLERANCE, Loss, Model
from pccompile.rules import Rule

__all__ = ["LEARNING_RATE", "RULES", "STEPS", "TORCH2PC_RULE", "Gradients", "Prepared", "SummingSGD", "Task"]

LEARNING_RATE = 1e-3
STEPS = 20
TORCH2PC_RULE = "strict as Torch2PC"  # learns with the errors before the last move, and takes a mean loss as it is
RULES: dict[str, Callable[[float], Rule]] = {  # by the step size of inference
    "zil": lambda step_size: pccompile.ZIL(),
    "fixed": lambda step_size: pccompile.FixedPrediction(STEPS, 0.1),
    "levelled": lambda step_size: pccompile.FixedPrediction(STEPS, 0.1, levelled=True),
    "strict": lambda step_size: pccompile.Strict(STEPS, step_size),
    "incremental": lambda step_size: pccompile.Incremental(STEPS, step_size),
}

Gradients = dict[str, torch.Tensor]


class SummingSGD(torch.optim.SGD):
    """SGD that sums the gradients it is given, for a rule that takes several steps in one."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.sums: Gradients = {}
        super().__init__(model.parameters(), lr=lr)

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    name = self.names[id(parameter)]
                    before = self.sums.get(name)
                    self.sums[name] = parameter.grad.clone() if before is None else before + parameter.grad
        super().step()


@dataclass
class Task:
    """A model, its batch and its initial state. All contestants share the model, so that it is in memory once.

    Attributes:
        flops: floating-point operations of one training step by rule, as far as they have been counted.
    """

    name: str
    title: str
    model: nn.Module
    inputs: torch.Tensor
    target: torch.Tensor
    loss: Loss
    step_size: float = 0.1
    peers: bool = False
    tolerance: float = TOLERANCE
    initial: dict[str, torch.Tensor] = field(default_factory=dict)
    references: dict[str, Gradients] = field(default_factory=dict)
    flops: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Model, device: str) -> Task:
        """Build the model and draw its batch, the same in every run."""
        torch.manual_seed(0)
        module = model.build().to(device).train()
        inputs, target = (part.to(device) for part in model.batch())
        initial = {name: value.detach().clone() for name, value in module.state_dict().items()}
        given = (model.loss, model.step_size, model.peers, model.tolerance)
        return cls(model.name, model.title, module, inputs, target, *given, initial)

    def reset(self) -> None:
        """Put the parameters and buffers back, and drop the gradients."""
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                value.copy_(self.initial[name])
        self.model.zero_grad(set_to_none=True)

    def gradients_of(self, backward: Callable[[], object]) -> Gradients:
        """The gradients that `backward` leaves, from the initial state."""
        self.reset()
        backward()
        found = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}
        self.reset()
        return found

    @property
    def dtype(self) -> torch.dtype:
        """That of the model's parameters."""
        return next(self.model.parameters()).dtype

    def compiled(self, rule: str, backend: str, cuda_graph: bool | str = "auto") -> pccompile.PCModule:
        """The model under a rule, with the loss inside."""
        if rule == TORCH2PC_RULE:
            made: Rule = pccompile.Strict(STEPS, self.step_size, learn_errors="previous", batch_energy="as_given")
        else:
            made = RULES[rule](self.step_size)
        return pccompile.compile(self.model, made, loss_fn=self.loss, backend=backend, cuda_graph=cuda_graph)

    def reference(self, rule: str) -> Gradients:
        """What contestants of a rule are held to: autograd's gradients, or the eager back end's; kept."""
        if rule == "zil":
            return self.reference("autograd")
        if rule not in self.references:
            compute = self._computation(rule)
            self.references[rule] = compute()
            with CountedOperations() as counted, _without_fused_recurrence():
                compute()
            if counted.flops:
                self.flops[rule] = counted.flops
        return self.references[rule]

    def _computation(self, rule: str) -> Callable[[], Gradients]:
        if rule == "autograd":
            return lambda: self.gradients_of(lambda: self.loss(self.model(self.inputs), self.target).backward())
        pc = self.compiled(rule, "eager")
        if rule == "incremental":
            return lambda: self.summed_gradients(pc)
        return lambda: self.gradients_of(lambda: pc.loss(self.inputs, self.target).backward())

    def summed_gradients(self, pc: pccompile.PCModule) -> Gradients:
        """The gradients of all the parameter steps of one incremental training step."""
        self.reset()
        optimizer = SummingSGD(self.model, LEARNING_RATE)
        pc.step(self.inputs, self.target, optimizer)
        self.reset()
        return optimizer.sums


@contextlib.contextmanager
def _without_fused_recurrence() -> Iterator[None]:
    """Without oneDNN and cuDNN: to them an LSTM is one operator, which no formula counts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(enabled=False):
            yield


@dataclass
class Prepared:
    """A contestant, ready to train.

    Attributes:
        step: one training step.
        gradients: the gradients of one step from the initial state, by parameter name of the model.
        reference: the rule whose reference they are held to.
        reset: go back to the initial state.
        synchronize: wait until the steps are done, for libraries that compute in the background.
        in_torch: computes by PyTorch, so that its memory and operations can be counted.
    """

    step: Callable[[], None]
    gradients: Callable[[], Gradients]
    reference: str
    reset: Callable[[], None]
    synchronize: Callable[[], None] = lambda: None
    in_torch: bool = True
