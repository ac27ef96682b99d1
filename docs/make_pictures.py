"""Make the pictures of docs/inspect.md again: `python docs/make_pictures.py`, with Chromium installed."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from playwright.sync_api import Page, sync_playwright

import pccompile

PICTURES = Path(__file__).parent / "pictures"
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from models import make, mnist_network  # noqa: E402
from networks import IMAGES, resnet18  # noqa: E402


def mnist(folder: Path) -> Path:
    """The MNIST network under Z-IL."""
    program = pccompile.compile(mnist_network(), example_inputs=torch.randn(8, 1, 28, 28)).program
    program.save_html(folder / "mnist.html", title="The MNIST network under Z-IL")
    return folder / "mnist.html"


def residual(folder: Path) -> Path:
    """ResNet-18 under Z-IL, and its picture."""
    program = pccompile.compile(resnet18(), example_inputs=torch.randn(IMAGES)).program
    (PICTURES / "resnet18.svg").write_text(program.stages["level"].to_svg(["layer1.0"]))
    program.save_html(folder / "resnet18.html", title="ResNet-18 under Z-IL")
    return folder / "resnet18.html"


def recorded(folder: Path) -> Path:
    """A small residual network under strict inference, recorded; and the recording's figure."""
    model, inputs, target = make("residual blocks with batch norm")
    pc = pccompile.compile(model, pccompile.Strict(steps=20, step_size=0.2), F.cross_entropy)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pccompile.record(pc, gradients=True) as rec:
        for _ in range(3):
            pc.step(inputs, target, optimizer)
    rec.plot().savefig(PICTURES / "recording.png", dpi=70)
    pc.program.save_html(folder / "strict.html", 20, "A small residual network under strict inference", rec)
    return folder / "strict.html"


def shoot(page: Page, name: str) -> None:
    """Save what the page shows."""
    page.wait_for_timeout(700)
    page.screenshot(path=PICTURES / f"{name}.png")


def main() -> None:
    """Write every picture into docs/pictures."""
    PICTURES.mkdir(exist_ok=True)
    torch.manual_seed(0)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])

        def show(path: Path, dark: bool = False) -> Page:
            page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="dark" if dark else "light")
            page.goto(path.as_uri())
            page.wait_for_selector("body[data-ready=true]")
            return page

        page = show(mnist(Path(folder)))
        for _ in range(4):
            page.keyboard.press("ArrowRight")
        shoot(page, "wavefront")
        page.click('[data-stage="liveness"]')
        shoot(page, "liveness")
        page = show(residual(Path(folder)))
        page.keyboard.press("/")
        page.keyboard.type("layer4.1.conv2")
        page.keyboard.press("Enter")
        page.wait_for_selector("g.node.selected")
        for _ in range(5):
            page.keyboard.press("ArrowRight")
        shoot(page, "vertex")
        page = show(recorded(Path(folder)), dark=True)
        for _ in range(9):
            page.keyboard.press("ArrowRight")
        shoot(page, "replay")
        browser.close()


if __name__ == "__main__":
    main()
