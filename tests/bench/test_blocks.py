"""The benchmark of compile time against the number of equal blocks."""

import argparse

import pytest

from bench import blocks
from bench.steps import compile_time
from bench.steps.models import MODELS, model_named


def test_every_number_of_blocks_is_timed_cold_and_warm_on_every_back_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def cold_and_warm(model: str, rule: str, backend: str, device: str, threads: int) -> tuple[float, float]:
        calls.append((model, rule, backend))
        return (8.0, 1.0) if model == "transformer-2" else (12.0, 3.0)

    monkeypatch.setattr(compile_time, "cold_and_warm", cold_and_warm)
    parser = argparse.ArgumentParser()
    blocks.add_arguments(parser)
    blocks.run(parser.parse_args(["--blocks", "6", "2", "--backends", "aten", "inductor"]))
    assert calls == [(f"transformer-{n}", "zil", backend) for backend in ("aten", "inductor") for n in (2, 6)]
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows[:2] == [["aten", "2", "8.00", "1.00", "1.00", "0.12"], ["aten", "6", "12.00", "1.50", "3.00", "0.25"]]


def test_a_transformer_has_the_blocks_of_its_name() -> None:
    model = model_named("transformer-3").build()
    assert len(model.blocks) == 3
    assert model_named("mlp") is MODELS["mlp"]
    with pytest.raises(KeyError):
        model_named("nonsense")
