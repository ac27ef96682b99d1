"""What is bundled: every file of the page is installed, and every library has its licence beside it."""

import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "pccompile" / "inspection" / "page"


def test_every_file_of_the_page_is_declared_as_package_data():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["pccompile.inspection.page"]
    files = [path.relative_to(PAGE) for path in PAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    missing = [str(f) for f in files if f.suffix != ".py" and not any(fnmatch(str(f), p) for p in patterns)]
    assert missing == [] and len(files) > 10
    assert "pccompile.inspection.page" in project["tool"]["setuptools"]["packages"]


def test_every_bundled_library_has_its_licence_beside_it():
    texts = {path.name: path.read_text() for path in (PAGE / "vendor").iterdir()}
    assert "Eclipse Public License - v 2.0" in texts["elk.LICENSE.md"]
    assert "Permission to use, copy, modify, and/or distribute" in texts["d3.LICENSE"]
    assert {"elk-worker.min.js", "d3.min.js", "README.md"} <= texts.keys()
    page = (PAGE / "template.html").read_text()
    for name in ("elkjs 0.12.1", "d3 7.9.2"):
        assert name in texts["README.md"] and name in page.replace("D3", "d3")
