"""The report of a campaign on a GPU, and the pages that show its figures."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from bench.gpu.report import MARKER, section, write_report
from bench.gpu.resources import Use, resource_table
from bench.gpu.state import Key, State
from bench.gpu.time_table import time_table
from bench.gpu.traffic import EXAMPLES, traffic_table
from bench.gpu.work import Outcome, Status, Work
from bench.steps.results import ModelFacts, Results, Row, load, save
from bench.steps.results import Status as RowStatus

DOCS = Path(__file__).parent.parent.parent / "docs"
KEY = Key("abc", "123", "a GPU", "", "2.13", "3.7")


def between(page, name):
    text = (DOCS / page).read_text(encoding="utf-8")
    return text.partition(f"<!-- {name} -->")[2].partition(f"<!-- end of {name} -->")[0].strip()


@pytest.fixture
def folder(tmp_path):
    """A campaign whose times of one model and launches of another are there."""
    state = State.at(tmp_path, KEY)
    state.command, state.date = "python -m bench gpu", "today"
    state.put("check-aten", Outcome(Status.FAILED, "a gradient | is wrong"))
    launches = Work(tmp_path / "parts" / "launches-mlp.json", asdict(KEY))
    counts = {"launches": 1, "kernels": 9, "copies": 2, "fills": 0, "target": "≤ 8", "met": False, "names": {}}
    launches.add("zil triton", counts)
    launches.add("strict aten", {"raised": "RuntimeError: no"})

    def row(rule, backend, *seconds):
        return Row("mlp", rule, backend, RowStatus.MEASURED, seconds=list(seconds), flops=1_000_000)

    rows = [row("autograd", "eager", 0.004), row("autograd", "torch.compile", 0.001)]
    rows += [row("zil", "aten", 0.003), row("zil", "triton", 0.002), row("strict", "handwritten loop", 0.5)]
    rows += [row("levelled", "auto", 0.004)]
    machine = {"driver": "550", "cuda": "12.8"}
    results = Results("c", "d", machine, {}, {}, [ModelFacts("mlp", "mlp", 1, 1e9)], rows)
    (tmp_path / "times" / "time-mlp").mkdir(parents=True)
    save(results, tmp_path / "times" / "time-mlp" / "results.json")
    Work(tmp_path / "parts" / "time-mlp.json", asdict(KEY)).add("results", {})
    return tmp_path


def test_the_report_names_device_driver_versions_command_and_commit(folder):
    text = section(folder)
    assert "`python -m bench gpu`, today" in text
    for fact in ("a GPU", "driver 550", "CUDA 12.8", "torch 2.13", "triton 3.7", "commit abc", "the shipped tables"):
        assert fact in text


def test_the_quickest_back_end_is_shown_beside_autograd_and_the_others(folder):
    text = section(folder)
    assert "| mlp | Z-IL | triton | 2.00 | 0.50 (≤ 0.50: met) | 2.00 (≤ 0.95: not met) |  | 50% | aten 3.00 |" in text
    levelled = "Fixed prediction on the levelled graph, n = 20, η = 0.1"
    assert f"| mlp | {levelled} | auto | 4.00 | 1.00 | 4.00 |  | 25% |  |" in text
    missing = "not measured: `python -m bench gpu --part"
    assert f"| mlp | Strict, T = 20 | {missing} time-mlp` |  | < 1.00 |  |  |  |  |" in text  # a peer is not ours
    assert f"| resnet18-128 | Z-IL | {missing} time-resnet18-128-zil` |  |  | ≤ 1.00 |  |  |  |" in text
    assert f"| resnet18-128 | {levelled} | {missing} time-resnet18-128-levelled` |" in text


def test_what_a_target_compares_with_is_named_where_it_is_missing(folder):
    path = folder / "times" / "time-mlp" / "results.json"
    results = load(path)
    results.rows = [row for row in results.rows if row.backend != "torch.compile"]
    save(results, path)
    assert "| 0.50 (≤ 0.50: met) | not measured: `python -m bench gpu --part time-mlp` (≤ 0.95) |" in section(folder)


def test_strict_inference_is_shown_beside_jpc(tmp_path):
    def row(rule, backend, seconds):
        return Row("mlp-tanh", rule, backend, RowStatus.MEASURED, seconds=[seconds])

    rows = [row("autograd", "eager", 0.001), row("strict", "triton", 0.002), row("strict", "jpc", 0.02)]
    results = Results("c", "d", {}, {}, {}, [ModelFacts("mlp-tanh", "mlp", 1, 1e9)], rows)
    (line,) = [line for line in time_table({"time-mlp-tanh": results}).splitlines() if "| mlp-tanh | Strict" in line]
    assert "| triton | 2.00 | 2.00 (< 1.00: not met) |  | 0.10 (≤ 0.20: met) |  | jpc 20.0 |" in line


def test_launches_are_shown_beside_their_target(folder):
    text = section(folder)
    assert "| mlp | Z-IL | triton | 9 | 2 | 0 | ≤ 8 | not met | 1 |" in text
    assert "RuntimeError: no" in text
    missing = "not measured: `python -m bench gpu --part launches-"
    assert f"| mlp | Fixed prediction on the levelled graph, n = 1, η = 0.1 | {missing}mlp` |  |  |  | ≤ 8 |" in text
    assert f"| mnist-cnn | Strict, T = 20 | {missing}mnist-cnn` |  |  |  | ≤ 8, 1 for the sweep |" in text
    assert f"| resnet18-128 | Z-IL | {missing}resnet18-128` |  |  |  | ≤ 84 |" in text
    assert (
        "| resnet18-128 | Fixed prediction, n = 20, η = 0.1 | not measured: `python -m bench gpu --part launches"
        not in text
    )


def test_failed_checks_and_what_was_measured_in_spite_of_them_are_named(folder):
    assert "| check-aten | failed | a gradient / is wrong |" in section(folder)
    assert "although" not in section(folder)
    state = State.read(folder)
    state.ignored = True
    state.save()
    assert "measured although checks had not passed" in section(folder)


def test_results_of_another_commit_are_not_shown(folder):
    state = State.read(folder)
    state.key["commit"] = "def"
    state.save()
    assert "not measured: `python -m bench gpu --part time-mlp`" in section(folder)
    assert "not measured: `python -m bench gpu --part launches-mlp`" in section(folder)


def test_tuned_configurations_are_listed(folder):
    tuned = {"configuration": {"rows": 64}, "ratio": 0.8, "precision": "half", "size": "small"}
    Work(folder / "parts" / "tune-linear_error-half.json", asdict(KEY)).add("small", tuned)
    assert "| linear_error | half | small | 0.80 | rows 64 |" in section(folder)


def test_a_report_is_markdown_json_and_a_section_of_a_page(folder, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n<!-- {MARKER} -->\nold\n<!-- end of {MARKER} -->\nafter\n")
    write_report(folder, page)
    assert "| mlp | Z-IL | triton |" in page.read_text() and "old" not in page.read_text()
    assert "| mlp | Z-IL | triton |" in (folder / "report.md").read_text()
    content = json.loads((folder / "results.json").read_text())
    assert content["campaign"]["key"] == asdict(KEY)
    assert content["parts"]["launches-mlp"]["items"]["zil triton"]["kernels"] == 9
    assert content["steps"]["time-mlp"]["rows"][2]["seconds"] == [0.003]


def test_without_a_campaign_every_figure_is_not_measured_and_no_folder_is_made(tmp_path):
    text = section(tmp_path / "none")
    assert "No GPU has been measured yet" in text and "Have not run" in text
    assert not any(cell.strip().replace(".", "").isdigit() for line in text.splitlines() for cell in line.split("|"))
    write_report(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_page_of_benchmarks_has_a_report():
    shown = between("benchmarks.md", MARKER)
    assert "### Kernels launched by a step" in shown
    if "No GPU has been measured yet" in shown:
        assert shown == section(DOCS / "none").strip()


def test_the_page_of_kernels_has_the_bytes_that_the_formulas_give():
    assert between("kernels.md", "kernel bytes") == traffic_table()


def test_no_kernel_moves_less_than_the_minimum_or_more_than_what_it_replaces():
    for traffic in EXAMPLES:
        assert traffic.minimum <= traffic.moved
        assert traffic.unfused is None or traffic.moved < traffic.unfused


def test_a_product_moves_its_operands_and_result_once():
    predict = next(traffic for traffic in EXAMPLES if traffic.kernel == "linear_predict")
    assert predict.minimum == 2 * (8192 * 4096 + 4096 * 4096 + 4096 + 8192 * 4096)


def test_the_page_of_kernels_names_every_kernel():
    kernels = DOCS.parent / "kernels"
    page = (DOCS / "kernels.md").read_text(encoding="utf-8")
    assert [path.parent.name for path in kernels.glob("*/configurations.py") if path.parent.name not in page] == []


def test_resources_are_the_largest_of_a_configurations_variants():
    uses = [
        Use("linear_predict", "half, large", "sm_90", 168, 65536, 0),
        Use("linear_predict", "half, large", "sm_90", 200, 32768, 0),
        Use("linear_predict", "half, large", "gfx942", 128, 1024, 16),
    ]
    assert resource_table(iter(uses)).splitlines()[-1] == (
        "| linear_predict | half, large |  | 200, 64 KiB |  | 128, 1 KiB, 16 B spilled |"
    )
