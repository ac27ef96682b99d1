"""explain and diff answer what a reader asks."""

import pytest
import torch
from models import ResNet, Skips

import pccompile
from pccompile.errors import UsageError

PROGRAM = pccompile.compile(ResNet(), example_inputs=torch.randn(2, 3, 8, 8)).program


def test_explain_says_who_predicts_who_reads_when_it_learns_and_what_was_removed():
    text = PROGRAM.explain("layer1.0.conv1")
    level = PROGRAM.vertex("layer1.0.conv1").level
    assert "predicted from: stem, layer1.0.conv1.weight" in text
    assert "its value is read by: layer1.0.bn1" in text
    assert f"learns: layer1.0.conv1.weight at [{level}, {level + 1})" in text
    for stage in ("zero errors", "liveness", "reuse", "error state"):
        assert f"    {stage}: " in text
    assert "wavefront" in text and "models.py:" in text


def test_explain_knows_delays_that_a_pass_removed_and_parameters_that_are_frozen():
    delay = next(name for name in PROGRAM.stages["level"].graph if ".delay_" in name)
    assert "delay vertex" in PROGRAM.explain(delay)
    assert "bypass: removed the vertex" in PROGRAM.explain(delay)
    assert "learned by: fc" in PROGRAM.explain("fc.weight")
    model = ResNet()
    model.fc.bias.requires_grad_(False)
    assert "frozen" in pccompile.compile(model, example_inputs=torch.randn(2, 3, 8, 8)).program.explain("fc.bias")


def test_explain_of_an_unknown_vertex_suggests_a_near_one():
    with pytest.raises(UsageError, match=r"layer1\.0\.conv1"):
        PROGRAM.explain("layer1.0.conv11")


def test_diff_shows_what_a_pass_removed_and_nothing_for_the_same_stage():
    text = PROGRAM.diff("literal", "liveness")
    assert text.startswith("--- literal\n+++ liveness\n")
    assert any(line.startswith("-    Infer(fc") or line.startswith("-    Infer(stem)") for line in text.splitlines())
    assert PROGRAM.diff("reuse", "reuse") == ""
    with pytest.raises(UsageError, match="'literal'"):
        PROGRAM.diff("literal", "nowhere")


def test_stages_hold_every_pass_in_order():
    assert list(PROGRAM.stages) == ["literal", *pccompile.ZIL.passes]
    assert PROGRAM.stages["bypass"] is PROGRAM


def test_the_code_is_python_with_module_paths_as_names():
    code = pccompile.compile(Skips(), example_inputs=torch.randn(2, 4)).program.code
    compile(code, "program", "exec")
    assert "def prediction_sweep(self, run, x_value" in code
    assert "a_error = relax(None, 1.0" in code and "a_weight_gradient = learn(" in code
