"""The pages of docs say what the code says."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_page_on_inspection_shows_what_its_example_prints():
    command = [sys.executable, ROOT / "examples" / "inspection.py"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    shown = (ROOT / "docs" / "inspect.md").read_text().split("<!-- inspection -->\n```text\n")[1].split("\n```")[0]
    assert shown == printed.strip()


def test_every_picture_and_file_that_the_docs_link_to_is_there():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
