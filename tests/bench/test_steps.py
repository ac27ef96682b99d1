"""The benchmark of training steps: what it refuses, what it counts, and what it writes."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bench import steps
from bench.steps import campaign, peers
from bench.steps.ceiling import CountedOperations
from bench.steps.contestants import Contestant, autograd_contestants, backend_names, rule_contestants
from bench.steps.exactness import compare
from bench.steps.machine import machine_facts, versions
from bench.steps.measure import Deadline, measure
from bench.steps.memory import highest, peak_bytes
from bench.steps.models import MODELS, QUICK, Model
from bench.steps.peers import PEERS, blocks, handwritten
from bench.steps.report import markdown, write_between_markers
from bench.steps.results import ModelFacts, Results, Row, Status, load, save
from bench.steps.task import Prepared, Task
from bench.steps.timing import Effort, time_steps
from pccompile.backends import BACKENDS

ROOT = Path(__file__).parent.parent.parent
SHORT = Effort(repetitions=2, block_seconds=0.001, contestant_seconds=0.01)


class Silent:
    """Progress that nobody watches."""

    def __init__(self):
        self.troubles = []

    def doing(self, what):
        pass

    def advance(self, share):
        pass

    def trouble(self, row):
        self.troubles.append(row)


def tiny_task():
    def build():
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))

    return Task.of(Model("tiny", "tiny", build, lambda: (torch.randn(7, 6), torch.randint(3, (7,)))), "cpu")


def spoiled(factor):
    """Z-IL with the gradient of one parameter multiplied."""

    def prepare(task):
        right = rule_contestants(["zil"], ["eager"])[0].prepare(task)

        def gradients():
            found = right.gradients()
            found["2.weight"] = found["2.weight"] * factor
            return found

        return Prepared(right.step, gradients, "zil", task.reset)

    return Contestant("zil", f"times {factor}", prepare)


def by_name(rows):
    return {f"{row.rule} {row.backend}": row for row in rows}


@pytest.fixture(scope="module")
def measured():
    torch.manual_seed(0)
    eager = autograd_contestants("cpu")[0]
    peer = Contestant("strict", "handwritten loop", handwritten.prepare)
    contestants = [eager, *rule_contestants(["zil", "fixed", "strict", "incremental"], ["aten"]), peer]
    return measure(tiny_task(), contestants, "cpu", SHORT, Silent())


def results_of(measured):
    facts, rows = measured
    return Results("python -m bench", "today", machine_facts("cpu"), versions(), {}, [facts], rows)


def test_every_rule_and_the_loop_by_hand_are_measured_on_a_small_model(measured):
    _, rows = measured
    assert len(rows) == 6
    assert [row.reason for row in rows if row.status is not Status.MEASURED] == []
    assert all(row.seconds and row.quartiles[0] <= row.median <= row.quartiles[2] for row in rows)
    assert all(row.peak_bytes > 0 and row.flops > 0 for row in rows)


def test_gradients_are_held_to_autograd_or_to_the_eager_back_end(measured):
    rows = by_name(measured[1])
    references = {name: row.agreement.reference for name, row in rows.items()}
    assert references["autograd eager"] == "autograd"
    assert references["zil aten"] == "zil"
    assert references["fixed aten"] == "fixed"
    assert references["strict handwritten loop"] == "strict"
    rounded = {name for name in rows if name.startswith(("fixed", "strict", "incremental"))}
    assert all(row.agreement.bit_equal for name, row in rows.items() if name not in rounded)
    assert all(rows[name].agreement.relative_error < 1e-5 for name in rounded)


@pytest.mark.parametrize("factor", [0.0, 1.01, float("nan")])
def test_a_contestant_with_a_wrong_gradient_is_not_timed(factor):
    progress = Silent()
    rows = by_name(
        measure(tiny_task(), [spoiled(factor), *rule_contestants(["zil"], ["aten"])], "cpu", SHORT, progress)[1]
    )
    wrong = rows[f"zil times {factor}"]
    assert wrong.status is Status.WRONG and not wrong.seconds
    assert wrong.agreement.wrong == ("2.weight",) and "2.weight" in wrong.reason
    assert progress.troubles == [wrong]
    assert rows["zil aten"].seconds


def test_the_guard_lets_float32_noise_pass_and_nothing_else():
    right = {"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(2)}
    assert compare({"a": right["a"] * (1 + 1e-6), "b": torch.full((2,), 1e-7)}, right, "zil").wrong == ()
    assert compare({"a": right["a"] * 1.01, "b": right["b"]}, right, "zil").wrong == ("a",)
    assert compare({"a": right["a"], "b": torch.full((2,), 0.01)}, right, "zil").wrong == ("b",)
    assert compare({"a": right["a"]}, right, "zil").wrong == ("b",)
    assert compare({**right, "c": torch.ones(1)}, right, "zil").wrong == ("c",)
    assert compare(dict(right), right, "zil").bit_equal


def test_a_contestant_that_raises_is_reported_and_the_others_go_on():
    def refuse(task):
        raise ValueError("no\nsuch | thing")

    calls = []

    def falls_over(task):
        right = rule_contestants(["zil"], ["eager"])[0].prepare(task)

        def step():
            calls.append(1)
            if len(calls) > 2:
                raise RuntimeError("worn out")
            right.step()

        return Prepared(step, right.gradients, "zil", task.reset)

    contestants = [Contestant("zil", "refuses", refuse), Contestant("zil", "falls over", falls_over)]
    contestants += rule_contestants(["zil"], ["eager"])
    facts, rows = measure(tiny_task(), contestants, "cpu", SHORT, Silent())
    found = by_name(rows)
    assert (found["zil refuses"].status, found["zil refuses"].reason) == (Status.RAISED, "ValueError: no such | thing")
    assert (found["zil falls over"].status, found["zil falls over"].seconds) == (Status.RAISED, [])
    assert found["zil eager"].seconds
    assert "| tiny | zil | refuses | raised | ValueError: no such / thing |" in markdown(results_of((facts, rows)))


def test_after_the_deadline_no_contestant_begins():
    _, rows = measure(tiny_task(), rule_contestants(["zil"], ["eager"]), "cpu", SHORT, Silent(), Deadline.after(-1))
    assert [(row.status, row.reason) for row in rows] == [(Status.LEFT_OUT, "the time was up")]


def test_the_memory_of_a_step_is_counted_to_the_byte():
    before = torch.ones(100, 100)
    megabyte = 4 * 512 * 512

    def step():
        a = torch.empty(512, 512)
        b = torch.empty(512, 512)
        del a
        c = torch.empty(512, 512)  # in place of a
        del b, c
        return before

    assert peak_bytes(step, "cpu") == 2 * megabyte
    assert peak_bytes(lambda: None, "cpu") == 0


def test_the_highest_sum_does_not_fall_below_what_was_there():
    assert highest([]) == 0
    assert highest([-8, 4]) == 0
    assert highest([4, 4, -8, 2]) == 8


def test_operations_are_counted_forward_and_backward():
    x, weight = torch.randn(3, 4), torch.randn(5, 4, requires_grad=True)
    with CountedOperations() as counted:
        F.linear(x, weight).sum().backward()
    assert counted.flops == 2 * (2 * 3 * 4 * 5)  # the product, and the weight's gradient


def test_strict_inference_costs_more_operations_than_z_il(measured):
    rows = by_name(measured[1])
    assert rows["zil aten"].flops == rows["autograd eager"].flops < rows["strict aten"].flops


def test_all_contestants_take_turns():
    order = []

    def contestant(name):
        return Prepared(lambda: order.append(name), dict, "zil", reset=lambda: None)

    names = ["a", "b", "c"]
    effort = Effort(repetitions=4, block_seconds=0.0, contestant_seconds=100.0)
    times = time_steps({name: contestant(name) for name in names}, effort, failed=lambda *_: None)
    assert {name: len(seconds) for name, seconds in times.items()} == dict.fromkeys(names, 4)
    turns = order[-12:]
    assert all(sorted(turns[i : i + 3]) == names for i in range(0, 12, 3))
    assert {turns[i] for i in range(0, 12, 3)} == set(names)


def test_json_of_a_run_gives_the_same_tables(measured, tmp_path):
    results = results_of(measured)
    save(results, tmp_path / "run.json")
    assert load(tmp_path / "run.json") == results
    assert markdown(load(tmp_path / "run.json")) == markdown(results)
    derived = [row["derived"] for row in json.loads((tmp_path / "run.json").read_text())["rows"]]
    assert derived[0]["ratio_to_autograd"] == 1.0
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="not a run"):
        load(tmp_path / "other.json")


def made_up():
    def row(rule, backend, *seconds, **more):
        return Row("tiny", rule, backend, Status.MEASURED, seconds=list(seconds), **more)

    rows = [
        row("autograd", "eager", 0.002, 0.001, 0.003, peak_bytes=2**20, flops=8_000_000),
        row("autograd", "torch.compile", 0.001),
        row("zil", "aten", 0.004, peak_bytes=2**19, flops=8_000_000),
    ]
    machine = {
        "processor": "a processor",
        "cores": 2,
        "threads": 2,
        "memory_bytes": 2**30,
        "system": "s",
        "python": "3",
    }
    return Results("command", "date", machine, {"torch": "2"}, {}, [ModelFacts("tiny", "tiny", 10, 4e10)], rows)


def test_the_table_shows_ratios_to_autograd_and_to_torch_compile():
    lines = markdown(made_up()).splitlines()
    header = next(line for line in lines if line.startswith("| model") and "of torch.mm" in line)
    cells = [line.strip("| ").split(" | ") for line in (header, next(line for line in lines if "aten" in line))]
    row = dict(zip(*cells, strict=False))  # the last cell is empty
    assert (row["ms a step"], row["× autograd"], row["× torch.compile"]) == ("4.00", "2.00", "4.00")
    assert (row["peak MiB"], row["peak × autograd"], row["of torch.mm"]) == ("0.50", "0.50", "5%")
    assert "first step, cold s" not in row  # nobody has it


def test_the_figure_is_drawn_from_a_run_with_gaps(tmp_path):
    from bench.steps.figure import draw

    results = made_up()
    results.models.append(ModelFacts("untimed", "untimed", 1, 1e9))
    results.rows.append(Row("untimed", "zil", "aten", Status.RAISED, "because"))
    draw(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_the_tables_go_between_the_markers_of_a_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- results -->\nold\n<!-- end of results -->\nafter\n")
    for _ in range(2):
        write_between_markers(page, "new\n")
    assert page.read_text() == "before\n<!-- results -->\n\nnew\n\n<!-- end of results -->\nafter\n"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="has no"):
        write_between_markers(page, "new")


def test_every_back_end_is_timed():
    assert backend_names() == tuple(BACKENDS)


@pytest.mark.parametrize("name", ["mlp", "conv-tanh", "mnist-cnn", "char-lstm"])
def test_the_models_have_a_batch_that_fits_them(name):
    model = MODELS[name]
    inputs, target = model.batch()
    assert model.loss(model.build()(inputs), target).shape == ()


def test_a_chain_is_cut_before_every_layer_with_parameters():
    chain = MODELS["conv-tanh"].build()
    assert [len(block) for block in blocks.blocks(chain)] == [2, 3, 1]
    with pytest.raises(TypeError, match="not a chain"):
        blocks.blocks(nn.Linear(1, 1))


def arguments(*given):
    parser = argparse.ArgumentParser()
    steps.add_arguments(parser)
    return parser.parse_args(given)


def test_what_is_not_given_is_everything():
    choice = campaign.chosen(arguments("--device", "cuda"))
    assert choice.models == tuple(MODELS) and choice.backends == backend_names() and choice.peers == PEERS
    assert choice.compile_times and choice.limit is None


def test_the_kernels_are_timed_where_they_run():
    on_cpu = campaign.chosen(arguments("--device", "cpu")).backends
    assert set(backend_names()) - set(on_cpu) == {"triton"}


def test_quick_leaves_out_peers_and_compile_times():
    choice = campaign.chosen(arguments("--quick", "--rules", "zil"))
    assert (choice.models, choice.rules, choice.peers, choice.compile_times) == (QUICK, ("zil",), (), False)
    assert choice.limit == campaign.QUICK_LIMIT


def test_a_peer_that_is_not_there_is_named_with_the_reason(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    contestants = peers.peer_contestants(("torch2pc", "jpc"), None)
    _, rows = measure(tiny_task(), contestants, "cpu", SHORT, Silent())
    assert [(row.backend, row.status, row.reason) for row in rows] == [
        ("Torch2PC", Status.LEFT_OUT, "its folder was not given (--torch2pc)"),
        ("jpc", Status.LEFT_OUT, "jpc is not installed"),
    ]


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(SystemExit, match="there is no model 'nonsense'; there are mlp, "):
        campaign.chosen(arguments("--models", "nonsense"))


def test_the_command_measures_and_a_finished_run_is_reported_again(tmp_path):
    run = [sys.executable, "-m", "bench", "--output", str(tmp_path / "out"), "--threads", "1"]
    small = ["--quick", "--models", "mlp", "--rules", "zil", "--backends", "aten", "--no-torch-compile"]
    done = subprocess.run([*run, *small], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "| mlp | aten |" in done.stdout
    results = load(tmp_path / "out" / "results.json")
    assert [(row.rule, row.backend) for row in results.rows] == [("autograd", "eager"), ("zil", "aten")]
    assert "--quick" in results.command
    report = arguments("--report", str(tmp_path / "out" / "results.json"), "--output", str(tmp_path / "again"))
    steps.run(report)
    for name in ("results.md", "results.json", "results.png"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_wrong_gradients_make_the_exit_code_one(tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "begin", lambda *_: made_up())
    monkeypatch.setattr(campaign, "measure_all", lambda results, *_: results.rows.append(wrong))
    wrong = Row("tiny", "zil", "eager", Status.WRONG, "the gradients of a are wrong")
    with pytest.raises(SystemExit) as ended:
        steps.run(arguments("--quick", "--output", str(tmp_path)))
    assert ended.value.code == 1
