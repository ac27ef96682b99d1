"""A whole run: what was chosen, every model in turn, compile times, and what is written."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.markdown import Markdown

from bench.steps.compile_time import cold_and_warm
from bench.steps.contestants import Contestant, autograd_contestants, backend_names, rule_contestants
from bench.steps.machine import machine_facts, set_up, versions
from bench.steps.measure import Deadline, measure
from bench.steps.models import MODELS, QUICK, Model
from bench.steps.peers import PEERS, peer_contestants
from bench.steps.progress import Display
from bench.steps.report import markdown, write_between_markers
from bench.steps.results import Results, Row, Status, save
from bench.steps.task import RULES, Task
from bench.steps.timing import Effort

__all__ = ["Choice", "begin", "chosen", "listing", "measure_all", "nothing_yet", "write"]

QUICK_RULES = ("zil", "fixed", "strict")
QUICK_LIMIT = 75.0  # a contestant that began by then may take a while to compile, and timing comes after


@dataclass(frozen=True)
class Choice:
    """What a run measures; the arguments of the command line, with their defaults filled in."""

    models: tuple[str, ...]
    rules: tuple[str, ...]
    backends: tuple[str, ...]
    peers: tuple[str, ...]
    torch2pc: Path | None
    device: str
    threads: int
    effort: Effort
    compile_times: bool
    torch_compile: bool
    limit: float | None


def chosen(arguments: argparse.Namespace) -> Choice:
    """Fill in what was not given.

    Raises:
        SystemExit: a name that does not exist.
    """
    quick = arguments.quick
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    effort = Effort(repetitions=7, block_seconds=0.05, contestant_seconds=1.0) if quick else Effort()
    if arguments.repetitions:
        effort = Effort(arguments.repetitions, effort.block_seconds, effort.contestant_seconds)
    return Choice(
        models=_names("model", arguments.models, MODELS, QUICK if quick else tuple(MODELS)),
        rules=_names("rule", arguments.rules, RULES, QUICK_RULES if quick else tuple(RULES)),
        backends=_names("back end", arguments.backends, backend_names(), backend_names(device)),
        peers=_names("peer", arguments.peers, PEERS, () if quick else PEERS),
        torch2pc=arguments.torch2pc,
        device=device,
        threads=arguments.threads,
        effort=effort,
        compile_times=not quick if arguments.compile_times is None else arguments.compile_times,
        torch_compile=arguments.torch_compile,
        limit=QUICK_LIMIT if quick and arguments.limit is None else arguments.limit,
    )


def listing() -> str:
    """What can be chosen."""
    models = "\n".join(f"  {model.name:<12} {model.title}" for model in MODELS.values())
    rest = (("rules", RULES), ("back ends", backend_names()), ("peers", PEERS))
    return f"models\n{models}\n" + "\n".join(f"{what:<12}   {' '.join(names)}" for what, names in rest)


def begin(choice: Choice, command: str, date: str) -> Results:
    """Set threads and precision for the process, and note what it runs on."""
    set_up(choice.device, choice.threads)
    return nothing_yet(choice, command, date)


def nothing_yet(choice: Choice, command: str, date: str) -> Results:
    """Results without rows: what is to be measured, on what, in a process that is set up."""
    options = asdict(choice)
    options["torch2pc"] = choice.torch2pc is not None
    return Results(command, date, machine_facts(choice.device), versions(), options)


def measure_all(
    results: Results, choice: Choice, folder: Path, start: float, models: Mapping[str, Model] = MODELS
) -> None:
    """Measure every model; the JSON in `folder` is written after each, so that no result is lost."""
    folder.mkdir(parents=True, exist_ok=True)
    count = len(choice.models)
    shares = [None if choice.limit is None else choice.limit * (place + 1) / count for place in range(count)]
    deadlines = [Deadline.after(share) for share in shares]
    with Display(Console(), count) as display:
        for name, deadline in zip(choice.models, deadlines, strict=True):
            task = Task.of(models[name], choice.device)
            contestants = _contestants(choice, task)
            facts, rows = measure(task, contestants, choice.device, choice.effort, display, deadline)
            results.models.append(facts)
            results.rows += rows
            del task
            if choice.compile_times:
                _time_compilation(rows, choice, display)
            results.seconds = time.monotonic() - start
            save(results, folder / "results.json")
            display.done(f"{name}: {sum(bool(row.seconds) for row in rows)} of {len(rows)} contestants timed")


def write(results: Results, folder: Path, page: Path | None) -> None:
    """Print the tables; write them, the figure and the JSON."""
    from bench.steps.figure import draw

    folder.mkdir(parents=True, exist_ok=True)
    text = markdown(results)
    save(results, folder / "results.json")
    (folder / "results.md").write_text(text, encoding="utf-8")
    draw(results, folder / "results.png")
    if page is not None:
        write_between_markers(page, text)
    console = Console()
    console.print(Markdown(text) if console.is_terminal else text, soft_wrap=not console.is_terminal)
    console.print(f"written: {folder}/results.json, results.md, results.png")


def _names(what: str, given: list[str] | None, known: object, default: tuple[str, ...]) -> tuple[str, ...]:
    if given is None:
        return default
    unknown = [name for name in given if name not in known]  # type: ignore[operator]
    if unknown:
        raise SystemExit(f"there is no {what} {unknown[0]!r}; there are {', '.join(known)}")  # type: ignore[arg-type]
    return tuple(given)


def _contestants(choice: Choice, task: Task) -> list[Contestant]:
    references = autograd_contestants(choice.device)
    with_peers = task.peers and "strict" in choice.rules
    return [
        *(references if choice.torch_compile else references[:1]),
        *rule_contestants(choice.rules, choice.backends),
        *(peer_contestants(choice.peers, choice.torch2pc) if with_peers else []),
    ]


def _time_compilation(rows: list[Row], choice: Choice, display: Display) -> None:
    """First steps in fresh processes, of what compiles something."""
    compiles = {(c.rule, c.backend) for c in autograd_contestants(choice.device)[1:]}
    compiles |= {(c.rule, c.backend) for c in rule_contestants(choice.rules, choice.backends)}
    for row in rows:
        if row.status is not Status.MEASURED or (row.rule, row.backend) not in compiles:
            continue
        display.doing(f"{row.model}: first step of {row.rule} {row.backend}, cold and warm")
        try:
            row.cold_seconds, row.warm_seconds = cold_and_warm(
                row.model, row.rule, row.backend, choice.device, choice.threads
            )
        except RuntimeError as error:
            row.reason = f"compile time: {' '.join(str(error).split())[-300:]}"
            display.trouble(row)
