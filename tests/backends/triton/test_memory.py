"""Memory that the Triton launcher plans: what it says is what it takes, and that is little.

Counted on fake tensors of a pretended device, so that no device is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton", minversion="3.3")

from bench.offline.pretended import DEVICES, pretend_device
from circle_kernels import CircleFormula
from circle_kernels.backends import triton as triton_backend
from circle_kernels.backends.problem import PairProblem
from circle_kernels.backends.triton.memory import planned_memory


class CountMemory(TorchDispatchMode):
    """Bytes of all tensors alive, and their peak, from here on."""

    def __init__(self, given: list[torch.Tensor]) -> None:
        super().__init__()
        self.given = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in given}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def now(self) -> int:
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        return sum(size for _, size in self.alive.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference.cdata not in self.given:
                    self.alive[reference.cdata] = (reference, storage.nbytes())
        self.peak = max(self.peak, self.now())
        return result


@contextmanager
def counting(given: list[torch.Tensor]) -> Iterator[CountMemory]:
    with CountMemory(given) as memory:
        yield memory


def count(
    num_rows: int,
    depth: int,
    dtype: torch.dtype,
    num_references: int | None,
    classes: bool = False,
) -> list[int]:
    """Peaks of forward and backward, and what is kept between them."""
    with pretend_device(DEVICES["sm_90"]):
        sides = [num_rows] if num_references is None else [num_rows, num_references]
        inputs = []
        for length in sides:
            inputs.append(torch.empty(length, depth, dtype=dtype, device="cuda"))
            inputs.append(torch.empty(length, dtype=torch.int64, device="cuda"))
        if classes:
            inputs.pop()
        problem = PairProblem(*inputs, *[None] * (4 - len(inputs)), CircleFormula(), True)
        with counting(inputs) as memory:
            passed = triton_backend.forward(problem)
            forward, kept = memory.peak, memory.now()
            upstream = torch.empty_like(passed[0]), torch.empty_like(passed[1])
            gradients = triton_backend.backward(
                problem,
                *passed,
                *upstream,
                needs_embeddings=True,
                needs_references=num_references is not None,
            )
            backward = memory.peak
    in_gradients = sum(gradient.nbytes for gradient in gradients if gradient is not None)
    return [forward, backward - in_gradients, kept]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("num_rows", "num_references", "depth"),
    [
        (256, None, 512),
        (4096, None, 128),
        (16_384, None, 512),
        (65_536, None, 512),
        (65_536, None, 100),
        (512, 100_000, 512),
        (512, 1_000_000, 128),
        (100_000, 512, 256),
        (8192, 50_000, 128),
        (20_000, 20_000, 64),
    ],
)
def test_plan_says_what_is_taken(
    num_rows: int, num_references: int | None, depth: int, dtype: torch.dtype
) -> None:
    planned = planned_memory(num_rows, depth, dtype, num_references)
    forward, backward, kept = count(num_rows, depth, dtype, num_references)
    # What sorting takes inside of its operator cannot be seen here.
    assert 0.98 * planned.kept <= kept <= 1.02 * planned.kept + 4096
    assert 0.9 * forward <= planned.forward
    assert forward <= 1.02 * planned.forward
    assert 0.95 * planned.backward <= backward <= 1.02 * planned.backward


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("num_rows", "num_classes"), [(512, 1000), (512, 1_000_000)])
def test_class_weights_are_neither_sorted_nor_copied(
    num_rows: int, num_classes: int, dtype: torch.dtype
) -> None:
    planned = planned_memory(num_rows, 512, dtype, num_classes, classes=True)
    forward, backward, kept = count(num_rows, 512, dtype, num_classes, classes=True)
    assert 0.98 * planned.kept <= kept <= 1.02 * planned.kept + 4096
    assert 0.9 * forward <= planned.forward <= 1.02 * forward + 4096
    assert 0.95 * planned.backward <= backward <= 1.02 * planned.backward
    # Vectors, and a chunk of weights and of the gradient.
    assert planned.peak <= 30 * num_classes + 160e6


def test_large_batches_take_little() -> None:
    """The bound of 256 MB above inputs and gradients at N = 65,536, D = 512 in bfloat16."""
    assert planned_memory(65_536, 512, torch.bfloat16).peak <= 256e6


@pytest.mark.parametrize("num_references", [None, 20_000])
def test_memory_grows_with_the_batch_and_not_with_its_square(num_references: int | None) -> None:
    small = planned_memory(100_000, 128, torch.bfloat16, num_references)
    large = planned_memory(800_000, 128, torch.bfloat16, num_references)
    assert large.peak <= 9 * small.peak
