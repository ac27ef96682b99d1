"""A run's progress on the terminal: a bar for the models, and a line for each that is done."""

from __future__ import annotations

from types import TracebackType

from rich import progress
from rich.console import Console
from rich.markup import escape

from bench.steps.results import Row

__all__ = ["Display"]


class Display:
    """Shows what is under way.

    Args:
        console: where.
        models: how many there are.
    """

    def __init__(self, console: Console, models: int) -> None:
        self.console = console
        self.bar = progress.Progress(
            progress.SpinnerColumn(),
            progress.BarColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("{task.description}"),
            console=console,
            transient=True,
        )
        self.models = self.bar.add_task("", total=models)

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.stop()

    def doing(self, what: str) -> None:
        """This begins."""
        self.bar.update(self.models, description=escape(what))
        if not self.console.is_terminal:
            self.console.print(escape(what))

    def advance(self, share: float) -> None:
        """This share of a model is done."""
        self.bar.advance(self.models, share)

    def trouble(self, row: Row) -> None:
        """A contestant is not timed."""
        what = f"{row.model}: {row.rule} {row.backend}: {row.status.value}: {row.reason}"
        self.console.print(f"[red]{escape(what)}[/red]")

    def done(self, what: str) -> None:
        """A model is finished."""
        self.console.print(escape(what))
