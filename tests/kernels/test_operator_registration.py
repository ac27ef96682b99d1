"""An operator's one function: it launches where there is something to read, and else says what would come of it."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pccompile.kernels import counting_launches, linear_error_into, linear_predict
from pccompile.kernels.operators import has_data


def test_only_tensors_with_numbers_behind_them_have_data():
    x = torch.empty(2, 0)
    with FakeTensorMode() as traced:
        assert not has_data(traced.from_tensor(x)) and not has_data(torch.empty(2))
    assert has_data(x) and has_data(torch.nn.Parameter(x)) and not has_data(x.to("meta"))


def test_without_data_an_operator_gives_what_its_results_are_like_and_launches_nothing():
    x, weight = torch.empty(3, 4, device="meta", dtype=torch.bfloat16), torch.empty(5, 4, device="meta").bfloat16()
    with counting_launches() as launches:
        output, residual = linear_predict(x, weight, activation="silu")
        linear_error_into(output, residual, x, weight, "silu", parent_error=torch.empty_like(x))
    assert not launches
    assert all(t.is_meta and t.shape == (3, 5) and t.dtype == torch.bfloat16 for t in (output, residual))
