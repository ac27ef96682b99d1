"""Rewritten for Python's interpreter, flat graphs compute the same with fewer calls, most of them bit for bit."""

import operator

import pytest
import torch
from torch import fx

from pccompile.lowering.direct import direct

aten = torch.ops.aten


def traced(build, *inputs):
    """A graph over inputs whose nodes carry the kinds of their values."""
    graph = fx.Graph()
    nodes = []
    for position, value in enumerate(inputs):
        nodes.append(graph.placeholder(f"x{position}"))
        nodes[-1].meta["val"] = value.clone()

    def call(target, *args, **kwargs):
        node = graph.call_function(target, args, kwargs)
        concrete = fx.node.map_arg((args, kwargs), lambda n: n.meta["val"].clone())
        node.meta["val"] = target(*concrete[0], **concrete[1])
        return node

    graph.output(tuple(build(call, *nodes)))
    return graph


def run(graph, inputs):
    return fx.GraphModule({}, graph)(*inputs)


def targets(graph):
    return [node.target for node in graph.nodes if node.op == "call_function"]


def rewritten(build, *shapes, owned=(), rounding=0.0, dtype=torch.float32):
    """The rewritten graph's targets, after it has been compared with the graph it was."""
    torch.manual_seed(0)
    inputs = [torch.randn(shape, dtype=dtype) for shape in shapes]
    graph = traced(build, *inputs)
    expected = run(graph, [value.clone() for value in inputs])
    direct(graph, [node for node in graph.find_nodes(op="placeholder") if node.name in owned])
    graph.lint()
    given = [value.clone() for value in inputs]
    found = run(graph, given)
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=rounding, atol=rounding)
    for name, before, after in zip((f"x{i}" for i in range(len(inputs))), inputs, given, strict=True):
        assert name in owned or torch.equal(before, after)
    return targets(graph)


def test_a_product_with_a_transposed_weight_and_a_bias_is_one_call():
    found = rewritten(
        lambda call, x, w, b: [call(aten.addmm.default, b, x, call(aten.t.default, w))], (4, 3), (5, 3), (5,)
    )
    assert found == [torch._C._nn.linear]


def test_a_sum_that_keeps_dimensions_only_to_drop_them_is_one_call():
    def build(call, e):
        return [call(aten.view.default, call(aten.sum.dim_IntList, e, [0], True), [3])]

    assert rewritten(build, (4, 3)) == [torch.sum]


def test_a_sum_that_is_reshaped_otherwise_stays():
    def build(call, e):
        return [call(aten.view.default, call(aten.sum.dim_IntList, e, [0], True), [3, 1])]

    assert len(rewritten(build, (4, 3))) == 2


def test_an_elementwise_result_takes_the_place_of_what_nothing_reads_again():
    def build(call, x, y):
        return [call(aten.tanh.default, call(operator.sub, call(aten.mul.Tensor, x, y), y))]

    assert rewritten(build, (4, 3), (4, 3)) == [torch.mul, torch.Tensor.sub_, torch.tanh_]


def test_the_second_operand_of_a_sum_serves_as_well():
    assert rewritten(lambda call, x: [call(aten.add.Tensor, x, call(aten.exp.default, x))], (4, 3)) == [
        torch.exp,
        torch.Tensor.add_,
    ]


def read_again(call, x):
    h = call(aten.exp.default, x)
    return [call(aten.mul.Tensor, call(aten.tanh.default, h), h)]


def seen_through_a_view(call, x):
    h = call(aten.exp.default, x)
    return [call(aten.view.default, h, [12]), call(aten.tanh.default, h)]


@pytest.mark.parametrize(
    "build, shapes",
    [
        pytest.param(lambda call, x: [call(aten.tanh.default, x)], [(4, 3)], id="an input"),
        pytest.param(
            lambda call, x: [(h := call(aten.exp.default, x)), call(aten.tanh.default, h)], [(4, 3)], id="an output"
        ),
        pytest.param(read_again, [(4, 3)], id="read again"),
        pytest.param(seen_through_a_view, [(4, 3)], id="a view of it is an output"),
        pytest.param(
            lambda call, x: [call(aten.add.Tensor, h := call(aten.exp.default, x), call(aten.t.default, h))],
            [(3, 3)],
            id="the other operand lies in the same memory",
        ),
        pytest.param(
            lambda call, x, y: [call(aten.add.Tensor, call(aten.exp.default, x), y)], [(3,), (4, 3)], id="broadcast"
        ),
        pytest.param(
            lambda call, x: [call(aten.tanh.default, call(aten.select.int, call(aten.exp.default, x), 0, 1))],
            [(4, 3)],
            id="part of it",
        ),
    ],
)
def test_nothing_is_written_over(build, shapes):
    found = rewritten(build, *shapes)
    in_place = [target for target in found if getattr(target, "__name__", "").endswith("_")]
    assert in_place in ([], [torch.Tensor.mul_])  # the product of what was read again may be written in place itself


def test_what_a_loop_carries_may_be_written_into():
    def build(call, value, direction):
        return [call(torch.add, value, direction, alpha=0.5)]

    assert rewritten(build, (4, 3), (4, 3), owned=("x0",)) == [torch.Tensor.add_]
    assert rewritten(build, (4, 3), (4, 3)) == [torch.add]


def step(call, value, prediction, pulled):
    """The value after a step against its error, and the error."""
    error = call(operator.sub, value, prediction)
    return call(torch.add, value, call(operator.sub, pulled, error), alpha=0.5), error


def alone(call, value, prediction, pulled):
    return [step(call, value, prediction, pulled)[0]]


def alone_of_a_product(call, value, prediction, left, right):
    return [step(call, value, prediction, call(aten.mm.default, left, right))[0]]


def read_elsewhere(call, value, prediction, pulled):
    return list(step(call, value, prediction, pulled))


def read_elsewhere_of_a_product(call, value, prediction, left, right):
    return list(step(call, value, prediction, call(aten.mm.default, left, right)))


VALUES, PRODUCT = ((4, 3), (4, 3), (4, 3)), ((4, 3), (4, 3), (4, 5), (5, 3))


@pytest.mark.parametrize(
    ("build", "shapes", "expected"),
    [
        (alone, VALUES, [torch.Tensor.lerp_, torch.Tensor.add_]),
        (alone_of_a_product, PRODUCT, [torch.Tensor.lerp_, torch.Tensor.addmm_]),
        (read_elsewhere_of_a_product, PRODUCT, [operator.sub, torch.Tensor.sub_, torch.Tensor.addmm_]),
        (read_elsewhere, VALUES, [operator.sub, operator.sub, torch.Tensor.add_]),
    ],
)
def test_a_value_takes_a_step_in_as_few_passes_as_that_takes(build, shapes, expected):
    assert rewritten(build, *shapes, owned=("x0",), rounding=1e-6) == expected


def test_in_double_precision_a_step_keeps_every_bit():
    found = rewritten(alone_of_a_product, *PRODUCT, owned=("x0",), dtype=torch.float64)
    assert found == [torch.mm, operator.sub, torch.Tensor.sub_, torch.Tensor.add_]
