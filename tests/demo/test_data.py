"""The data sets' shapes and splits, and the batches."""

import gzip
import struct
import sys

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from pccompile.demo.data import load_data, training_batches
from pccompile.demo.errors import CommandLineError, MissingExtraError, UnusableInputError


def rows(dataset):
    """All inputs of a data set, flat: (samples, numbers)."""
    return dataset.tensors[0].flatten(1)


@pytest.mark.parametrize(("name", "shape", "samples"), [("digits", (1, 8, 8), 1797), ("mnist5k", (1, 28, 28), 5000)])
def test_built_in_images_are_scaled_to_one_and_labelled_with_ten_classes(name, shape, samples):
    data = load_data([name], seed=0)
    assert data.sample_shape == shape
    assert data.classes == 10
    assert len(data.train) + len(data.test) == samples
    assert len(data.test) == round(samples / 5)
    images, labels = data.train.tensors
    assert images.shape[1:] == shape
    assert (images.min(), images.max()) == (0, 1)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert labels.unique().tolist() == list(range(10))


def test_the_split_depends_on_the_seed_alone():
    first, again, other = (load_data(["digits"], seed) for seed in (3, 3, 4))
    assert torch.equal(rows(first.train), rows(again.train))
    assert torch.equal(rows(first.test), rows(again.test))
    assert not torch.equal(rows(first.test), rows(other.test))


def test_training_and_test_samples_are_disjoint_and_together_complete():
    from sklearn.datasets import load_digits

    data = load_data(["digits"], seed=0)
    both = torch.cat([rows(data.train), rows(data.test)])
    original = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    # As multisets: every image is there as often as in the original, so none is in both parts.
    assert sorted(both.tolist()) == sorted(original.tolist())


def write_idx(path, array):
    header = bytes((0, 0, 8, array.dim())) + struct.pack(f">{array.dim()}I", *array.shape)
    path.write_bytes(gzip.compress(header + bytes(array.flatten().tolist())))


@pytest.fixture
def fashion_folder(tmp_path):
    for part, samples in (("train", 6), ("t10k", 3)):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", torch.arange(samples * 20).view(samples, 5, 4))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", torch.arange(samples))
    return tmp_path


def test_fashion_reads_the_four_idx_files_with_the_split_they_come_in(fashion_folder):
    data = load_data(["fashion", str(fashion_folder)], seed=0)
    images, labels = data.train.tensors
    assert data.sample_shape == (1, 5, 4)
    assert torch.equal(images, torch.arange(120.0).view(6, 1, 5, 4) / 255)
    assert labels.tolist() == list(range(6))
    assert len(data.test) == 3


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-9], lambda content: b"", lambda content: gzip.compress(b"no idx")]
)
def test_a_damaged_file_is_named(fashion_folder, damage):
    path = fashion_folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UnusableInputError, match="t10k-images"):
        load_data(["fashion", str(fashion_folder)], seed=0)


def test_a_missing_file_is_named(fashion_folder):
    (fashion_folder / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UnusableInputError, match="train-labels"):
        load_data(["fashion", str(fashion_folder)], seed=0)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["cifar"], "no data set 'cifar'"),
        (["digits", "extra"], "--data digits extra"),
        (["fashion"], "fashion FOLDER"),
        (["fashion", "/nowhere"], "no folder /nowhere"),
        (["no_such_module:make"], "no module no_such_module"),
    ],
)
def test_words_that_name_no_data_set_are_refused(words, told):
    with pytest.raises(CommandLineError, match=told):
        load_data(words, seed=0)


def test_a_missing_package_is_told_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r'pip install "pccompile\[demo\]"'):
        load_data(["digits"], seed=0)


@pytest.fixture
def factory(tmp_path, monkeypatch):
    """Write a module with a function `make` that returns the given expression, and return its reference."""

    def write(expression):
        name = f"data_of_{tmp_path.name}".replace("-", "_")
        lines = [
            "import torch",
            "from torch.utils.data import TensorDataset",
            f"def make(): return {expression}",
        ]
        (tmp_path / f"{name}.py").write_text("\n".join(lines))
        return f"{name}:make"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return write


def test_a_factory_may_return_four_tensors(factory):
    reference = factory("(torch.zeros(6, 3), torch.tensor([0, 1, 2] * 2), torch.ones(2, 3), torch.tensor([0, 1]))")
    data = load_data([reference], seed=0)
    assert (data.name, data.sample_shape, data.classes) == (reference, (3,), 3)
    assert (len(data.train), len(data.test)) == (6, 2)


def test_a_factory_may_return_two_data_sets(factory):
    samples = "TensorDataset(torch.zeros(6, 3), torch.zeros(6, 2))"
    data = load_data([factory(f"({samples}, {samples})")], seed=0)
    assert (data.sample_shape, data.classes, len(data.train)) == ((3,), None, 6)


@pytest.mark.parametrize(
    "expression",
    [
        "None",
        "(torch.zeros(2, 3), torch.zeros(2))",
        "(torch.zeros(6, 3), torch.zeros(5), torch.zeros(2, 3), torch.zeros(2))",
        "(TensorDataset(torch.zeros(0, 3)), TensorDataset(torch.zeros(1, 3)))",
        "(TensorDataset(torch.zeros(2, 3)), TensorDataset(torch.zeros(2, 3)))",
    ],
)
def test_a_factory_that_returns_something_else_is_refused(factory, expression):
    with pytest.raises(UnusableInputError):
        load_data([factory(expression)], seed=0)


def epoch_batches(samples, batch_size, seed=0, epoch=0):
    dataset = TensorDataset(torch.arange(samples), torch.arange(samples))
    return [batch.inputs for batch in training_batches(dataset, batch_size, seed, epoch)]


def test_an_epoch_is_whole_batches_of_different_samples():
    batches = epoch_batches(10, 3)
    assert [len(batch) for batch in batches] == [3, 3, 3]
    assert torch.cat(batches).unique().numel() == 9


def test_a_data_set_smaller_than_a_batch_is_one_batch():
    (batch,) = epoch_batches(10, 300)
    assert sorted(batch.tolist()) == list(range(10))


def test_epochs_and_seeds_shuffle_differently():
    orders = [torch.cat(epoch_batches(20, 5, seed, epoch)).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


class RandomlyAugmented(Dataset):
    """Twelve samples, each with a random number added."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return index + torch.rand(()), index


def test_batches_and_their_augmentation_do_not_depend_on_what_a_step_draws():
    runs = []
    for numbers_drawn in (0, 5):
        run = []
        for batch in training_batches(RandomlyAugmented(), 4, 0, 0):
            run.append((batch.inputs.tolist(), batch.targets.tolist(), batch.seed))
            torch.rand(numbers_drawn)
        runs.append(run)
    assert runs[0] == runs[1]
    assert len({seed for _, _, seed in runs[0]}) == 3
