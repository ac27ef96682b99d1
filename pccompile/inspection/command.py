"""The commands `inspect`, `check` and `cost`: a model's program, its gradients and its costs, from the shell."""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from pccompile.demo.errors import CommandLineError
from pccompile.demo.options import find_loss
from pccompile.inspection.command_inputs import build_rule, example, module_and_inputs
from pccompile.ir.grammar import Program

if TYPE_CHECKING:
    from pccompile.module import PCModule

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["DIFFERENT", "add_check", "add_cost", "add_inspect"]

DIFFERENT = 3  # the exit code of a check that finds a divergence above the tolerance

RULES = ("zil", "fixed-prediction", "strict", "incremental")

INPUTS = """\
MODEL is module:factory; modules in the working directory can be imported. The factory takes nothing and returns an
nn.Module, or (module, inputs), or (module, inputs, target); a class with no arguments will do.

--input and --target are shapes of random tensors: 1x3x32x32 (float32), 8x128:float64, 2x16:int64:50000 (integers below
50000), or "scalar"; or module:function, which returns the tensor. Give --input once for each argument of the model.
"""

INSPECT_EXAMPLES = f"""\
examples:
  pccompile inspect my_models:make_model --input 1x3x32x32
  pccompile inspect my_models:make_model --input 1x3x32x32 --rule zil --html out.html --stage all
  pccompile inspect my_models:GPT --input 2x16:int64:50000 --explain h.0.attn --diff liveness reuse
  pccompile inspect my_models:make_model --input 1x3x32x32 --svg program.svg --open layer1.0

{INPUTS}"""

CHECK_EXAMPLES = f"""\
examples:
  pccompile check my_models:make_model --input 8x3x32x32
  pccompile check my_models:make_model --input 8x3x32x32 --target 8:int64:10 --loss cross_entropy
  pccompile check my_models:make_model --input 8x3x32x32 --rule fixed-prediction --steps 50

Without --loss the outputs' mean square is used. Exit code {DIFFERENT}: a gradient differs by more than --tolerance.

{INPUTS}"""

COST_EXAMPLES = f"""\
examples:
  pccompile cost my_models:make_model --input 8x3x32x32
  pccompile cost my_models:make_model --input 8x3x32x32 --rule strict --steps 50
  pccompile cost my_models:make_model --input 8x3x32x32 --stage all

{INPUTS}"""


def add_inspect(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Add `inspect`: the program as text, page, picture or data."""
    parser = _parser(subparsers, "inspect", "show the program that a model compiles to", INSPECT_EXAMPLES)
    parser.add_argument("--stage", metavar="NAME", help="a stage by its name, or all (default: the last)")
    parser.add_argument("--verbose", action="store_true", help="print every vertex with every field")
    parser.add_argument("--explain", action="append", default=[], metavar="VERTEX", help="the story of one vertex")
    parser.add_argument("--diff", nargs=2, metavar=("STAGE", "STAGE"), help="what changed between two stages")
    parser.add_argument("--code", action="store_true", help="the Python that the program lowers to")
    for flag, what in (
        ("--html", "a page"),
        ("--svg", "a picture"),
        ("--dot", "Graphviz"),
        ("--graphml", "GraphML"),
        ("--json", "data"),
    ):
        parser.add_argument(flag, type=Path, metavar="FILE", help=f"write {what}")
    parser.add_argument("--open", action="append", metavar="MODULE", help="open a module in --svg and --dot; or all")
    parser.set_defaults(run=run_inspect)
    return parser


def add_check(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Add `check`: gradients against autograd's."""
    parser = _parser(subparsers, "check", "compare a program's gradients with autograd's", CHECK_EXAMPLES)
    parser.add_argument(
        "--tolerance", type=float, metavar="X", help="largest relative error (default: 1e-5 under zil, else none)"
    )
    parser.set_defaults(run=run_check)
    return parser


def add_cost(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Add `cost`: operations, bytes and launches."""
    parser = _parser(subparsers, "cost", "count operations, bytes and launches against autograd's", COST_EXAMPLES)
    parser.add_argument("--stage", metavar="NAME", help="a stage by its name, or all (default: the last)")
    parser.set_defaults(run=run_cost)
    return parser


def run_inspect(arguments: argparse.Namespace) -> int:
    """Print and write what is asked for; returns 0."""
    pc, inputs, target = _compiled(arguments)
    program = _stage(pc.prepare(inputs, target), arguments.stage)
    files = _write(program, arguments)
    asked = arguments.explain or arguments.diff or arguments.code
    if arguments.stage == "all" and not files:
        print(_every_stage(program, arguments.verbose))
    elif not (files or asked) or arguments.verbose:
        print(program.text(verbose=arguments.verbose))
    for vertex in arguments.explain:
        print(program.explain(vertex))
    if arguments.diff:
        print(program.diff(*arguments.diff) or "(no difference)")
    if arguments.code:
        print(program.code, end="")
    for file in files:
        print(f"wrote {file} ({file.stat().st_size / 1024:,.0f} KiB)")
    return 0


def run_check(arguments: argparse.Namespace) -> int:
    """Print the divergence; returns 0, or DIFFERENT where it is above the tolerance."""
    import pccompile

    pc, inputs, target = _compiled(arguments)
    outside = None if pc.loss_fn is not None else _mean_square
    report = pccompile.check(pc, inputs, target, outside)
    print(report)
    tolerance = arguments.tolerance if arguments.tolerance is not None else 1e-5 if pc.rule.exact else None
    if tolerance is not None and report.max_relative_error > tolerance:
        print(f"a gradient differs from autograd's by {report.max_relative_error:.3e}, more than {tolerance:g}")
        return DIFFERENT
    return 0


def run_cost(arguments: argparse.Namespace) -> int:
    """Print the costs; returns 0."""
    pc, inputs, target = _compiled(arguments)
    program = _stage(pc.prepare(inputs, target), arguments.stage)
    stages = list(program.stages.values()) if arguments.stage == "all" else [program]
    for stage in stages:
        if len(stages) > 1:
            print(f"{stage.name}: {stage.why}")
        print(f"{stage.cost(arguments.steps)}\n")
    return 0


def _parser(subparsers: Subparsers, name: str, what: str, examples: str) -> argparse.ArgumentParser:
    """A parser with the arguments that the three commands share."""
    parser = subparsers.add_parser(
        name,
        help=what,
        description=what[0].upper() + what[1:] + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="module:factory")
    parser.add_argument("--input", action="append", default=[], metavar="SHAPE", help="an argument of the model")
    parser.add_argument("--target", metavar="SHAPE", help="what the loss compares the outputs with")
    parser.add_argument("--loss", help="cross_entropy, mse or module:function")
    parser.add_argument("--rule", choices=RULES, default="zil", help="default: zil")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="inference steps (default: 20)")
    parser.add_argument("--step-size", type=float, default=0.1, metavar="X", help="of an inference step (default: 0.1)")
    parser.add_argument("--vertices", default="auto", help="auto (default), nodes or layers")
    parser.add_argument("--eval", action="store_true", help="compile the model in evaluation mode")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the weights and inputs (default: 0)")
    return parser


def _compiled(arguments: argparse.Namespace) -> tuple[PCModule, Any, Any]:
    """The compiled module with its example inputs and target."""
    import pccompile

    torch.manual_seed(arguments.seed)
    model, inputs, target = module_and_inputs(arguments.model)
    inputs = tuple(map(example, arguments.input)) if arguments.input else inputs
    target = example(arguments.target) if arguments.target is not None else target
    if inputs is None:
        raise CommandLineError("there are no inputs to capture with", cure="--input SHAPE, such as --input 1x3x32x32")
    model.train(not arguments.eval)
    rule = build_rule(arguments.rule, arguments.steps, arguments.step_size)
    loss_fn = find_loss(arguments.loss) if arguments.loss else None
    if loss_fn is not None and target is None:
        raise CommandLineError("a loss needs a target", cure="--target SHAPE, such as --target 8:int64:10")
    if loss_fn is None and rule.needs_loss:
        loss_fn, target = _mean_square_to, torch.zeros(())
    return pccompile.compile(model, rule, loss_fn, vertices=arguments.vertices), inputs, target


def _mean_square(outputs: Any) -> torch.Tensor:
    """The sum over the outputs of their mean squares."""
    leaves = [part for part in pytree.tree_leaves(outputs) if isinstance(part, torch.Tensor)]
    return torch.stack([part.square().mean() for part in leaves if part.is_floating_point()]).sum()


def _mean_square_to(outputs: Any, _: torch.Tensor) -> torch.Tensor:
    return _mean_square(outputs)


def _stage(program: Program, name: str | None) -> Program:
    stages = program.stages
    if name is None or name == "all":
        return program
    if name not in stages:
        raise CommandLineError(f"there is no stage {name!r}", cure=f"{', '.join(stages)} or all")
    return stages[name]


def _write(program: Program, arguments: argparse.Namespace) -> list[Path]:
    """Write the files that are asked for, and return them."""
    opened = "all" if arguments.open == ["all"] else arguments.open or "auto"
    texts = {
        arguments.svg: lambda: program.to_svg(opened),
        arguments.dot: lambda: program.to_dot(opened),
        arguments.graphml: program.to_graphml,
        arguments.json: program.to_json,
    }
    wanted = {file: text for file, text in texts.items() if file is not None}
    try:
        for file, text in wanted.items():
            file.write_text(text(), encoding="utf-8")
        if arguments.html is not None:
            title = f"{arguments.model}, {program.rule}"
            program.save_html(arguments.html, arguments.steps, title)
    except OSError as error:
        raise CommandLineError(f"{error.filename}: {error.strerror}") from error
    return [*wanted, *([arguments.html] if arguments.html is not None else [])]


def _every_stage(program: Program, verbose: bool) -> str:
    """The literal program, what each pass changed, and the program after them."""
    stages = list(program.stages.values())
    parts = [stages[0].text(verbose)]
    for before, after in pairwise(stages):
        changes = "\n".join(program.diff(before.name, after.name).splitlines()[2:])
        parts.append(f"{after.name}: {after.why}\n{changes or '(nothing to do here)'}")
    return "\n\n".join([*parts, program.text(verbose)])
