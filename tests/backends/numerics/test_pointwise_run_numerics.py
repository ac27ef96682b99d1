"""With runs of elementwise vertices in one launch, models train as on the eager back end."""

import pytest
import torch
from test_patterns_numerics import left
from test_pointwise_runs import FUNCTIONS, LEVELLED, Between, Gated
from test_triton_numerics import LOSS, agree, batch, compiled
from torch import nn

import pccompile

RULES = [pccompile.ZIL(), LEVELLED, pccompile.Strict(steps=3, step_size=0.1)]


@pytest.mark.parametrize("rows", [1, 5])
def test_a_gated_block_takes_one_launch_forward_and_one_back_beside_its_layers(device, rows):
    pc = compiled(Gated(), device)
    for rule in RULES[:2]:
        launches = agree(pc, rule, *batch(device, rows))
        assert launches == {"linear_predict": 3, "linear_error": 3, "pointwise": 2, **LOSS}
        assert left(pc) == 0
    assert agree(pc, RULES[2], *batch(device, rows))["pointwise"]


def test_two_gated_blocks_take_two_launches_each(device):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Gated(), Gated()
            self.first.c = nn.Linear(8, 6)

        def forward(self, x):
            return self.second(self.first(x) + x)

    launches = agree(compiled(Two(), device), RULES[0], *batch(device))
    assert launches["pointwise"] == 2 * 2


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_kind_of_run(device, name):
    torch.manual_seed(0)
    pc = compiled(Between(FUNCTIONS[name]), device)
    for rule in RULES:
        launches = agree(pc, rule, *batch(device), tolerance=2e-2 if name == "casts" else 1e-5)
        assert launches["pointwise"] >= 2


def test_under_autocast_runs_hold_both_dtypes(device):
    torch.manual_seed(0)
    pc = compiled(Gated(), device)
    with torch.autocast(device, dtype=torch.bfloat16):
        launches = agree(pc, RULES[0], *batch(device), tolerance=4e-2)  # the interpreter cuts off, and does not round
    assert launches["pointwise"] == 3  # both layers' casts of the input are one launch


def test_another_step_size_is_another_argument(device):
    pc = compiled(Gated(), device)
    for step_size in (0.1, 0.25):
        agree(pc, pccompile.Strict(steps=3, step_size=step_size), *batch(device))


@pytest.mark.usefixtures("every_time_a_microsecond")
def test_runs_with_numbers_and_sums_are_measured_like_others(device):
    pc = compiled(Gated(), device)
    for rule in RULES[1:]:
        assert agree(pc, rule, *batch(device))["pointwise"]
    reasons = {row.reason for row in pc.backend_report() if row.kernel == "pointwise"}
    assert reasons == {"kernel 1 us, operators 1 us"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sums_of_half_precision_over_more_dimensions(device, dtype):
    torch.manual_seed(0)
    pc = compiled(Between(FUNCTIONS["comparisons"]).to(dtype), device)
    x, y = batch(device)
    tolerance = 4e-2 if dtype is torch.bfloat16 else 1e-2
    assert agree(pc, RULES[0], x.to(dtype), y, tolerance=tolerance)["pointwise"] == 2
