"""The comparison that the kernel tests rest on sees what it should see."""

import pytest
import torch
from closeness import assert_close, error_ratio


def test_the_ratio_is_of_root_mean_squares():
    reference = torch.tensor([3.0, 4.0])
    assert error_ratio(reference, reference * 1.5) == pytest.approx(0.5)
    assert error_ratio(torch.zeros(4), torch.full((4,), 2.0)) == 2.0


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: t[:-1], "shape"),
        (lambda t: torch.full_like(t, torch.nan), "not finite"),
        (lambda t: t * (1 + 1e-5), "error ratio"),
        (lambda t: t.flip(0), "error ratio"),
        (lambda t: None, "missing"),
    ],
)
def test_a_spoiled_result_is_refused(spoil, words):
    reference = torch.arange(1.0, 61.0)
    assert_close("result", reference, reference.clone())
    with pytest.raises(AssertionError, match=words):
        assert_close("result", reference, spoil(reference))
