"""A plugin of pytest: tests that passed before are left out, and each that passes is written down as soon as it has.

pytest -p bench.gpu.passed --left-out FILE --passed FILE
"""

from __future__ import annotations

from pathlib import Path

import pytest

__all__ = ["pytest_addoption", "pytest_collection_modifyitems", "pytest_configure"]


class _Passed:
    """Adds the name of every test that passed, and was taken down without an error, to a file, a line each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.called: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and not report.failed:
            self.called.add(report.nodeid)
        if report.when == "teardown" and report.passed and report.nodeid in self.called:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{report.nodeid}\n")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the two files."""
    parser.addoption("--left-out", type=Path, required=True, help="names of tests, a line each")
    parser.addoption("--passed", type=Path, required=True, help="where names are added")


def pytest_configure(config: pytest.Config) -> None:
    """Listen to the process that hears of every test: under xdist, the one that has the workers."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Passed(config.getoption("passed")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what passed before."""
    before = set(config.getoption("left_out").read_text(encoding="utf-8").splitlines())
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in before])
    items[:] = [item for item in items if item.nodeid not in before]
