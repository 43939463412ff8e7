"""bfloat16 in Triton's interpreter: refused where it is wrong."""

from __future__ import annotations

import pytest
import torch

from circle_kernels import available_backends, circle_loss
from tests.support.apart import apart
from tests.support.targets import INTERPRETED

pytest.importorskip("triton", minversion="3.3")

from circle_kernels.backends.triton.interpreted import takes_bfloat16

pytestmark = [
    pytest.mark.backends,
    pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1"),
]


@apart
def test_users_get_the_right_loss_or_an_error_that_says_what_is_taken() -> None:
    """In a process whose interpreter is as Triton has it."""
    embeddings, labels = torch.randn(12, 8, dtype=torch.bfloat16), torch.arange(12) % 3
    expected = circle_loss(embeddings.double(), labels, backend="reference")
    if takes_bfloat16():
        loss = circle_loss(embeddings, labels, backend="triton")
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
        assert "float32, float16 and bfloat16" in available_backends()["triton"]
        return
    with pytest.raises(RuntimeError, match=r"'triton' cannot serve torch\.bfloat16 .* float16"):
        circle_loss(embeddings, labels, backend="triton")
    assert "float32 and float16" in available_backends()["triton"]
    loss = circle_loss(embeddings, labels)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
