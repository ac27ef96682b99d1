"""Judge many entries, over several processes."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache

import torch
from rich.progress import Progress

from bench.operators.cases import Entry, entries
from bench.operators.verdict import Outcome, Verdict, judge

__all__ = ["Result", "sweep"]


@dataclass(frozen=True)
class Result:
    """What an entry came to: the outcome of each of its samples."""

    name: str
    outcomes: tuple[Outcome, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst verdict on a sample; not applicable counts only where no sample can be compared."""
        return max((outcome.verdict for outcome in self.outcomes), default=Verdict.NOT_APPLICABLE)

    @property
    def difference(self) -> float:
        """The largest relative difference of a sample."""
        return max((outcome.difference for outcome in self.outcomes), default=0.0)

    def reasons(self, verdict: Verdict) -> Counter[str]:
        """Why samples got this verdict, with how many did."""
        if verdict is Verdict.WITHIN_TOLERANCE:
            within = sum(outcome.verdict is verdict for outcome in self.outcomes)
            return Counter({f"relative difference of at most {self.difference:.1e}": within})
        return Counter(outcome.reason for outcome in self.outcomes if outcome.verdict is verdict)


def sweep(wanted: Callable[[str], bool], samples: int, jobs: int) -> list[Result]:
    """Judge at most `samples` samples (and as many in place) of every entry that is wanted, over `jobs` processes."""
    names = [name for name in _entries() if wanted(name)]
    results: dict[str, Result] = {}
    with Progress(transient=True) as progress:
        task = progress.add_task("operators", total=len(names))
        for result in _judged(names, samples, jobs):
            results[result.name] = result
            progress.advance(task)
        for name in [name for name in names if name not in results]:  # some process died: whose fault was it?
            alone = list(_judged([name], samples, 1))
            results[name] = alone[0] if alone else Result(name, (Outcome(Verdict.WRONG, reason="the process died"),))
            progress.advance(task)
    return [results[name] for name in names]


def _judged(names: list[str], samples: int, jobs: int) -> Iterable[Result]:
    """Results as they come; fewer if a process dies."""
    context = multiprocessing.get_context("fork")  # which keeps PyTorch's lists, seconds to import
    with ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running = [pool.submit(_judge_entry, name, samples) for name in names]
        try:
            for future in as_completed(running):
                yield future.result()
        except BrokenProcessPool:
            return


def _judge_entry(name: str, samples: int) -> Result:
    return Result(name, tuple(judge(case) for case in _entries()[name].cases(samples)))


@cache
def _entries() -> dict[str, Entry]:
    return {entry.name: entry for entry in entries()}
