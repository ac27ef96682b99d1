"""Which form a strict sweep takes, where its layers lie, and what a machine that cannot run it is told."""

import os
import subprocess
import sys
from itertools import pairwise, product

import pytest
import torch

from pccompile.kernels.devices import ARCHITECTURES, PROCESSORS
from pccompile.kernels.linear_step import configurations as step_configurations
from pccompile.kernels.strict_sweep import configurations as sweep_configurations
from pccompile.kernels.strict_sweep.choice import estimated_iterations, fastest_form, likely_form
from pccompile.kernels.strict_sweep.layout import ALIGNMENT, Chain, Field, Layout

FORMS = ("batch_tiles", "cooperative", "half_steps")


def chosen(batch, widths, architecture="sm_90"):
    configuration = sweep_configurations.configuration_for(architecture, "half", batch)
    return likely_form(architecture, configuration, batch, [(out, into) for into, out in pairwise(widths)])


def test_every_architecture_has_configurations_for_every_arithmetic():
    for architecture, precision in product(ARCHITECTURES, ("half", "tf32", "ieee")):
        assert set(sweep_configurations.CONFIGURATIONS[architecture][precision]) == {"tall", "flat"}
        assert precision in sweep_configurations.GRADIENTS[architecture]
        assert precision in step_configurations.CONFIGURATIONS[architecture]


def test_tall_tiles_are_for_batches_with_one_for_every_multiprocessor():
    tall, flat = (sweep_configurations.CONFIGURATIONS["sm_90"]["half"][size] for size in ("tall", "flat"))
    assert sweep_configurations.configuration_for("sm_90", "half", 132 * tall.block_batch) == tall
    assert sweep_configurations.configuration_for("sm_90", "half", 131 * tall.block_batch) == flat


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_batch_that_fills_the_device_goes_by_tiles_and_a_small_one_shares_wide_layers(architecture):
    assert chosen(32 * PROCESSORS[architecture], (784, 256, 256, 10), architecture) == "batch_tiles"
    assert chosen(64, (3072, 4096, 4096, 10), architecture) == "cooperative"


def test_narrow_layers_go_by_tiles_at_any_batch_as_waiting_would_cost_more():
    assert chosen(1, (20, 16, 16, 4)) == "batch_tiles"


def test_the_interpreter_always_goes_by_tiles_of_the_batch():
    configuration = sweep_configurations.CONFIGURATIONS["interpreter"]["ieee"]["tall"]
    for batch, width in product((1, 64, 4096), (8, 512)):
        assert likely_form("interpreter", configuration, batch, [(width, width)] * 4) == "batch_tiles"


def test_a_launch_costs_more_than_a_barrier_and_more_work_more_than_less():
    configuration = sweep_configurations.CONFIGURATIONS["sm_90"]["half"]["flat"]

    def count(form, width):
        return estimated_iterations(form, "sm_90", configuration, 64, [(width, width)] * 3)

    assert count("cooperative", 512) < count("half_steps", 512)
    assert all(count(form, 512) < count(form, 4096) for form in FORMS)


def test_the_fastest_form_is_found_by_running_and_then_remembered():
    ran = []

    def run(form):
        ran.append(form)
        sum(range(10**6 if form != "half_steps" else 1))

    key = object()
    assert fastest_form(key, FORMS, run, torch.device("cpu")) == "half_steps" and set(ran) == set(FORMS)
    ran.clear()
    assert fastest_form(key, FORMS, run, torch.device("cpu")) == "half_steps" and not ran


def test_layers_lie_side_by_side_and_aligned():
    layout = Layout.of([torch.Size((17, 5)), torch.Size((32, 17)), torch.Size((3, 32))], free_output=True)
    assert layout.starts == (0, 32, 64, 80) and layout.columns == 96
    assert all(start % ALIGNMENT == 0 for start in layout.starts)
    assert layout.weight_gradients == (0, 85, 629) and layout.bias_gradients == (725, 742, 774)
    assert layout.gradients == 777


def test_the_table_says_where_everything_is_and_is_kept():
    weights = (torch.randn(4, 3), torch.randn(5, 4).mT.contiguous().mT)
    bias = torch.randn(4)
    chain = Chain(weights, (bias, None), ("tanh", "identity"))
    table = chain.table()
    assert table[0, Field.WEIGHT] == weights[0].data_ptr() and table[1, Field.BIAS] == 0
    assert table[:, [Field.OUT, Field.IN]].tolist() == [[4, 3], [5, 4]]
    assert table[1, [Field.WEIGHT_OUT_STRIDE, Field.WEIGHT_IN_STRIDE]].tolist() == [1, 5]
    assert table[1, [Field.PARENT, Field.OWN, Field.ACTIVATION]].tolist() == [0, 16, 1]
    assert chain.table() is table
    assert Chain(weights, (None, None), ("tanh", "identity")).table() is not table


def test_only_weights_whose_rows_can_be_read_in_vectors_count_as_aligned():
    def aligned(weight):
        return Chain((weight,), (None,), ("identity",)).aligned

    assert aligned(torch.empty(32, 48))
    assert not any(map(aligned, (torch.empty(32, 40), torch.empty(48, 32).mT, torch.empty(32, 49)[:, 1:])))


def test_tensors_on_the_cpu_are_refused_without_the_interpreter():
    program = """
import torch
from pccompile.errors import UsageError
from pccompile.kernels import linear_step, strict_sweep
x, target = torch.ones(2, 2), torch.zeros(2, dtype=torch.int64)
calls = [lambda: linear_step(x, x, x)]
for form in ("auto", "batch_tiles", "cooperative", "half_steps", "measured"):
    calls.append(lambda form=form: strict_sweep(x, target, [x], [None], ["tanh"], steps=2, step_size=0.1, form=form))
for call in calls:
    try:
        call()
    except UsageError as error:
        assert "cannot run on cpu" in str(error) and "TRITON_INTERPRET=1" in str(error), error
    else:
        raise AssertionError("not refused")
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
