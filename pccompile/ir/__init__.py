"""The intermediate representation.

To be read in this order: grammar (with its parts, vertex and schedule), check, text, parse, json, evaluate.
"""

from pccompile.ir.check import check_locality, verify
from pccompile.ir.evaluate import Evaluator, Semantics
from pccompile.ir.grammar import Program
from pccompile.ir.json import from_json, to_json
from pccompile.ir.parse import parse
from pccompile.ir.schedule import Action, Schedule, Span, Time, Update
from pccompile.ir.text import table
from pccompile.ir.vertex import CLAMPED, Component, Kind, Vertex, Work

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
