"""Recording: what is written down is what happened, and nothing is paid when nothing is recorded."""

import copy
import math
import pickle
import sys

import pytest
import torch
from matplotlib.figure import Figure
from models import loss_fn, make
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import pccompile
from pccompile.backends import AtenBackend
from pccompile.errors import MissingPackageError, UsageError
from pccompile.inspection.recording import WatchedExecution
from pccompile.inspection.recording_views import by_layer


def train(pc, inputs, target, steps=2):
    optimizer = torch.optim.SGD(pc.parameters(), 0.1)
    for _ in range(steps):
        pc.step(inputs, target, optimizer)


@pytest.mark.parametrize(
    "name", ["residual blocks with batch norm", "transformer encoder with dropout", "tied weights"]
)
def test_recorded_zil_gradients_equal_autograds_bit_for_bit(name):
    model, inputs, target = make(name)
    pc = pccompile.compile(model, loss_fn=loss_fn)
    with pccompile.record(pc, gradients=True) as rec:
        train(pc, inputs, target)
        args = inputs if isinstance(inputs, tuple) else (inputs,)
        loss_fn(pc(*args), target).backward()  # the loss outside the program
    assert [max(frame.divergence.values()) for frame in rec.frames] == [0.0] * 3
    assert all(len(frame.divergence) == len(list(model.parameters())) for frame in rec.frames)


def test_a_recorded_training_is_the_training_without_the_recording():
    results = []
    for recorded in (False, True):
        model, inputs, target = make("residual blocks with batch norm")
        pc = pccompile.compile(model, loss_fn=loss_fn)
        if recorded:
            with pccompile.record(pc, gradients=True, values=True):
                train(pc, inputs, target)
        else:
            train(pc, inputs, target)
        results.append(model.state_dict())
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


def test_under_zil_every_error_appears_at_the_step_of_its_level_and_is_autograds():
    model, inputs, target = make("mlp", torch.float64)
    pc = pccompile.compile(model, loss_fn=loss_fn)
    with pccompile.record(pc) as rec:
        pc.loss(inputs, target).backward()
    (frame,) = rec.frames
    program = frame.program
    hidden = model[0](inputs).detach().requires_grad_()
    (delta,) = torch.autograd.grad(loss_fn(model[1:](hidden), target), hidden)
    for name, norms in frame.errors.items():
        level = program.vertex(name).level
        assert all(norm == 0 for norm in norms[:level]) and norms[level] > 0
        assert all(math.isnan(norm) for norm in norms[level + 1 :])
    assert frame.errors["0"][-1] == pytest.approx(float(delta.norm()), rel=1e-12)


def test_under_strict_the_recorded_energies_are_those_of_the_module_and_values_move():
    model, inputs, target = make("mlp", torch.float64)
    pc = pccompile.compile(model, pccompile.Strict(steps=6), loss_fn=loss_fn)
    with pccompile.record(pc, gradients=True, values=True) as rec:
        pc.loss(inputs, target).backward()
    (frame,) = rec.frames
    assert frame.energy == pytest.approx(pc.energies, rel=1e-12)
    assert frame.energy == sorted(frame.energy, reverse=True)
    values = frame.values["0"]
    assert len(values) == len(frame.energy) == 7
    assert not torch.equal(values[0][0], values[-1][0])
    assert 0 < max(frame.divergence.values()) < 10


def test_the_incremental_rule_is_recorded_without_a_divergence():
    model, inputs, target = make("mlp")
    pc = pccompile.compile(model, pccompile.Incremental(steps=4), loss_fn=loss_fn)
    with pccompile.record(pc, gradients=True) as rec:
        train(pc, inputs, target, steps=3)
    assert [len(frame.energy) for frame in rec.frames] == [4, 4, 4]
    assert all(not frame.divergence for frame in rec.frames)


def test_nothing_is_left_of_a_recording_and_nothing_was_there_before():
    model, inputs, target = make("mlp")
    pc = pccompile.compile(model, loss_fn=loss_fn, example_inputs=inputs, example_target=target)
    backend, call = pc._latest.backend, (loss_fn, (inputs,), {}, (target,))
    with pccompile.record(pc) as rec:
        assert isinstance(pc._execution(*pc._served(*call), *call), WatchedExecution)
        with pytest.raises(UsageError, match="recorded already"), pccompile.record(pc):
            pass
        copied = copy.deepcopy(pc)
    assert copied.recorder is None and pickle.loads(pickle.dumps(pc.rule)) == pc.rule
    execution = pc._execution(*pc._served(*call), *call)
    assert type(execution).__name__ == "Execution" and execution.compiled.backend is backend
    assert isinstance(backend, AtenBackend) and not pc.record_energies
    train(pc, inputs, target)
    assert rec.frames == []


def recording_of(rule, name="residual blocks with batch norm"):
    model, inputs, target = make(name)
    pc = pccompile.compile(model, rule, loss_fn=loss_fn)
    with pccompile.record(pc, gradients=True) as rec:
        train(pc, inputs, target)
    return rec


def test_the_table_has_a_row_for_every_training_step_step_and_vertex():
    rec = recording_of(pccompile.ZIL())
    table = rec.to_pandas()
    frame = rec.frames[1]
    assert len(table) == sum(len(norms) for f in rec.frames for norms in f.errors.values())
    row = table[(table.training_step == 1) & (table.vertex == "fc") & (table.step == 0)].iloc[0]
    assert row.error_norm == frame.errors["fc"][0] and row.energy == row.error_norm**2 / 2 and row.level == 0


@pytest.mark.parametrize(
    "rule", [pccompile.ZIL(), pccompile.Strict(steps=5), pccompile.FixedPrediction(steps=5)], ids=str
)
def test_the_figure_has_energy_errors_and_divergence(rule, tmp_path):
    figure = recording_of(rule).plot()
    assert isinstance(figure, Figure)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["Energy of the errors, by layer", "Errors", "Divergence from autograd, by layer"]
    figure.savefig(tmp_path / "recording.png")
    assert (tmp_path / "recording.png").stat().st_size > 10_000
    assert set(figure.axes[0].get_legend_handles_labels()[1]) <= {
        "stem",
        "layer1",
        "layer1.0",
        "layer1.1",
        "mean",
        "fc",
    }


def test_tensorboard_reads_what_is_logged_in_one_line(tmp_path):
    rec = recording_of(pccompile.ZIL())
    rec.to_tensorboard(tmp_path)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert {"error/fc", "divergence/fc.weight", "energy/last step"} <= set(events.Tags()["scalars"])
    logged = [event.value for event in events.Scalars("error/fc")]
    assert logged == pytest.approx([frame.errors["fc"][0] for frame in rec.frames])


def test_layers_are_the_first_words_of_names_or_the_first_two():
    assert by_layer(["stem", "layer1.0.conv1", "layer1.1.conv1", "fc"]) == {
        "stem": ["stem"],
        "layer1": ["layer1.0.conv1", "layer1.1.conv1"],
        "fc": ["fc"],
    }
    assert list(by_layer(["h.0.a", "h.0.b", "h.1.a", "h.2.a"])) == ["h.0", "h.1", "h.2"]


@pytest.mark.parametrize(("module", "view"), [("matplotlib.figure", "plot"), ("pandas", "to_pandas")])
def test_a_missing_package_is_named_with_the_pip_command(module, view, monkeypatch):
    rec = recording_of(pccompile.ZIL(), "mlp")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError, match=r'pip install "pccompile\[viz\]"'):
        getattr(rec, view)()


def test_an_empty_recording_cannot_be_plotted():
    model, _, _ = make("mlp")
    with (
        pccompile.record(pccompile.compile(model)) as rec,
        pytest.raises(UsageError, match="nothing has been recorded"),
    ):
        rec.plot()
