"""Training steps on the GPU, by the campaign of bench.steps."""

from __future__ import annotations

import time
from collections.abc import Callable

from bench.gpu.models import GPU_MODELS
from bench.gpu.work import OutOfTime, Work
from bench.steps.campaign import Choice, measure_all, nothing_yet
from bench.steps.contestants import backend_names
from bench.steps.peers import PEERS
from bench.steps.results import Status
from bench.steps.timing import Effort

__all__ = ["BACKENDS", "RULES", "time_model"]

RULES = ("zil", "fixed", "levelled", "strict")
BACKENDS = ("aten", "inductor", "triton", "auto")
EFFORT = Effort(repetitions=20, block_seconds=0.05, contestant_seconds=4.0)
TIMING_SECONDS = 120.0  # of a part: contestants have begun before that


def time_model(name: str, rules: tuple[str, ...], device: str = "cuda") -> Callable[[Work], None]:
    """A part that times a model under some rules, beside autograd's modes and, under strict, peers."""

    def run(work: Work) -> None:
        work.begin(TIMING_SECONDS)
        start, before = time.monotonic(), "results" in work.items
        choice = Choice(
            models=(name,),
            rules=rules,
            backends=tuple(backend for backend in BACKENDS if backend in backend_names()),
            peers=PEERS,
            torch2pc=None,
            device=device,
            threads=2,
            effort=EFFORT,
            compile_times=False,
            torch_compile=True,
            limit=work.left - TIMING_SECONDS,
        )
        date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        results = nothing_yet(choice, f"python -m bench gpu --part {work.path.stem}", date)
        folder = work.folder / "times" / work.path.stem
        measure_all(results, choice, folder, start, GPU_MODELS)
        late = [row for row in results.rows if row.status is Status.LEFT_OUT]
        work.add("results", {"path": str(folder.relative_to(work.folder) / "results.json"), "left_out": len(late)})
        for row in results.wrong:
            work.fail(f"{row.model}: {row.rule} {row.backend}: {row.reason}")
        if late and not before and not work.failures:
            names = ", ".join(f"{row.rule} {row.backend}" for row in late)
            raise OutOfTime(f"once more, with what has been compiled now, for there was no time for {names}")

    return run
