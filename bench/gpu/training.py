"""Training steps on the GPU, by the campaign of bench.steps: its models, MLPs at larger batches, and a large one."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch
from torch import nn

from bench.gpu.work import OutOfTime, Work
from bench.steps.campaign import Choice, measure_all, nothing_yet
from bench.steps.contestants import backend_names
from bench.steps.models import MODELS, Model
from bench.steps.peers import PEERS
from bench.steps.results import Status
from bench.steps.timing import Effort

__all__ = ["BATCHES", "LARGE", "MEASURED", "RULES", "time_model"]

RULES = ("zil", "fixed", "strict")
BACKENDS = ("aten", "inductor", "triton", "auto")
BATCHES = (128, 256, 512)  # bench.steps has 64
WIDTH, LARGE_BATCH = 4096, 8192
EFFORT = Effort(repetitions=20, block_seconds=0.05, contestant_seconds=4.0)
TIMING_SECONDS = 120.0  # of a part: contestants have begun before that


def _mlp_at(batch: int) -> Model:
    def images() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(batch, 784), torch.randint(10, (batch,))

    title = MODELS["mlp"].title.replace("batch 64", f"batch {batch}")
    return dataclasses.replace(MODELS["mlp"], name=f"mlp-{batch}", title=title, batch=images)


def _wide() -> nn.Sequential:
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(4)]
    chain = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2], nn.ReLU(), layers[3])
    return chain.to(torch.bfloat16)


def _wide_batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(LARGE_BATCH, WIDTH).to(torch.bfloat16), torch.randint(WIDTH, (LARGE_BATCH,))


LARGE = Model(
    name="mlp-large",
    title=f"MLP of 4 layers, {WIDTH} wide, ReLU, batch {LARGE_BATCH}, bfloat16",
    build=_wide,
    batch=_wide_batch,
    tolerance=3e-2,
)
NAMES = ("mlp", "mlp-tanh", "mnist-cnn", "conv-tanh", "cifar-cnn", "resnet18", "char-lstm", "gpt-small")
MEASURED: dict[str, Model] = {
    model.name: model for model in (*(MODELS[name] for name in NAMES), *map(_mlp_at, BATCHES), LARGE)
}


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
        measure_all(results, choice, folder, start, MEASURED)
        late = [row for row in results.rows if row.status is Status.LEFT_OUT]
        work.add("results", {"path": str(folder.relative_to(work.folder) / "results.json"), "left_out": len(late)})
        for row in results.wrong:
            work.fail(f"{row.model}: {row.rule} {row.backend}: {row.reason}")
        if late and not before and not work.failures:
            names = ", ".join(f"{row.rule} {row.backend}" for row in late)
            raise OutOfTime(f"once more, with what has been compiled now, for there was no time for {names}")

    return run
