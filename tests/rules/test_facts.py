"""The facts that the compiler builds on, each against the equations written out in `references`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import comb
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from hand_written import (
    BLOCKS,
    CHAIN,
    CHAIN_NODES,
    SINGLE_OUTPUT_CASES,
    SKIPS,
    SKIPS_NODES,
    TIED,
    TWO_HEADS,
    Case,
    chain,
    chain_layers,
)
from references import (
    Compile,
    Gradients,
    Graph,
    Tensor,
    Tensors,
    along_paths,
    backpropagation,
    clamped_tensors,
    feed_forward,
    fixed_prediction,
    fixed_prediction_errors,
    fixed_prediction_gradients,
    linearise,
    loss_and_errors,
    relative_error,
    tail,
    worst,
    zil,
)

import pccompile
from pccompile.passes.closed_form import binomial_tail

SKIP_CASES = [SKIPS, SKIPS_NODES, TIED]
STEP_SIZES = [0.1, 0.3, 0.7, 1.0]
STEPS = [1, 2, 3, 5, 10, 20, 40]


@dataclass(frozen=True)
class ZILWithoutLevelling(pccompile.ZIL):
    """Z-IL as its literal program says it, on the graph as it is."""

    passes: ClassVar[tuple[str, ...]] = ()


def cross_entropy(y: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda output: F.cross_entropy(output, y)


def both_heads_of(outputs: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    return both_heads(*outputs, y)


def both_heads(hidden: Tensor, output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output, y) + (hidden**2).sum(dim=1).mean()


def autograd(case: Case, x: Tensor, y: Tensor) -> Tensors:
    model, x = case.model(), x.clone().requires_grad_()
    F.cross_entropy(model(x), y).backward()
    return {**{name: p.grad for name, p in model.named_parameters()}, "x": x.grad}


# The transcription itself ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SINGLE_OUTPUT_CASES, ids=str)
def test_the_models_written_out_by_hand_are_the_models(case: Case) -> None:
    x, y = case.batch()
    written = backpropagation(case.graph, clamped_tensors(case.model(), x), cross_entropy(y))
    assert worst(written, autograd(case, x, y)) < 1e-13


@pytest.mark.parametrize("case", SINGLE_OUTPUT_CASES, ids=str)
def test_the_compiled_graph_has_the_vertices_written_out_by_hand(compiled: Compile, case: Case) -> None:
    pc = compiled(case, pccompile.Strict())
    pc.prepare(*case.batch())
    found = [vertex for vertex in pc.program.vertices if vertex.has_error]
    assert len(found) == len(case.graph.vertices)
    assert [vertex.level for vertex in found] == list(case.graph.levels().values())


# Fact 1 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SKIP_CASES, ids=str)
def test_zil_on_the_levelled_graph_is_backpropagation_in_the_equations(case: Case) -> None:
    x, y = case.batch()
    clamped = clamped_tensors(case.model(), x)
    expected = backpropagation(case.graph, clamped, cross_entropy(y))
    assert worst(zil(case.graph.levelled(), clamped, cross_entropy(y)), expected) < 1e-12


@pytest.mark.parametrize("case", SINGLE_OUTPUT_CASES, ids=str)
def test_zil_gradients_equal_autograd(compiled: Compile, gradients: Gradients, case: Case) -> None:
    x, y = case.batch()
    assert worst(gradients(compiled(case, pccompile.ZIL(), vertices="auto"), x, y), autograd(case, x, y)) < 1e-12


@pytest.mark.parametrize("case", [SKIPS, TIED, BLOCKS], ids=str)
def test_zil_gradients_equal_autograd_whatever_is_a_vertex(compiled: Compile, gradients: Gradients, case: Case) -> None:
    x, y = case.batch()
    assert worst(gradients(compiled(case, pccompile.ZIL()), x, y), autograd(case, x, y)) < 1e-12


@pytest.mark.parametrize("case", SINGLE_OUTPUT_CASES, ids=str)
def test_zil_gradients_equal_autograd_with_the_loss_outside(compiled: Compile, case: Case) -> None:
    x, y = case.batch()
    pc = compiled(case, pccompile.ZIL(), loss_fn=None)
    leaves = {**dict(pc.named_parameters()), "x": x.clone().requires_grad_()}
    found = torch.autograd.grad(F.cross_entropy(pc(leaves["x"]), y), list(leaves.values()))
    assert worst(dict(zip(leaves, found, strict=True)), autograd(case, x, y)) < 1e-12


def test_zil_gradients_equal_autograd_where_the_loss_reads_a_hidden_value_too(
    compiled: Compile, gradients: Gradients
) -> None:
    x, y = TWO_HEADS.batch()
    expected = backpropagation(TWO_HEADS.graph, clamped_tensors(TWO_HEADS.model(), x), lambda h, o: both_heads(h, o, y))
    pc = compiled(TWO_HEADS, pccompile.ZIL(), both_heads_of)
    assert worst(gradients(pc, x, y), expected) < 1e-12


def test_the_literal_levelled_zil_program_equals_autograd_too(compiled: Compile, gradients: Gradients) -> None:
    x, y = SKIPS_NODES.batch()
    pc = compiled(SKIPS_NODES, pccompile.ZIL(), optimize=False, vertices="auto")
    assert worst(gradients(pc, x, y), autograd(SKIPS_NODES, x, y)) < 1e-12
    assert list(pc.program.stages) == ["literal", "level"]


@pytest.mark.parametrize("case", SKIP_CASES, ids=str)
def test_zil_without_levelling_is_wrong_on_a_graph_with_skips_as_the_equations_say(
    compiled: Compile, gradients: Gradients, case: Case
) -> None:
    x, y = case.batch()
    pc = compiled(case, ZILWithoutLevelling(), optimize=False)
    actual = gradients(pc, x, y)
    assert list(pc.program.stages) == ["literal"]
    assert worst(actual, autograd(case, x, y)) > 1e-2
    if case.vertices == "layers":  # with "nodes" an exact rule has vertices for functions of parameters alone as well
        assert worst(actual, zil(case.graph, clamped_tensors(case.model(), x), cross_entropy(y))) < 1e-12


def test_zil_without_levelling_is_wrong_on_nodes_with_skips(compiled: Compile, gradients: Gradients) -> None:
    x, y = SKIPS_NODES.batch()
    pc = compiled(SKIPS_NODES, ZILWithoutLevelling(), optimize=False, vertices="auto")
    assert worst(gradients(pc, x, y), autograd(SKIPS_NODES, x, y)) > 1e-2


@pytest.mark.parametrize("case", [CHAIN, CHAIN_NODES, BLOCKS], ids=str)
def test_zil_without_levelling_is_right_on_a_chain(compiled: Compile, gradients: Gradients, case: Case) -> None:
    x, y = case.batch()
    pc = compiled(case, ZILWithoutLevelling(), optimize=False)
    assert worst(gradients(pc, x, y), autograd(case, x, y)) < 1e-12
    assert list(pc.program.stages) == ["literal"]


# Fact 2 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimize", [True, False], ids=["optimised", "literal"])
@pytest.mark.parametrize("case", [CHAIN, *SKIP_CASES], ids=str)
def test_fixed_prediction_of_step_size_one_is_autograd_after_as_many_steps_as_the_longest_path(
    compiled: Compile, gradients: Gradients, case: Case, optimize: bool
) -> None:
    x, y = case.batch()
    longest = max(case.graph.levels().values())
    rule = pccompile.FixedPrediction(steps=longest, step_size=1.0)
    pc = compiled(case, rule, optimize=optimize)
    expected = autograd(case, x, y)
    assert worst(gradients(pc, x, y), expected) < 1e-12
    assert not any(vertex.kind == "delay" for vertex in pc.program.vertices)
    for steps in (longest + 1, 2 * longest + 3):
        pc.rule = pccompile.FixedPrediction(steps=steps, step_size=1.0)
        assert worst(gradients(pc, x, y), expected) < 1e-12
    for steps in range(1, longest):
        pc.rule = pccompile.FixedPrediction(steps=steps, step_size=1.0)
        early = gradients(pc, x, y)
        assert worst(early, expected) > 1e-2
        assert relative_error(early["x"], expected["x"]) > 1e-2


# Fact 3 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levelled", [True, False], ids=["levelled", "as it is"])
@pytest.mark.parametrize("case", [SKIPS, TIED, CHAIN], ids=str)
def test_one_sweep_with_binomial_gains_equals_the_iteration(
    compiled: Compile, gradients: Gradients, case: Case, levelled: bool
) -> None:
    x, y = case.batch()
    graph = case.graph.levelled() if levelled else case.graph
    clamped = clamped_tensors(case.model(), x)
    pc = compiled(case, pccompile.FixedPrediction(levelled=levelled))
    pc.prepare(x.clone().requires_grad_(), y)
    program = pc.program
    for step_size in STEP_SIZES:
        after = list(fixed_prediction_gradients(graph, clamped, cross_entropy(y), max(STEPS), step_size))
        for steps in STEPS:
            pc.rule = pccompile.FixedPrediction(steps, step_size, levelled)
            assert worst(gradients(pc, x, y), after[steps]) < 1e-11, (step_size, steps)
    assert pc.program is program


@pytest.mark.parametrize("case", [SKIPS, CHAIN], ids=str)
def test_levelled_errors_are_the_binomial_tail_of_the_level_times_the_exact_error(case: Case) -> None:
    x, y = case.batch()
    graph, clamped = case.graph.levelled(), clamped_tensors(case.model(), x)
    level = graph.levels()
    *_, exact = fixed_prediction_errors(graph, clamped, cross_entropy(y), max(level.values()), 1.0)
    for step_size in STEP_SIZES:
        after = list(fixed_prediction_errors(graph, clamped, cross_entropy(y), max(STEPS), step_size))
        for steps in STEPS:
            for name, error in after[steps].items():
                factor = tail(steps, step_size, level[name])
                assert relative_error(error, factor * exact[name]) < 1e-11, (step_size, steps, name)


@pytest.mark.parametrize("optimize", [True, False], ids=["optimised", "literal"])
@pytest.mark.parametrize("case", [SKIPS, TIED, CHAIN], ids=str)
def test_without_levelling_the_binomial_tail_applies_path_by_path(
    compiled: Compile, gradients: Gradients, case: Case, optimize: bool
) -> None:
    x, y = case.batch()
    clamped = clamped_tensors(case.model(), x)
    pc = compiled(case, pccompile.FixedPrediction(), optimize=optimize)
    for step_size in STEP_SIZES:
        for steps in STEPS:
            pc.rule = pccompile.FixedPrediction(steps, step_size)
            weight = {length: tail(steps, step_size, length) for length in range(9)}.__getitem__
            expected = along_paths(case.graph, clamped, cross_entropy(y), weight)
            assert worst(gradients(pc, x, y), expected) < 1e-11, (step_size, steps)


def test_levelling_changes_the_result_of_fixed_prediction_on_a_graph_with_skips() -> None:
    x, y = SKIPS.batch()
    clamped = clamped_tensors(SKIPS.model(), x)
    as_it_is = fixed_prediction(SKIPS.graph, clamped, cross_entropy(y), 10, 0.1)
    levelled = fixed_prediction(SKIPS.graph.levelled(), clamped, cross_entropy(y), 10, 0.1)
    assert worst(levelled, as_it_is) > 1e-2


def test_the_program_that_needs_no_iteration_has_none(compiled: Compile) -> None:
    pc = compiled(SKIPS, pccompile.FixedPrediction(levelled=True))
    pc.prepare(*SKIPS.batch())
    assert all(update.span.single and not update.span.stop.from_end for update in pc.program.schedule)


@pytest.mark.parametrize("probability", [0.1, 0.25, 0.7, 1.0])
@pytest.mark.parametrize("trials", [1, 2, 7, 40, 200])
def test_the_binomial_tail_is_exact_to_rounding(trials: int, probability: float) -> None:
    p = Fraction(probability)
    terms = [comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(trials + 1)]
    for at_least in (0, 1, 2, 5, 8, 19, trials, trials + 1):
        exact = float(sum(terms[at_least:], Fraction(0)))
        assert binomial_tail(trials, probability, at_least) == pytest.approx(exact, rel=1e-12, abs=0.0)


# Fact 4 ---------------------------------------------------------------------------------------------------------------


def late_errors(graph: Graph, clamped: Tensors, y: Tensor, steps: int, step_size: float) -> Tensors:
    """Torch2PC's FixedPred: values move, top down, by errors that were read before the move; the last read counts."""
    predictions = feed_forward(graph, clamped)
    linear = linearise(graph, clamped, predictions)
    _, errors = loss_and_errors(graph, linear, cross_entropy(y))
    values = dict(predictions)
    for _ in range(steps):
        for below, above in reversed(list(zip(graph.hidden, graph.vertices[1:], strict=True))):
            errors[below.name] = values[below.name] - predictions[below.name]
            (pulled,) = linear[above.name].to_parents(errors[above.name])
            values[below.name] = values[below.name] + step_size * (pulled - errors[below.name])
    return errors


def top_down_errors(graph: Graph, clamped: Tensors, y: Tensor, steps: int, step_size: float) -> Tensors:
    """A sequential sweep from the output down: each error is read by the vertex below in the same step."""
    linear = linearise(graph, clamped, feed_forward(graph, clamped))
    _, errors = loss_and_errors(graph, linear, cross_entropy(y))
    errors |= {vertex.name: torch.zeros_like(linear[vertex.name].prediction) for vertex in graph.hidden}
    for _ in range(steps):
        for below, above in reversed(list(zip(graph.hidden, graph.vertices[1:], strict=True))):
            (pulled,) = linear[above.name].to_parents(errors[above.name])
            errors[below.name] = (1 - step_size) * errors[below.name] + step_size * pulled
    return errors


LONG = Case("long chain", lambda: chain((6, 5, 5, 5, 5, 4)), "layers", chain_layers(5))


@pytest.mark.parametrize("step_size", STEP_SIZES)
@pytest.mark.parametrize("steps", STEPS)
def test_reading_the_error_before_the_move_is_the_same_recursion_one_step_late(steps: int, step_size: float) -> None:
    x, y = LONG.batch()
    clamped, level = clamped_tensors(LONG.model(), x), LONG.graph.levels()
    *_, exact = fixed_prediction_errors(LONG.graph, clamped, cross_entropy(y), 10, 1.0)
    for name, error in late_errors(LONG.graph, clamped, y, steps, step_size).items():
        factor = binomial_tail(steps - 1, step_size, level[name])
        assert factor == pytest.approx(tail(steps - 1, step_size, level[name]), rel=1e-12)
        scale = float(exact[name].norm())
        assert float((error - factor * exact[name]).norm()) < 1e-12 * scale


@pytest.mark.parametrize("step_size", STEP_SIZES)
@pytest.mark.parametrize("steps", STEPS)
def test_a_sequential_sweep_gains_as_many_trials_as_the_level(steps: int, step_size: float) -> None:
    x, y = LONG.batch()
    clamped, level = clamped_tensors(LONG.model(), x), LONG.graph.levels()
    *_, exact = fixed_prediction_errors(LONG.graph, clamped, cross_entropy(y), 10, 1.0)
    for name, error in top_down_errors(LONG.graph, clamped, y, steps, step_size).items():
        factor = binomial_tail(steps - 1 + level[name], step_size, level[name])
        assert factor == pytest.approx(tail(steps - 1 + level[name], step_size, level[name]), rel=1e-12)
        assert relative_error(error, factor * exact[name]) < 1e-12


@pytest.mark.parametrize("step_size", [0.1, 0.7])
@pytest.mark.parametrize("steps", [2, 5, 20])
def test_torch2pc_fixed_prediction_gradients_are_those_of_one_step_less(
    compiled: Compile, gradients: Gradients, steps: int, step_size: float
) -> None:
    x, y = LONG.batch()
    clamped = clamped_tensors(LONG.model(), x)
    errors = late_errors(LONG.graph, clamped, y, steps, step_size)
    linear = linearise(LONG.graph, clamped, feed_forward(LONG.graph, clamped))
    expected = {name: torch.zeros_like(tensor) for name, tensor in clamped.items()}
    for vertex in LONG.graph.vertices:
        for name, part in linear[vertex.name].to_clamped(errors[vertex.name]).items():
            expected[name] = expected[name] - part
    rule = pccompile.FixedPrediction(steps - 1, step_size)
    pc = compiled(LONG, rule)
    actual = gradients(pc, x, y)
    for name, gradient in actual.items():
        assert torch.allclose(gradient, expected[name], rtol=1e-9, atol=1e-14), name


# Fact 5 ---------------------------------------------------------------------------------------------------------------


def errors_as_value_minus_prediction(
    graph: Graph, clamped: Tensors, y: Tensor, steps: int, step_size: float
) -> Tensors:
    """Fixed prediction with the value as the state: e is recovered as v - mu in every step."""
    linear = linearise(graph, clamped, feed_forward(graph, clamped))
    _, outer = loss_and_errors(graph, linear, cross_entropy(y))
    values = {vertex.name: linear[vertex.name].prediction.clone() for vertex in graph.hidden}

    def errors() -> Tensors:
        return {**outer, **{name: value - linear[name].prediction for name, value in values.items()}}

    for _ in range(steps):
        before = errors()
        for below, above in zip(graph.hidden, graph.vertices[1:], strict=True):
            (pulled,) = linear[above.name].to_parents(before[above.name])
            values[below.name] = values[below.name] + step_size * (pulled - before[below.name])
    return errors()


DEEP = Case("eight layers", lambda: chain((6, *[16] * 7, 4)), "layers", chain_layers(8))


def test_in_float32_the_error_must_be_the_state() -> None:
    x, y = DEEP.batch(128)
    clamped = clamped_tensors(DEEP.model(), x)
    single = {name: tensor.float() for name, tensor in clamped.items()}
    *_, exact = fixed_prediction_errors(DEEP.graph, clamped, cross_entropy(y), 200, 0.1)
    *_, as_state = fixed_prediction_errors(DEEP.graph, single, cross_entropy(y), 200, 0.1)
    recovered = errors_as_value_minus_prediction(DEEP.graph, single, y, 200, 0.1)
    first = DEEP.graph.vertices[0].name
    kept, lost = relative_error(as_state[first], exact[first]), relative_error(recovered[first], exact[first])
    assert kept < 1e-5
    assert lost > 4e-3
    assert lost > 1000 * kept


@pytest.mark.parametrize("levelled", [True, False], ids=["levelled", "as it is"])
def test_compiled_fixed_prediction_keeps_float32_accuracy_after_many_steps(
    gradients: Gradients, levelled: bool
) -> None:
    x, y = DEEP.batch(128)
    expected = fixed_prediction(DEEP.graph, clamped_tensors(DEEP.model(), x), cross_entropy(y), 200, 0.1)
    rule = pccompile.FixedPrediction(200, 0.1, levelled)
    pc = pccompile.compile(DEEP.model().float(), rule, F.cross_entropy, vertices="layers")
    assert worst(gradients(pc, x.float(), y), expected) < 1e-4
