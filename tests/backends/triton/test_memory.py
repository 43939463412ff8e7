"""Memory that the Triton passes plan to take: as little as it should be.

Counted on fake tensors under a device's hardware, so that no device is needed.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", minversion="3.3")

from circle_kernels.backends.triton.conditions import Limits, assuming
from tests.backends.triton.planned_memory import planned_memory


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_counted_is_what_there_is(dtype: torch.dtype) -> None:
    """Between the passes: log-sum-exps of both kinds, and of each row what is known of it."""
    rows, depth = 256, 64
    assert planned_memory(rows, depth, dtype).kept == (16 + 4 * 4 + 8) * rows
    kept = 16 * rows  # both log-sum-exps, natural and of exponents
    kept += rows * depth * dtype.itemsize  # the copy of the embeddings
    kept += (4 + 4 + 4 + 8) * rows  # scales, two kinds of norms, labels
    with assuming(limits=Limits(small_rows=0)):
        assert planned_memory(rows, depth, dtype).kept == kept
    with assuming(limits=Limits(small_rows=0, sides_bytes=0)):
        assert planned_memory(rows, depth, dtype).kept == 16 * rows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("num_rows", "num_references", "depth"),
    [
        (256, None, 512),
        (65_536, None, 100),
        (512, 1_000_000, 128),
        (100_000, 512, 256),
        (20_000, 20_000, 64),
    ],
)
def test_limits_bound_what_is_taken_beside_vectors_and_copies(
    num_rows: int, num_references: int | None, depth: int, dtype: torch.dtype
) -> None:
    limits = Limits()
    rows = num_rows + (num_references or 0)
    padded = -(-depth // 16) * 16
    copies = rows * padded * dtype.itemsize
    vectors = 100 * (rows + 512)
    planned = planned_memory(num_rows, depth, dtype, num_references)
    assert planned.kept <= limits.sides_bytes + vectors
    assert planned.forward <= planned.kept + limits.partial_bytes + copies + vectors
    # Of sums and the product that is added to them, a few chunks of a side.
    sums = 4 * padded * 3 * max(num_rows, num_references or 0)
    most = planned.kept + limits.workspace_bytes + copies + sums + vectors
    assert limits.workspace_bytes * (rows > 5000) / 4 <= planned.backward <= most


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("num_classes", [1000, 1_000_000])
def test_class_weights_are_neither_sorted_nor_copied(num_classes: int, dtype: torch.dtype) -> None:
    planned = planned_memory(512, 512, dtype, num_classes, classes=True)
    # Vectors, and a chunk of weights and of the gradient.
    assert planned.peak <= 30 * num_classes + 160e6


def test_large_batches_take_little() -> None:
    """The bound of 256 MB above inputs and gradients at N = 65,536, D = 512 in bfloat16."""
    assert planned_memory(65_536, 512, torch.bfloat16).peak <= 256e6


@pytest.mark.parametrize("num_references", [None, 20_000])
def test_memory_grows_with_the_batch_and_not_with_its_square(num_references: int | None) -> None:
    small = planned_memory(25_000, 128, torch.bfloat16, num_references)
    large = planned_memory(200_000, 128, torch.bfloat16, num_references)
    assert large.peak <= 9 * small.peak
