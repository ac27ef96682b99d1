"""The intermediate representation, to be read in this order: grammar, check, text, parse, json, evaluate."""

from pccompile.ir.check import check_locality, verify
from pccompile.ir.evaluate import Evaluator, Semantics
from pccompile.ir.grammar import CLAMPED, Action, Component, Kind, Program, Schedule, Span, Time, Update, Vertex, Work
from pccompile.ir.json import from_json, to_json
from pccompile.ir.parse import parse
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
    "Work",
    "check_locality",
    "from_json",
    "parse",
    "table",
    "to_json",
    "verify",
]
