"""The commands inspect, check and cost."""

import networkx as nx
import pytest
import torch
from torch import nn

import pccompile
from pccompile.cli import FAILURE, OK, USAGE, main
from pccompile.inspection.command import DIFFERENT
from pccompile.inspection.command_inputs import example

MODELS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))
        self.fc = nn.Linear(6, 3)
    def forward(self, x):
        return self.fc(x + self.block(x))

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.fc = nn.Embedding(11, 4), nn.Linear(4, 3)
    def forward(self, tokens):
        return self.fc(self.embedding(tokens).mean(1))

def with_inputs():
    return Net(), torch.randn(2, 6)

def nothing():
    return 3

def breaks():
    raise ValueError("no weights here")

def half():
    return torch.full((2, 6), 0.5)
"""
NET = ["inspected_models:Net", "--input", "4x6"]


@pytest.fixture(autouse=True)
def models(tmp_path, monkeypatch):
    """A module of models in the working directory."""
    (tmp_path / "inspected_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path


def test_inspect_prints_the_table_of_the_program(capsys):
    assert main(["inspect", *NET]) == OK
    text = capsys.readouterr().out
    assert text.startswith("ZIL program, stage 'bypass'")
    assert "block.0" in text and "Learn[" in text
    assert main(["inspect", *NET, "--verbose"]) == OK
    text = capsys.readouterr().out
    assert pccompile.Program.parse(text).vertex("fc").level == 0


def test_inspect_prints_every_stage_one_stage_a_vertex_a_diff_and_the_code(capsys):
    assert main(["inspect", *NET, "--stage", "all"]) == OK
    text = capsys.readouterr().out
    assert "stage 'literal'" in text and "stage 'bypass'" in text and "liveness: what is not read" in text
    assert main(["inspect", *NET, "--stage", "level"]) == OK
    assert "x" in capsys.readouterr().out
    options = ["--explain", "block.0", "--diff", "literal", "liveness", "--code"]
    assert main(["inspect", *NET, *options]) == OK
    text = capsys.readouterr().out
    assert "learns: block.0.weight" in text and "--- literal" in text and "def error_sweep(" in text


def test_inspect_writes_a_page_pictures_and_data(models, capsys):
    files = {flag: models / f"out.{flag}" for flag in ("html", "svg", "dot", "graphml", "json")}
    words = [word for flag, file in files.items() for word in (f"--{flag}", str(file))]
    assert main(["inspect", *NET, *words, "--open", "block", "--rule", "zil", "--stage", "all"]) == OK
    printed = capsys.readouterr().out
    assert all(f"wrote {file}" in printed for file in files.values())
    program = pccompile.Program.from_json(files["json"].read_text())
    assert list(program.stages) == ["literal", *pccompile.ZIL.passes]
    assert "<svg" in files["svg"].read_text() and "block.0" in files["svg"].read_text()
    assert 'subgraph "cluster block"' in files["dot"].read_text()
    assert nx.read_graphml(files["graphml"]).has_edge("block.0", "block.1")
    assert "inspected_models:Net, ZIL" in files["html"].read_text()


def test_the_factory_may_return_inputs_and_inputs_may_come_from_a_function(capsys):
    assert main(["inspect", "inspected_models:with_inputs"]) == OK
    assert "f32[2, 6]" in capsys.readouterr().out
    assert main(["inspect", "inspected_models:Net", "--input", "inspected_models:half"]) == OK
    assert main(["inspect", "inspected_models:Words", "--input", "5x3:int64:11"]) == OK
    assert "i64[5, 3]" in capsys.readouterr().out


@pytest.mark.parametrize("rule", ["zil", "fixed-prediction", "strict", "incremental"])
def test_every_rule_can_be_inspected_and_costed(rule, capsys):
    assert main(["inspect", *NET, "--rule", rule, "--steps", "4"]) == OK
    assert main(["cost", *NET, "--rule", rule, "--steps", "4"]) == OK
    assert capsys.readouterr().out.splitlines()[-2].startswith("ratio")


def test_check_reports_bit_equality_and_exits_with_3_above_the_tolerance(capsys):
    assert main(["check", *NET]) == OK
    assert capsys.readouterr().out.splitlines()[-1].split()[-1] == "yes"
    losses = ["--target", "4:int64:3", "--loss", "cross_entropy"]
    assert main(["check", *NET, *losses]) == OK
    assert main(["check", *NET, *losses, "--rule", "strict", "--steps", "3"]) == OK
    assert main(["check", *NET, *losses, "--rule", "strict", "--steps", "3", "--tolerance", "1e-6"]) == DIFFERENT
    assert "a gradient differs from autograd's by" in capsys.readouterr().out


def test_cost_compares_with_autograd_and_shows_all_stages(capsys):
    assert main(["cost", *NET, "--stage", "all"]) == OK
    text = capsys.readouterr().out
    ratios = [line.split()[1] for line in text.splitlines() if line.startswith("ratio")]
    assert len(ratios) == 7 and ratios[-1] == "1.00" and float(ratios[0]) > 1.5


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["inspect", "inspected_models:Net"], USAGE, "--input SHAPE"),
        (["inspect", "inspected_models"], USAGE, "is no model"),
        (["inspect", "inspected_models:Nowhere"], USAGE, "Nowhere"),
        (["inspect", "inspected_models:nothing"], FAILURE, "returned a int"),
        (["inspect", "inspected_models:breaks", "--input", "1"], FAILURE, "no weights here"),
        (["inspect", "inspected_models:Net", "--input", "axb"], USAGE, "'axb' is no shape"),
        (["inspect", "inspected_models:Net", "--input", "4x6:float33"], USAGE, "no dtype float33"),
        (["inspect", "inspected_models:Net", "--input", "4x5"], FAILURE, "cause:"),
        (["inspect", *NET, "--stage", "nowhere"], USAGE, "no stage 'nowhere'"),
        (["inspect", *NET, "--explain", "fc1"], USAGE, "no vertex is called 'fc1'"),
        (["inspect", *NET, "--svg", "/nowhere/out.svg"], USAGE, "/nowhere/out.svg"),
        (["inspect", *NET, "--svg", "out.svg", "--open", "blocks"], USAGE, "no group is called 'blocks'"),
        (["inspect", *NET, "--rule", "strict", "--steps", "0"], USAGE, "steps=0"),
        (["check", *NET, "--loss", "mse"], USAGE, "a loss needs a target"),
        (["cost", *NET, "--steps", "0", "--rule", "strict"], USAGE, "steps=0"),
    ],
)
def test_errors_have_a_message_an_exit_code_and_no_traceback(words, code, told, capsys):
    assert main(words) == code
    message = capsys.readouterr().err
    assert told in message and "Traceback" not in message


def test_shapes_become_tensors():
    assert example("8x3").shape == (8, 3) and example("8x3:float64").dtype == torch.float64
    assert example("scalar").shape == ()
    integers = example("64:int32:3")
    assert integers.dtype == torch.int32 and 0 <= int(integers.min()) <= int(integers.max()) == 2
    assert isinstance(nn.Linear(3, 2)(example("5x3")), torch.Tensor)
