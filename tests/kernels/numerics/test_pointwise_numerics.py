"""Generated pointwise kernels against their reference and against PyTorch."""

from functools import partial
from itertools import product

import pytest
import torch
from closeness import assert_close
from layers import strided, transposed
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from pccompile.errors import ShapeError, UsageError
from pccompile.kernels.pointwise import pointwise, supports
from pccompile.kernels.pointwise.configurations import Configuration
from pccompile.kernels.pointwise.kernel import launch_pointwise
from pccompile.kernels.pointwise.operator import run_pointwise
from pccompile.kernels.pointwise.reference import pointwise_reference

aten = torch.ops.aten


def graph_of(function, *inputs):
    graph = make_fx(function)(*inputs).graph
    graph.eliminate_dead_code()
    return graph


def with_numbers(function):
    """The graph of a function of tensors and numbers, which tracing on values would write into it."""
    return fx.symbolic_trace(function).graph


def check(function, *inputs, ratio=None, trace=graph_of):
    """Compare the function's kernel with the reference, dtypes and shapes with PyTorch's own."""
    graph = trace(function, *inputs)
    actual = pointwise(graph)(*inputs)
    eager = function(*inputs)
    eager = eager if isinstance(eager, tuple) else (eager,)
    for index, (reference, own, result) in enumerate(
        zip(pointwise_reference(graph, *inputs), eager, actual, strict=True)
    ):
        assert result.dtype is own.dtype
        if result.dtype.is_floating_point:
            assert_close(f"output {index}", reference, result, ratio)
        else:
            assert torch.equal(own, result)
    return actual


FUNCTIONS = {
    "arithmetic": lambda x, y: (torch.add(x, y, alpha=-0.5) * 2 - (1 - x) / (y.abs() + 1), torch.sub(x, y, alpha=2)),
    "divisions": lambda x, y: (torch.div(x, y, rounding_mode="floor"), torch.div(x, y, rounding_mode="trunc")),
    "powers": lambda x, y: (
        x**2 + y**3,
        (x.abs() + 0.1) ** 1.7,
        1 / (x**2 + 1),
        (x * x + 1) ** -0.5,
        2**y,
        x**0,
        x**-3,
    ),
    "roots": lambda x, y: (x.abs().sqrt(), (y.abs() + 0.1).rsqrt(), x.square(), -y),
    "exponentials": lambda x, y: (x.exp(), y.abs().log(), (0.01 * x).expm1(), (0.01 * y.abs()).log1p(), x.exp2()),
    "waves": lambda x, y: (x.sin(), y.cos(), x.erf(), x.floor() + y.ceil(), x.sign()),
    "bounds": lambda x, y: (x.clamp(-0.5, 0.7), x.clamp(max=0.2), torch.maximum(x, y), torch.minimum(x, y)),
    "choices": lambda x, y: (torch.where(x > y, x, 0.0), x.masked_fill(y <= 0, -1.0), (x >= 0) & (y != x), ~(x < y)),
    "sums of products": lambda x, y: (torch.addcmul(x, y, y, value=0.3), torch.lerp(x, y, 0.2)),
    "activations": lambda x, y: (torch.relu(x), torch.tanh(y), torch.sigmoid(x), aten.gelu(y), aten.silu(x)),
    "more activations": lambda x, y: (aten.softplus(x), aten.elu(x, 0.7), aten.leaky_relu(y, 0.2), aten.hardtanh(x)),
    "further activations": lambda x, y: (aten.mish(x), aten.hardswish(3 * y), aten.hardsigmoid(3 * x)),
    "further derivatives": lambda x, y: (
        aten.mish_backward(x, y),
        aten.hardswish_backward(x, 3 * y),
        aten.hardsigmoid_backward(x, 3 * y),
        aten.log_sigmoid_backward(x, y, (-y.abs()).exp()),
    ),
    "derivatives": lambda x, y: (
        aten.threshold_backward(x, y, 0),
        aten.tanh_backward(x, torch.tanh(y)),
        aten.sigmoid_backward(x, torch.sigmoid(y)),
        aten.gelu_backward(x, y),
        aten.gelu_backward(x, y, approximate="tanh"),
        aten.silu_backward(x, y),
        aten.softplus_backward(x, y, 1, 20),
        aten.leaky_relu_backward(x, y, 0.2, False),
        aten.elu_backward(x, 0.7, 1, 1, False, y),
        aten.hardtanh_backward(x, y, -1, 1),
    ),
    "constants": lambda x, y: (torch.ones_like(x) - torch.full_like(y, 0.25) * x, torch.zeros_like(y)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operators_equal_the_reference(device, name):
    check(FUNCTIONS[name], *torch.randn(2, 7, 33, device=device), ratio=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_rounded_once(device, dtype):
    x, y = torch.randn(2, 7, 33, device=device).to(dtype)
    check(lambda x, y: (x + 100) - 100 + y, x, y, ratio=4e-3 if dtype is torch.bfloat16 else 5e-4)
    check(lambda x, y: (aten.silu_backward(x, y), x > y), x, y)


def test_casts_round_where_the_graph_says_so(device):
    x = torch.randn(5, 33, device=device)
    (actual,) = check(lambda x: (x + 100).half().float() - 100, x, ratio=0)
    assert not torch.allclose(actual, x, atol=1e-2)
    check(lambda x: (x.half(), (3 * x).to(torch.int64), (x > 0).float() * x, x.to(torch.bool)), x)


def test_integers_and_booleans_follow_promotion(device):
    x = torch.randn(5, 33, device=device)
    count = torch.randint(-3, 4, (5, 33), device=device)
    mask = torch.rand(5, 33, device=device) < 0.5
    check(lambda x, n, m: (x * n + 1, n + 2, n / 2, n == 1, x * m, torch.where(m, n, x), n > 0.5), x, count, mask)
    check(lambda m, n: (torch.logical_and(m, n), m & (n > 0), torch.logical_not(n)), mask, count)
    check(lambda g, m: aten.native_dropout_backward(g, m, 1.25), x, mask)


def test_what_is_not_a_number_stays_so(device):
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0], device=device)
    (kernel,) = pointwise(graph_of(lambda x: torch.relu(x).clamp(-2, 2), x))(x)
    assert torch.equal(kernel.isnan(), x.isnan())
    assert torch.equal(kernel[1:], torch.tensor([2.0, 0.0, 1.0], device=device))
    both = pointwise(graph_of(lambda x, y: (torch.maximum(x, y), torch.minimum(y, x)), x, x.flip(0)))(x, x.flip(0))
    assert all(torch.equal(result.isnan(), x.isnan() | x.flip(0).isnan()) for result in both)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (63,), (3, 1, 5, 2), (2000,)], ids=str)
def test_awkward_shapes(device, shape):
    check(lambda x, y: torch.tanh(x) * y, torch.randn(shape, device=device), torch.randn(shape, device=device))


def test_inputs_are_broadcast(device):
    x, row, column, one = (torch.randn(size, device=device) for size in ((4, 6, 33), (33,), (6, 1), ()))
    check(lambda x, r, c, o: torch.tanh(x + r) * c - o, x, row, column, one)
    check(lambda r, c: r * c, row, column)


def test_any_layout_is_followed_and_kept(device):
    x, y = torch.randn(2, 6, 33, device=device)
    check(lambda x, y: x + 2 * y, transposed(x), strided(y))
    image = torch.randn(2, 3, 5, 4, device=device).to(memory_format=torch.channels_last)
    (result,) = check(lambda x: torch.relu(x), image)
    assert result.stride() == image.stride()


def test_elements_far_apart_are_addressed_with_64_bits(device):
    x = (
        torch.empty(2**31 + 4, dtype=torch.float16, device=device)
        .as_strided((3, 2), (2**30, 1))
        .copy_(torch.randn(3, 2))
    )
    check(lambda x, y: x * y, x, torch.randn(3, 2, device=device).half())


@pytest.mark.parametrize("dims", [[0], [0, 2], [1], [2], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("keepdim", [False, True])
def test_errors_are_summed_over_the_dimensions_that_were_broadcast(device, dims, keepdim):
    x, y = torch.randn(2, 5, 7, 9, device=device)
    # Positive, so that no sum cancels.
    check(lambda x, y: (x * y, (x * y).abs().sum(dims, keepdim), torch.sigmoid(x).sum(dims, keepdim)), x, y)


def gated_error(dims, keepdim):
    """The errors of silu(a) * b times a row plus a column: of a, of the product, of what was broadcast."""

    def function(error, a, b, row, column):
        to_product = error * row + column
        sums = error.sum(dims, keepdim), (error * aten.silu(a) * b).sum(dims, keepdim)
        return aten.silu_backward(to_product * b, a), to_product, *sums

    return function


SHAPES = [(5, 33), (1, 33), (5, 1), (1, 1), (0, 7), (300, 9)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_and_sums_of_a_gated_run_at_awkward_shapes(device, shape, dtype):
    rows, columns = shape
    sizes = (shape, shape, shape, (columns,), (rows, 1))
    inputs = [torch.rand(size, device=device).to(dtype) + 0.5 for size in sizes]
    for dims, keepdim in product(([0], [1]), (False, True)):
        once, again = (check(gated_error(dims, keepdim), *inputs) for _ in range(2))
        assert all(map(torch.equal, once, again))


def test_numbers_that_a_run_provides_are_arguments(device):
    def function(x, y, gain, step):
        moved = aten.add.Tensor(x, y, alpha=step)
        scaled = aten.mul.Tensor(gain, moved)
        others = aten.sub.Tensor(gain, x), aten.div.Tensor(y, step), aten.add.Tensor(x, gain)
        return moved, aten.sum.dim_IntList(scaled, [0]), *others

    graph = with_numbers(function)
    run = partial(run_pointwise, pointwise(graph).name)
    for dtype in (torch.float32, torch.bfloat16):
        x, y = (torch.rand(2, 7, 33, device=device) + 0.5).to(dtype)
        for numbers in ((0.3, 1.5), (1, -0.1), (2.0, 1.0)):
            check(function, x, y, *numbers, trace=lambda *_: graph)
        gain = torch.tensor(0.3, device=device)  # as the derivative of a loss comes
        for number, scalar in zip(run(x, y, 0.3, 1.5), run(x, y, gain, 1.5), strict=True):
            assert torch.equal(number, scalar)
        plans = [pointwise(graph).plan(x, y, *numbers) for numbers in ((0.3, 1.5), (1.0, 7.0))]
        assert plans[0] is plans[1]


def test_a_sum_over_everything_and_over_many_shares(device):
    x = torch.randn(5000, 3, device=device)
    check(lambda x: (x * x).sum(), x)
    check(lambda x: (x * x).sum(0), x)
    graph = graph_of(lambda x: ((x * x).sum(0), x + 1), x)
    plan, outputs = pointwise(graph).plan(x), [torch.full((3,), torch.nan, device=device), torch.empty_like(x)]
    for cut in (Configuration(4, 512, 7), Configuration(2, 1024, 2)):
        launch_pointwise(plan, [x], outputs, cut)
        for expected, result in zip(pointwise_reference(graph, x), outputs, strict=True):
            assert_close("output", expected, result)


def test_empty_tensors_launch_nothing(device):
    x = torch.randn(0, 5, device=device)
    result, total = check(lambda x: (torch.tanh(x), x.exp().sum(0)), x)
    assert result.shape == (0, 5) and not total.any()


def test_results_repeat_bit_for_bit_and_kernels_are_shared(device):
    x = torch.randn(300, 9, device=device)
    first, second = (pointwise(graph_of(lambda x: torch.tanh(x).sum(0), x)) for _ in range(2))
    assert first is second and torch.equal(first(x)[0], second(x)[0])
    assert first.plan(x).kernel is first.plan(x[:200]).kernel


def test_the_operator_keeps_its_contract_and_is_whole_in_a_compiled_function(device):
    x, bias = torch.randn(6, 5, device=device), torch.randn(5, device=device)
    kernel = pointwise(graph_of(lambda x, b: (torch.tanh(x + b), (x > b), (x * b).sum([0], True)), x, bias))
    torch.library.opcheck(torch.ops.pccompile.pointwise.default, ([x, bias], [], kernel.key))
    compiled = torch.compile(lambda x, b: kernel(x, b)[0] + 1, backend="aot_eager", fullgraph=True)
    assert_close("output", torch.tanh(x + bias) + 1, compiled(x, bias))


def test_the_source_reads_as_the_graph(device):
    x = torch.randn(3, 4, device=device)
    source = pointwise(graph_of(lambda x: torch.tanh(x) * 2, x)).plan(x).source
    assert 'v0 = activate(in0, 0.0, "tanh")  # tanh.default\n' in source
    assert "v1 = v0 * 2.0  # mul.Tensor\n" in source


def test_what_is_not_in_the_table_is_refused_by_name(device):
    x = torch.randn(3, 4, device=device)
    for function, operator in ((lambda x: x.cumsum(0), "cumsum"), (lambda x: x.sum(0) * 2, "sum.dim_IntList")):
        graph = graph_of(function, x)
        assert operator in supports(graph)
        with pytest.raises(UsageError, match=operator):
            pointwise(graph)
    with pytest.raises(UsageError, match="div of integers"):
        pointwise(graph_of(lambda n: torch.div(n, 2, rounding_mode="floor"), x.long()))(x.long())
    with pytest.raises(UsageError, match="exponent 31"):
        pointwise(graph_of(lambda x: x**31, x))(x)
    with pytest.raises(UsageError, match="float64"):
        pointwise(graph_of(lambda x: x + 1, x))(x.double())
    with pytest.raises(UsageError, match=r"dimensions \[0\] and \[1\]"):
        pointwise(graph_of(lambda x: (x.sum(0), x.sum(1)), x))(x)
    with pytest.raises(UsageError, match="Tensor_Scalar with a number that the run provides"):
        pointwise(with_numbers(lambda x, n: aten.pow.Tensor_Scalar(x, n)))(x, 2.0)
    with pytest.raises(UsageError, match="1 inputs"):
        pointwise(with_numbers(lambda n, x: aten.mul.Tensor(n, x)))(2.0, x)
    with pytest.raises(ShapeError, match="others are broadcast"):
        pointwise(graph_of(lambda x, y: (x + y, y * 2), x, x[0]))(x, x[0])
    with pytest.raises(ShapeError, match="is on meta"):
        pointwise(graph_of(lambda x, y: x + y, x, x))(x, x.to("meta"))
