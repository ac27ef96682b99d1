"""cost counts what torch counts, and an optimised Z-IL program costs what backpropagation costs."""

import pytest
import torch
from generated import graphs
from hypothesis import given, settings
from models import NAMES, loss_fn, make
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import pccompile
from pccompile.errors import UsageError
from pccompile.inspection.cost import Amount
from pccompile.passes import run
from pccompile.rules import ZIL, literal_program

# One operator that is several products, or an attention that is not fused: their derivative is estimated.
ESTIMATED = {"transformer encoder with dropout", "unrolled lstm cell"}


class Counter(TorchDispatchMode):
    """FlopCounterMode without its hooks on modules, which a compiled module takes for the model's own."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._overloadpacket not in flop_registry:
            with self:
                result = func.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def operations_of(call) -> int:
    with Counter() as counter:
        call()
    return counter.total


@pytest.mark.parametrize("name", NAMES)
def test_operations_are_those_that_torch_counts_and_zil_costs_what_autograd_costs(name):
    model, inputs, target = make(name)
    pc = pccompile.compile(model, loss_fn=loss_fn, example_inputs=inputs, example_target=target, dynamic=False)
    cost = pc.program.cost()
    assert cost.total == cost.autograd_total
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    measured = operations_of(lambda: loss_fn(model(*args), target).backward())
    assert cost.total.operations == pytest.approx(measured, rel=0.15 if name in ESTIMATED else 0)
    if name not in ESTIMATED:
        assert measured == operations_of(lambda: pc.loss(inputs, target).backward())


def test_strict_inference_costs_what_torch_counts_less_the_steps_before_the_first_errors():
    model, inputs, target = make("mlp", torch.float64)  # in single precision a back end finds cheaper steps
    rule = pccompile.Strict(steps=5)
    pc = pccompile.compile(model, rule, loss_fn, example_inputs=inputs, example_target=target, dynamic=False)
    cost = pc.program.cost(steps=5)
    measured = operations_of(lambda: pc.loss(inputs, target).backward())
    products = 2 * 6 * 8 * 8  # of the middle layer's error, which is zero in step 0
    assert cost.total.operations == measured + products
    assert cost.total.operations > 3 * cost.autograd_total.operations
    assert pc.program.cost(steps=10).total.operations > cost.total.operations


def test_the_literal_program_costs_more_and_every_pass_at_most_as_much_as_the_one_before():
    model, inputs, _ = make("skips")
    stages = pccompile.compile(model, example_inputs=inputs, dynamic=False).program.stages
    operations = [stage.cost().total.operations for stage in stages.values()]
    after_level = operations[1:]
    assert after_level == sorted(after_level, reverse=True)
    assert operations[0] > 2 * operations[-1]


@settings(max_examples=20, deadline=None)
@given(graphs)
def test_zil_costs_what_autograd_costs_on_any_graph(graph):
    cost = run(literal_program(ZIL(), graph), ZIL.passes).cost()
    assert cost.total == cost.autograd_total


def test_the_table_shows_vertices_totals_and_the_ratio():
    model, inputs, _ = make("mlp")
    program = pccompile.compile(model, example_inputs=inputs, dynamic=False).program
    lines = str(program.cost()).splitlines()
    assert lines[0].split() == ["vertex", "operations", "bytes", "launches"]
    assert lines[-1].split() == ["ratio", "1.00", "1.00", "1.00"]
    assert [line.split()[0] for line in lines[-3:]] == ["all", "autograd", "ratio"]
    assert Amount(1, 2, 3) + Amount(1, 1, 1).times(2) == Amount(3, 4, 5)
    with pytest.raises(UsageError, match="steps=0"):
        program.cost(steps=0)


def test_views_launch_nothing_and_cost_survives_json():
    model, inputs, _ = make("mnist network")
    program = pccompile.compile(model, example_inputs=inputs, dynamic=False).program
    assert program.vertex("flatten").work.launches == 0
    assert program.vertex("conv1").work.operations == 2 * inputs.shape[0] * 26 * 26 * 10 * 9
    assert pccompile.Program.from_json(program.to_json()).cost() == program.cost()
    assert torch.is_grad_enabled()
