"""bfloat16 in Triton's interpreter: refused where it is wrong, and right in these tests."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from circle_kernels import CircleFormula, available_backends, circle_loss
from tests.support.apart import apart
from tests.support.targets import INTERPRETED

pytest.importorskip("triton", minversion="3.3")
pytest.importorskip("numpy")  # the interpreter's

from circle_kernels.backends.triton import unusable_reason
from circle_kernels.backends.triton.interpreted import takes_bfloat16
from tests.support.interpreter.bfloat16 import narrow, widen

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


def test_interpreter_of_these_tests_takes_bfloat16_also_when_asked_by_a_tracer() -> None:
    takes_bfloat16.cache_clear()
    with FakeTensorMode(), torch.inference_mode():
        reason = unusable_reason(torch.device("cpu"), torch.bfloat16, CircleFormula())
    assert reason is None


def test_bfloat16_is_widened_and_rounded_as_by_torch() -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16)
    wide = every.view(torch.bfloat16).float()
    assert torch.equal(
        torch.from_numpy(widen(every.numpy())).view(torch.int32), wide.view(torch.int32)
    )
    # Each of them with what rounds down, up, and either way.
    below = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
    values = (wide.view(torch.int32)[:, None] | below).view(torch.float32)
    expected = values.bfloat16()
    found = torch.from_numpy(narrow(values.numpy()).view("int16")).view(torch.bfloat16)
    numbers = ~expected.isnan()
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found[numbers].view(torch.int16), expected[numbers].view(torch.int16))
