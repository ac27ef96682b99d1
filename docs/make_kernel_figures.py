"""Write the figures of docs/kernels.md again: bytes by arithmetic, and, with --resources, what the compiler says.

python docs/make_kernel_figures.py [--resources]

The resources are read from machine code that is compiled for every architecture, which takes minutes and no GPU.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from bench.gpu.resources import measured, resource_table  # noqa: E402
from bench.gpu.traffic import traffic_table  # noqa: E402
from bench.steps.report import write_between_markers  # noqa: E402

PAGE = ROOT / "docs" / "kernels.md"


def main() -> None:
    """Put the tables between their markers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resources", action="store_true", help="compile, and write the table of registers as well")
    arguments = parser.parse_args()
    write_between_markers(PAGE, traffic_table() + "\n", "kernel bytes")
    if arguments.resources:
        write_between_markers(PAGE, resource_table(measured()) + "\n", "kernel resources")


if __name__ == "__main__":
    main()
