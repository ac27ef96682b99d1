"""Entries outlive the process, appear whole, and are made again when they are damaged."""

import subprocess
import sys

import pytest

from pccompile import cache


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PCCOMPILE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_an_entry_comes_back():
    key = cache.digest("a", 1)
    assert cache.load(key) is None
    cache.store(key, {"aten": 0.5})
    assert cache.load(key) == {"aten": 0.5}


def test_keys_depend_on_every_part_and_on_versions(monkeypatch):
    assert len({cache.digest("a", 1), cache.digest("a", 2), cache.digest("a1"), cache.digest("b", 1)}) == 4
    before = cache.digest("a")
    monkeypatch.setattr("torch.__version__", "0.0")
    assert cache.digest("a") != before


DAMAGES = {"empty": b"", "short": b"{", "altered": b"0" * 64 + b"\n{}", "binary": b"\xff\xfe"}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_entry_is_removed_and_made_again(folder, damage):
    key = cache.digest("a")
    cache.store(key, {"aten": 0.5})
    (folder / f"{key}.json").write_bytes(damage)
    assert cache.load(key) is None
    assert not (folder / f"{key}.json").exists()
    cache.store(key, {"aten": 0.25})
    assert cache.load(key) == {"aten": 0.25}


def test_a_folder_that_cannot_be_written_is_no_error(folder, monkeypatch):
    folder.write_text("a file where the folder should be")
    cache.store(cache.digest("a"), {})
    assert cache.load(cache.digest("a")) is None


def test_processes_may_write_the_same_entry_at_once(folder):
    program = "from pccompile import cache\nfor i in range(200): cache.store('k' * 64, {'value': ['x' * 5000, i]})"
    writers = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    seen = 0
    while any(writer.poll() is None for writer in writers):
        entry = cache.load("k" * 64)
        assert entry is None or entry["value"][0] == "x" * 5000
        seen += entry is not None
    assert seen and all(writer.returncode == 0 for writer in writers)
    assert [path.name for path in folder.iterdir()] == ["k" * 64 + ".json"]
