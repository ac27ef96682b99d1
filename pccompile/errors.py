"""Every error pccompile raises on purpose: one small class per cause, each with the cure in its text.

An error names what is known of the place it comes from: module path, FX node, and the line of the user's source.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "CaptureError",
    "CycleError",
    "DataDependentError",
    "DoubleBackwardError",
    "MissingPackageError",
    "NoDerivativeError",
    "NonFiniteError",
    "PCCompileError",
    "Place",
    "ProgramError",
    "PythonStateError",
    "ReplayError",
    "ShapeError",
    "UsageError",
]


@dataclass(frozen=True)
class Place:
    """Where in the user's model an error happened; whatever is unknown is None."""

    module: str | None = None
    node: str | None = None
    source: str | None = None

    def __str__(self) -> str:
        rows = (("module", self.module), ("node", self.node), ("source", self.source))
        return "".join(f"\n  {label + ':':<8} {text}" for label, text in rows if text)


class PCCompileError(RuntimeError):
    """Base of pccompile's errors: what happened, where, why, and what to do about it.

    Attributes:
        place: module path, FX node and source line.
        cause: what went wrong, usually the underlying exception's own words.
        cure: what to change.
    """

    summary = "pccompile failed"
    cure = ""

    def __init__(self, cause: str, place: Place | None = None, cure: str | None = None) -> None:
        self.cause, self.place = cause, place or Place()
        self.cure = cure or type(self).cure
        cure_line = f"\n  {'cure:':<8} {self.cure}" if self.cure else ""
        super().__init__(f"{self.summary}{self.place}\n  {'cause:':<8} {cause}{cure_line}")


class CaptureError(PCCompileError):
    """The model's forward could not be turned into a torch.fx graph."""

    summary = "the model could not be captured"
    cure = (
        'make the forward something torch.export can trace, try capture="symbolic", or hand over a torch.fx.GraphModule'
    )


class DataDependentError(CaptureError):
    """The forward branches on (or sizes something by) the values of a tensor."""

    summary = "the forward depends on a tensor's values"
    cure = "replace the branch by torch.where or torch.cond, or move the decision out of the model"


class PythonStateError(CaptureError):
    """The forward changes something in Python, or draws from Python's or numpy's random numbers."""

    summary = "the forward has an effect that a captured graph would not repeat"
    cure = (
        "make it a buffer (register_buffer) and write into it in place, return it from the forward, or change it "
        "outside the forward"
    )


class ReplayError(CaptureError):
    """The captured program and the model's own forward disagree."""

    summary = "the captured program does not compute what the model computes"
    cure = (
        "make the forward a function of its inputs, parameters, buffers and torch's random numbers; "
        "pccompile.compile(model, verify=False) goes on without this comparison"
    )


class ShapeError(PCCompileError):
    """Shapes, dtypes or devices do not fit where they meet."""

    summary = "a shape does not fit"
    cure = "check the shapes of the inputs against what the module expects"


class NoDerivativeError(PCCompileError):
    """An operator between the loss and something trainable has no derivative in PyTorch."""

    summary = "an operator has no derivative"
    cure = (
        "detach its input, freeze what is below it, or give it a derivative with "
        "torch.library.custom_op(...).register_autograd"
    )


class CycleError(PCCompileError):
    """The graph of predictions has a cycle."""

    summary = "the graph has a cycle"
    cure = "unroll the recurrence over time, so that every prediction reads earlier vertices only"


class ProgramError(PCCompileError):
    """A program breaks the rules of the intermediate representation (a bug in a pass, or a hand-written program)."""

    summary = "the program is not well-formed"


class NonFiniteError(PCCompileError):
    """A value, prediction or error became NaN or infinite during inference."""

    summary = "inference produced a value that is not finite"
    cure = "lower the rule's step_size, or check the inputs and the learning rate"


class DoubleBackwardError(PCCompileError):
    """Somebody asked for the derivative of a predictive-coding gradient."""

    summary = "a predictive-coding gradient cannot be differentiated again"
    cure = "call backward() without create_graph=True, or use the plain model where second derivatives are needed"


class UsageError(PCCompileError):
    """The API was called in a way that cannot work."""

    summary = "pccompile was called in a way that cannot work"


class MissingPackageError(UsageError):
    """An optional package is not installed."""

    summary = "an optional package is missing"
