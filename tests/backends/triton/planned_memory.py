"""How much device memory the Triton passes take, counted on tensors of a pretended device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.offline.pretended import DEVICES, ProductsInPlace
from circle_kernels.backends.problem import Needs, PairProblem, Passed
from circle_kernels.backends.triton.backward_pass.backward import backward
from circle_kernels.backends.triton.conditions import assuming
from circle_kernels.backends.triton.forward_pass.forward import forward
from circle_kernels.backends.triton.launch import observe_launches
from circle_kernels.formula import CircleFormula

# What a sort of labels takes beside its results, for each label: measured by nobody yet, taken as
# two copies each of keys and positions.
_SORT_BYTES = 2 * (8 + 8)


@dataclass(frozen=True)
class PlannedMemory:
    """Bytes at the peak of each pass above the inputs, and what stays from one to the other.

    Gradients in the inputs' dtype, which the caller keeps, are not among them.
    """

    forward: int
    backward: int
    kept: int

    @property
    def peak(self) -> int:
        """Of a training step."""
        return max(self.forward, self.backward)


def planned_memory(
    num_rows: int,
    depth: int,
    dtype: torch.dtype,
    num_references: int | None = None,
    *,
    classes: bool = False,
) -> PlannedMemory:
    """What the passes take on an H100 for normalised embeddings; needs no device.

    Args:
        num_rows, depth: N and D of the embeddings.
        dtype: float16, bfloat16 or float32.
        num_references: M; None compares the batch with itself. Both sides get gradients.
        classes: whether the references are class weights.
    """

    def side(length: int) -> tuple[Tensor, Tensor]:
        embeddings = torch.empty(length, depth, dtype=dtype, device="cuda")
        return embeddings, torch.empty(length, dtype=torch.int64, device="cuda")

    # Not pretend_device, which keeps launches, and with them their tensors.
    with (
        assuming(hardware=DEVICES["sm_90"].hardware),
        observe_launches(lambda launch, proceed: None),
        FakeTensorMode(),
        ProductsInPlace(),
    ):
        ref_emb, ref_labels = (None, None) if num_references is None else side(num_references)
        problem = PairProblem(
            *side(num_rows),
            ref_emb,
            None if classes else ref_labels,
            CircleFormula(),
            normalize=True,
        )
        with _CountMemory(problem.tensors) as memory:
            lse_pos, lse_neg, saved = forward(problem)
            forward_peak, kept = memory.peak, memory.alive()
            memory.peak = 0
            gradients = backward(
                problem,
                Passed(saved, torch.empty_like(lse_pos), torch.empty_like(lse_neg)),
                Needs(embeddings=True, references=num_references is not None),
            )
        in_gradients = sum(gradient.nbytes for gradient in gradients if gradient is not None)
        return PlannedMemory(forward_peak, memory.peak - in_gradients, kept)


class _CountMemory(TorchDispatchMode):
    """Bytes of the tensors that are made while it is entered and are alive, and their peak."""

    def __init__(self, given: Iterable[Tensor | None]) -> None:
        super().__init__()
        self.peak = 0
        self._given = {
            StorageWeakRef(tensor.untyped_storage()).cdata for tensor in given if tensor is not None
        }
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def alive(self) -> int:
        self._made = {key: made for key, made in self._made.items() if not made[0].expired()}
        return sum(size for _, size in self._made.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference.cdata not in self._given:
                    self._made[reference.cdata] = (reference, storage.nbytes())
        within = args[0].numel() * _SORT_BYTES if "sort" in func.__name__ else 0
        self.peak = max(self.peak, self.alive() + within)
        return result
