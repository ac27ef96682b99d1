"""The campaign on a GPU, without one: resuming, refusing, ending in time, and what the command says."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import gpu
from bench.gpu import check, runner
from bench.gpu.check import files_of_tests, run_tests
from bench.gpu.operations import OPERATIONS
from bench.gpu.parts import GROUPS, all_parts, chosen_parts, timed
from bench.gpu.runner import PART_SECONDS, Part, run_parts, start
from bench.gpu.state import Key, State, digest
from bench.gpu.work import Outcome, OutOfTime, Status, Work, attempt

ROOT = Path(__file__).parent.parent.parent
KEY = Key("abc", "123", "a GPU", "", "2.13", "3.7")


def nothing(work):
    pass


CHECK = Part("check-it", "check", "the check", 10.0, nothing)
TIME = Part("time-it", "time", "the clock", 10.0, nothing)


class Clock:
    """Seconds, which pass when a part is launched."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Launcher:
    """Outcomes of launches, in their order."""

    def __init__(self, clock, **outcomes):
        self.clock, self.outcomes, self.launched = clock, outcomes, []

    def __call__(self, part, state, seconds):
        self.launched.append((part.name, seconds))
        outcome = self.outcomes[part.group].pop(0)
        self.clock.now += outcome.seconds
        return outcome


@pytest.fixture
def campaign(tmp_path):
    """Runs a check and a part that times; keeps what was said."""
    clock, said = Clock(), []

    def run(check=(), timing=(), parts=(CHECK, TIME), **options):
        state = State.at(tmp_path, KEY)
        launcher = Launcher(clock, check=list(check), time=list(timing))
        code = run_parts(parts, [CHECK], state, launcher, say=said.append, clock=clock, **options)
        return code, [name for name, _ in launcher.launched], launcher

    run.said, run.clock, run.folder = said, clock, tmp_path
    return run


DONE = Outcome(Status.DONE, items=1, seconds=5.0)
FAILED = Outcome(Status.FAILED, "a gradient is wrong", seconds=5.0)


def test_parts_run_in_their_order_and_are_not_run_again(campaign):
    assert campaign([DONE], [DONE])[:2] == (0, ["check-it", "time-it"])
    assert campaign()[:2] == (0, [])
    assert "time-it: done before" in campaign.said


def test_a_failed_check_is_written_down_and_nothing_is_timed(campaign):
    assert campaign([FAILED])[:2] == (1, ["check-it"])
    assert State.read(campaign.folder).parts["check-it"]["message"] == "a gradient is wrong"
    assert any("refused" in words and "check-it passes (it failed)" in words for words in campaign.said)
    assert campaign(parts=[TIME])[:2] == (1, [])  # and not by asking for it alone


def test_nothing_is_timed_before_the_checks_have_run(campaign):
    assert campaign(parts=[TIME])[:2] == (1, [])
    assert "time-it: refused, for nothing is timed before check-it has run" in campaign.said


def test_failures_can_be_ignored(campaign):
    assert campaign([FAILED], [DONE], ignore_failures=True)[:2] == (1, ["check-it", "time-it"])
    assert campaign(parts=[TIME], ignore_failures=True)[:2] == (0, [])


def test_a_failed_check_runs_again_and_lets_the_others_begin(campaign):
    campaign([FAILED])
    assert campaign([DONE], [DONE])[:2] == (0, ["check-it", "time-it"])


def test_another_commit_or_device_begins_again(campaign, tmp_path):
    campaign([DONE], [DONE])
    assert State.at(tmp_path, KEY).status("time-it") is Status.DONE
    assert State.at(tmp_path, Key("def", "123", "a GPU", "", "2.13", "3.7")).parts == {}
    assert State.at(tmp_path, Key("abc", "123", "another", "", "2.13", "3.7")).parts == {}


def test_an_unfinished_part_is_launched_again_as_long_as_it_gets_on(campaign):
    more = [Outcome(Status.UNFINISHED, "", items, 400.0) for items in (3, 7, 7)]
    assert campaign(more)[:2] == (1, ["check-it"] * 3)  # the part that times is refused
    assert "check-it: no progress" in campaign.said
    assert campaign([DONE], [DONE])[:2] == (0, ["check-it", "time-it"])


def test_no_part_gets_nine_minutes(campaign):
    _, _, launcher = campaign([DONE], [DONE])
    assert all(seconds + runner.GRACE < 540 for _, seconds in launcher.launched)
    assert launcher.launched[0][1] == PART_SECONDS


def test_a_limit_leaves_the_rest_for_the_next_run(campaign):
    code, names, launcher = campaign([Outcome(Status.DONE, "", 1, 85.0)], [], limit=100.0)
    assert (code, names) == (3, ["check-it"])
    assert launcher.launched[0][1] == 100.0 - runner.GRACE
    assert "time-it: left for the next run" in campaign.said
    assert campaign([], [DONE], limit=100.0)[:2] == (0, ["time-it"])


def test_an_item_is_on_disk_as_soon_as_it_is_there_and_the_next_run_has_it(tmp_path):
    path = tmp_path / "parts" / "a.json"

    def run(work):
        for name in ("one", "two", "three"):
            if name not in work.items:
                work.begin(1.0)
                work.add(name, 1)
                work.until = 0.0  # the time is up

    outcomes = [attempt(run, Work.resumed(path, {"commit": "abc"}, 100.0)) for _ in range(3)]
    assert [outcome.status for outcome in outcomes] == [Status.UNFINISHED, Status.UNFINISHED, Status.DONE]
    assert [outcome.items for outcome in outcomes] == [1, 2, 3]
    assert json.loads(path.read_text())["status"] == "done"
    assert Work.resumed(path, {"commit": "def"}).items == {}
    path.write_text("{")
    assert Work.resumed(path, {"commit": "abc"}).items == {}


def test_what_raises_or_is_found_wrong_fails_with_its_message(tmp_path):
    def raises(work):
        raise ValueError("no\nsuch thing")

    def wrong(work):
        work.fail("the gradient of a is wrong")
        raise OutOfTime("and the time is up")

    outcomes = [attempt(run, Work(tmp_path / "parts" / "a.json", {})) for run in (raises, wrong)]
    assert [outcome.status for outcome in outcomes] == [Status.FAILED] * 2
    assert outcomes[0].message == "ValueError: no such thing"
    assert outcomes[1].message == "the gradient of a is wrong"


def worker(monkeypatch, code):
    """Let parts be run by a program instead of bench.gpu.worker."""
    real = subprocess.Popen
    monkeypatch.setattr(runner.subprocess, "Popen", lambda command, **more: real([sys.executable, "-c", code], **more))


def test_a_process_that_does_not_end_is_ended_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "GRACE", 0.5)
    worker(monkeypatch, "import subprocess; print('begun', flush=True); subprocess.run(['sleep', '60'])")
    begun = time.monotonic()
    outcome = start(TIME, State(tmp_path, {}), 2.0)
    assert outcome.status is Status.FAILED and "begun" in outcome.message
    assert time.monotonic() - begun < 30


def test_a_process_that_falls_over_fails_with_what_it_said_last(tmp_path, monkeypatch):
    worker(monkeypatch, "raise SystemExit('out of memory')")
    outcome = start(TIME, State(tmp_path, {}), 60.0)
    assert outcome.status is Status.FAILED and outcome.message == "exit status 1: out of memory"


def test_the_outcome_of_a_process_is_what_its_file_says(tmp_path, monkeypatch):
    attempt(lambda work: work.add("a", 1), Work(tmp_path / "parts" / "time-it.json", {}))
    worker(monkeypatch, "pass")
    outcome = start(TIME, State(tmp_path, {}), 60.0)
    assert (outcome.status, outcome.items) == (Status.DONE, 1)


def test_the_worker_runs_a_part_and_says_in_its_file_how_it_ended(tmp_path):
    State(tmp_path, {"commit": "abc"}).save()
    command = [sys.executable, "-m", "bench.gpu.worker", "launches-mlp", str(tmp_path), "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    content = json.loads((tmp_path / "parts" / "launches-mlp.json").read_text())
    assert done.returncode == 0, done.stderr
    assert content["key"] == {"commit": "abc"} and content["status"] in ("unfinished", "failed")


@pytest.mark.parametrize(
    ("test", "failure"),
    [("def test_a(): pass", None), ("def test_a(): assert 1 == 2", "1 failed"), ("", "no test ran")],
)
def test_a_file_of_tests_passes_fails_or_has_none(tmp_path, test, failure):
    path = tmp_path / "test_it.py"
    path.write_text(test)
    outcome = attempt(run_tests(path), Work(tmp_path / "parts" / "a.json", {}))
    assert outcome.status is (Status.FAILED if failure else Status.DONE)
    assert failure is None or failure in outcome.message


def test_tests_that_do_not_end_fail(tmp_path):
    path = tmp_path / "test_it.py"
    path.write_text("import time\ndef test_a(): time.sleep(60)")
    work = Work(tmp_path / "parts" / "a.json", {}, until=time.monotonic() + 25)
    work.begin = lambda seconds: setattr(work, "until", time.monotonic() + 3)
    assert "not done in time" in attempt(run_tests(path), work).message


@pytest.mark.parametrize("processes", [1, 2])
def test_tests_that_passed_are_not_run_again(tmp_path, monkeypatch, processes):
    monkeypatch.setattr(check, "MOST_PROCESSES", processes)
    path, ran, record = tmp_path / "test_it.py", tmp_path / "ran", tmp_path / "parts" / "a.json"
    body = "open({!r}, 'a').write(f'{{i}} '); assert i != 2 or __import__('os').path.exists({!r})"
    body = body.format(str(ran), str(tmp_path / "mended"))
    path.write_text(f"import pytest\n@pytest.mark.parametrize('i', range(4))\ndef test_a(i):\n    {body}\n")

    def run():
        ran.write_text("")
        outcome = attempt(run_tests(path), Work.resumed(record, {}))
        return outcome.status, outcome.items, sorted(ran.read_text().split())

    assert run() == (Status.FAILED, 3, ["0", "1", "2", "3"])
    (tmp_path / "mended").touch()
    assert run() == (Status.DONE, 4, ["2"])
    assert run() == (Status.DONE, 4, [])


def test_a_file_of_tests_that_takes_too_long_goes_on_where_it_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "MOST_PROCESSES", 1)
    path, record = tmp_path / "test_it.py", tmp_path / "parts" / "a.json"
    path.write_text("import time\ndef test_a(): pass\ndef test_b(): time.sleep(60)\ndef test_c(): pass\n")
    work = Work(record, {}, until=time.monotonic() + 25)
    work.begin = lambda seconds: setattr(work, "until", time.monotonic() + 10)
    assert attempt(run_tests(path), work).status is Status.UNFINISHED
    path.write_text(path.read_text().replace("time.sleep(60)", "pass"))
    outcome = attempt(run_tests(path), Work.resumed(record, {}))
    assert (outcome.status, outcome.items) == (Status.DONE, 3)


def test_every_part_has_a_name_of_its_own_and_checks_come_first():
    parts = all_parts()
    assert len({part.name for part in parts}) == len(parts)
    assert [group for group in GROUPS if any(part.group == group for part in parts)] == list(GROUPS)
    assert parts == sorted(parts, key=lambda part: GROUPS.index(part.group))
    assert all(part.seconds < 540 for part in parts)
    assert {"test_linear_predict_numerics.py", "test_cudagraph.py"} <= {path.name for path in files_of_tests()}
    assert {f"check-shipped-{operation.name}" for operation in OPERATIONS} <= {part.name for part in parts}


def test_parts_are_chosen_by_name_or_group_and_tuning_only_so():
    assert {part.group for part in chosen_parts(None)} == {"check", "launches", "time"}
    assert {part.group for part in chosen_parts(["tune"])} == {"tune"}
    assert [part.name for part in chosen_parts(["time-mlp"])] == ["time-mlp"]
    assert chosen_parts(["report"]) == []
    with pytest.raises(SystemExit, match="there is no part 'nonsense'"):
        chosen_parts(["nonsense"])


def test_what_takes_long_to_compile_is_timed_in_a_part_for_each_rule():
    names = [part.name for part in all_parts() if part.group == "time"]
    rules = ("zil", "fixed", "levelled", "strict")
    for model in ("resnet18-128", "gpt-6", "mlp-large"):
        assert [name for name in names if name.startswith(f"time-{model}")] == [
            f"time-{model}-{rule}" for rule in rules
        ]
    assert [rule for model, rule, name in timed() if name == "time-mlp-512"] == list(rules)
    assert {name for _, _, name in timed()} == set(names)


def test_forgotten_parts_have_no_items(tmp_path):
    state = State(tmp_path, {})
    attempt(lambda work: work.add("a", 1), Work(tmp_path / "parts" / "time-it.json", {}))
    state.put("time-it", DONE)
    state.forget("time-it")
    assert state.status("time-it") is None
    assert Work.resumed(tmp_path / "parts" / "time-it.json", {}).items == {}


def test_a_folder_is_found_again_and_another_key_gets_another(tmp_path):
    folder = gpu.folder_for(KEY, tmp_path)
    assert folder.name.endswith("-a-gpu")
    State.at(folder, KEY).save()
    assert gpu.folder_for(KEY, tmp_path) == folder
    other = gpu.folder_for(Key("def", "123", "a GPU", "", "2.13", "3.7"), tmp_path)
    assert other.name == f"{folder.name}-run-2"


def test_a_digest_changes_with_contents_and_names_alone(tmp_path):
    a, b = tmp_path / "a.py", tmp_path / "b.py"
    a.write_text("1")
    b.write_text("2")
    assert digest([a, b]) == digest([b, a])
    before = digest([a, b])
    b.write_text("3")
    assert digest([a, b]) != before


def command(*given):
    line = [sys.executable, "-m", "bench", "gpu", *given]
    hidden = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"}
    return subprocess.run(line, cwd=ROOT, env=hidden, capture_output=True, text=True, timeout=300)


def test_without_a_gpu_the_command_says_so_in_one_line():
    done = command()
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.strip() == gpu.NO_GPU


def test_a_dry_run_needs_no_gpu_and_lists_every_part_with_its_time():
    done = command("--dry-run")
    assert done.returncode == 0, done.stderr
    assert all(part.name in done.stdout for part in chosen_parts(None))
    assert "estimated, not measured" in done.stdout
