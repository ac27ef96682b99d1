"""The intermediate representation, to be read in this order: grammar, check, text, json, evaluate."""

from pccompile.ir.check import check_locality, verify
from pccompile.ir.evaluate import Evaluator, Semantics
from pccompile.ir.grammar import CLAMPED, Action, Component, Kind, Program, Schedule, Span, Time, Update, Vertex
from pccompile.ir.json import from_json, to_json
from pccompile.ir.text import table

__all__ = [
    "CLAMPED",
    "Action",
    "Component",
    "Evaluator",
    "Kind",
    "Program",
    "Schedule",
    "Semantics",
    "Span",
    "Time",
    "Update",
    "Vertex",
    "check_locality",
    "from_json",
    "table",
    "to_json",
    "verify",
]
