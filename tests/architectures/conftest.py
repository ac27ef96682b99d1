"""Lets model libraries be imported beside a CPU build of torch and beside this repository's folder `kernels`."""

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
LIBRARIES = []  # operator libraries live as long as somebody holds them


def make_torchvision_importable() -> None:
    """Define the detection operators where torchvision's own were built for another torch and do not load."""
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError:
        return  # its tests skip
    except RuntimeError:  # "operator torchvision::nms does not exist"
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        LIBRARIES.append(library)


def make_transformers_importable() -> None:
    """transformers looks once for a package called `kernels`; the folder of that name is not the one it means."""
    from transformers.utils import is_kernels_available

    path = list(sys.path)
    sys.path[:] = [entry for entry in path if Path(entry or ".").resolve() != ROOT]
    try:
        is_kernels_available()
    finally:
        sys.path[:] = path


make_torchvision_importable()
make_transformers_importable()
