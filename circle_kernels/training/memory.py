"""``EmbeddingMemory``: embeddings of earlier batches, to compare a batch with."""

from __future__ import annotations

import copy
import sys
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

from circle_kernels.arguments import (
    FLOATING_DTYPES,
    check_embeddings,
    check_kinds,
    check_labels,
    describe,
)
from circle_kernels.distributed.collectives import gather_rows
from circle_kernels.distributed.groups import (
    Group,
    check_group,
    describe_group,
    is_saveable,
    resolve_group,
)
from circle_kernels.distributed.headers import CALL, exchange_headers, failing_together
from circle_kernels.operation.batch import STAYS
from circle_kernels.options import check_integer


class EmbeddingMemory(nn.Module):
    """The last ``size`` embeddings with their labels, as references for a loss.

    More pairs than a batch has, at the price of references that an earlier network computed: the
    cross-batch memory of Wang et al. (CVPR 2020, arXiv 1912.06798, "XBM"); with embeddings of a
    network that follows slowly, the queue of MoCo (He et al., CVPR 2020, arXiv 1911.05722).

    Called with a batch, it takes that in and returns what the losses take by name: all that it has,
    and which of it is each row's own copy, which counts neither as positive nor as negative. In
    evaluation mode it takes in nothing.

    Rows are kept without gradients and as they come; losses normalise them. The oldest are written
    over. What it holds is in its state dict, so that a run that was saved goes on as it would have.
    Of a batch larger than the memory the last rows are kept.

    Args:
        size: how many embeddings it holds, at least 1.
        dim: their length D, at least 1.
        dtype: in which they are kept: float16, bfloat16, float32 or float64.
        device: where.
        group: the processes whose rows every one of them keeps, in the order of their ranks:
            ``"world"``, a process group, a mesh of one dimension, or ``None`` for this process's
            own rows. All of these memories are alike, and each process compares its own rows with
            the whole of its memory, by a loss without ``group``. Enqueueing is a collective call
            then; batch sizes may differ and be 0. See docs/large-batches.md.

    Attributes:
        embeddings: (size, D), a buffer as all of these; beyond ``filled`` it holds zeros.
        labels: (size,) int64.
        enqueued: () int64, rows that came so far. Row number r is at place r modulo ``size``.

    Raises:
        TypeError, ValueError: an argument of the wrong type or range.

    Example:
        >>> memory = EmbeddingMemory(size=8192, dim=128)
        >>> embeddings = network(images)
        >>> loss = circle_loss(embeddings, labels, **memory(embeddings, labels))
    """

    embeddings: Tensor
    labels: Tensor
    enqueued: Tensor

    def __init__(
        self,
        size: SupportsIndex,
        dim: SupportsIndex,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | int | None = None,
        group: Group | None = None,
    ) -> None:
        super().__init__()
        size, dim = check_integer("size", size, smallest=1), check_integer("dim", dim, smallest=1)
        if dtype not in FLOATING_DTYPES:
            raise TypeError(
                f"dtype must be float16, bfloat16, float32 or float64, got {describe(dtype)}"
            )
        check_group(group)
        self.group: Group | None = group
        # What the host knows of `enqueued`: the tensor, its version, and the number in it.
        self._known: tuple[Tensor, int, int] | None = None
        self.register_buffer("embeddings", torch.zeros(size, dim, dtype=dtype, device=device))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64, device=device))
        self.register_buffer("enqueued", torch.zeros((), dtype=torch.int64, device=device))

    @property
    def size(self) -> int:
        """How many embeddings it can hold."""
        return self.embeddings.shape[0]

    @property
    def filled(self) -> int:
        """How many it holds."""
        return min(self._count(), self.size)

    @property
    def is_full(self) -> bool:
        """Whether it holds as many as it can."""
        return self.filled == self.size

    def forward(
        self,
        embeddings: Tensor,  # (N, D)
        labels: Tensor,  # (N,)
    ) -> dict[str, Tensor]:
        """Take in a batch, in training mode, and return the arguments of losses.

        Args:
            embeddings: (N, D) of any floating dtype, on the memory's device.
            labels: (N,) integers of any dtype but uint64.

        Returns:
            ``ref_emb`` and ``ref_labels`` of :meth:`references`, and ``self_index``: that of
            :meth:`enqueue`, or -1 for all rows in evaluation mode.

        Raises:
            TypeError, ValueError: as :meth:`enqueue`.
        """
        step = references_of_step
        # Also where a compiler looks at the frames that this one calls, though not at this one.
        if torch.compiler.is_compiling() or "torch._dynamo" in sys.modules:
            from circle_kernels.training.untraced import references_of_step_untraced

            step = references_of_step_untraced
        return step(self, embeddings, labels)

    def enqueue(
        self,
        embeddings: Tensor,  # (N, D)
        labels: Tensor,  # (N,)
    ) -> Tensor:  # (N,)
        """Take in a batch, in any mode.

        Whoever has :meth:`references` keeps them as they are, a loss until its backward pass: the
        memory then moves to a copy. Nobody has them in a usual step, which copies nothing.

        Args:
            embeddings: (N, D) of any floating dtype, on the memory's device. No gradient is kept.
            labels: (N,) integers of any dtype but uint64.

        Returns:
            (N,) int64: the place of each row's copy among :meth:`references`, -1 for rows that were
            not kept, since the batch is larger than the memory.

        Raises:
            TypeError, ValueError: an argument of the wrong type, shape, dtype or device. Where one
                process of a group raises, all do; as where their memories are not alike.
        """
        enqueue = enqueue_rows
        if torch.compiler.is_compiling() or "torch._dynamo" in sys.modules:
            from circle_kernels.training.untraced import enqueue_rows_untraced

            enqueue = enqueue_rows_untraced
        return enqueue(self, embeddings, labels)

    def references(self) -> tuple[Tensor, Tensor]:
        """Embeddings (M, D) and labels (M,), M being ``filled``: views, not copies."""
        part = filled_part
        if torch.compiler.is_compiling() or "torch._dynamo" in sys.modules:
            from circle_kernels.training.untraced import filled_part_untraced

            part = filled_part_untraced
        return part(self)

    @torch.no_grad()
    def clear(self) -> None:
        """Forget everything."""
        for buffer in (self.embeddings, self.labels, self.enqueued):
            buffer.zero_()

    def extra_repr(self) -> str:
        size, dim = self.embeddings.shape
        return f"{size}, {dim}, dtype={self.embeddings.dtype}, group={describe_group(self.group)}"

    def __getstate__(self) -> dict[str, Any]:
        """What is saved; a process group belongs to running processes."""
        if not is_saveable(self.group):
            raise TypeError(
                f"EmbeddingMemory with group={describe_group(self.group)} cannot be saved as an "
                "object, since a process group lasts no longer than its processes: save its "
                "state_dict(), or use group='world', which is looked up at each call"
            )
        return {**self.__dict__, "_known": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> EmbeddingMemory:
        """A copy that shares the process group, a handle that cannot be copied."""
        memo[id(self.group)] = self.group
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__ = copy.deepcopy({**self.__dict__, "_known": None}, memo)
        return copied

    def _count(self) -> int:
        """``enqueued`` as a number, without waiting for a device unless somebody else wrote it."""
        if self._known is not None:
            tensor, version, number = self._known
            if tensor is self.enqueued and tensor._version == version:
                return number
        return self._know(int(self.enqueued))

    def _know(self, number: int) -> int:
        self._known = (self.enqueued, self.enqueued._version, number)
        return number

    def _check(self, embeddings: Tensor, labels: Tensor) -> None:
        check_kinds(embeddings=embeddings, labels=labels)
        check_embeddings("embeddings", embeddings)
        if embeddings.shape[1] != self.embeddings.shape[1]:
            raise ValueError(
                f"embeddings must have as many columns as the memory: wanted "
                f"{self.embeddings.shape[1]}, got {embeddings.shape[1]}"
            )
        if embeddings.device != self.embeddings.device:
            raise ValueError(
                f"embeddings must be on the device of the memory: wanted {self.embeddings.device}, "
                f"got {embeddings.device}; move the memory with .to()"
            )
        check_labels("labels", labels, embeddings.shape[0], of="embeddings")
        if labels.dtype == torch.uint64:  # which the losses do not compare with int64
            raise TypeError(
                f"labels must be of a dtype that int64 can hold, got {describe(labels)}; use "
                "labels.long()"
            )


def references_of_step(
    memory: EmbeddingMemory, embeddings: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """:meth:`EmbeddingMemory.forward`."""
    if memory.training:
        self_index = enqueue_rows(memory, embeddings, labels)
    else:
        memory._check(embeddings, labels)
        self_index = torch.full_like(labels, -1, dtype=torch.int64, device=embeddings.device)
    ref_emb, ref_labels = filled_part(memory)
    return {"ref_emb": ref_emb, "ref_labels": ref_labels, "self_index": self_index}


def filled_part(memory: EmbeddingMemory) -> tuple[Tensor, Tensor]:
    """:meth:`EmbeddingMemory.references`."""
    filled = memory.embeddings[: memory.filled], memory.labels[: memory.filled]
    for view in filled:
        setattr(view, STAYS, True)
    return filled


@torch.no_grad()
def enqueue_rows(memory: EmbeddingMemory, embeddings: Tensor, labels: Tensor) -> Tensor:
    """:meth:`EmbeddingMemory.enqueue`."""
    if memory.group is None:
        memory._check(embeddings, labels)
        return _write(memory, (embeddings, labels), 0, len(embeddings))
    processes = resolve_group(memory.group)
    call = "EmbeddingMemory.enqueue"
    with failing_together(call, processes):
        memory._check(embeddings, labels)
    size, dim = memory.embeddings.shape
    alike = {
        CALL: call,
        "size": size,
        "dim": dim,
        "dtype": memory.embeddings.dtype,
        "enqueued": memory._count(),
    }
    sizes = [rows for (rows,) in exchange_headers([len(embeddings)], alike, processes)]
    # In the memory's dtypes, which are alike in all processes.
    local = (embeddings.to(memory.embeddings.dtype), labels.to(memory.labels))
    everybodys = tuple(gather_rows(each, sizes, processes) for each in local)
    first = sum(sizes[: processes.rank()])
    return _write(memory, everybodys, first, first + len(embeddings))


def _is_held(buffer: Tensor) -> bool:
    """Whether somebody else has its memory: a loss whose backward pass is to come, for one."""
    storage = buffer.untyped_storage()
    own = 2  # the buffer, and the storage that was just asked for
    return torch._C._storage_Use_Count(storage._cdata) > own


def _write(
    memory: EmbeddingMemory,
    rows: tuple[Tensor, ...],  # embeddings and labels
    first: int,  # of the rows that are this process's own
    end: int,
) -> Tensor:
    """Put rows in their places; returns those of this process's own."""
    for name in ("embeddings", "labels"):
        if _is_held(getattr(memory, name)):
            setattr(memory, name, getattr(memory, name).clone())
    size, before = memory.size, memory._count()
    after = before + len(rows[0])
    oldest = max(before, after - size)  # that is kept
    for kept, given in zip((memory.embeddings, memory.labels), rows, strict=True):
        newest, place = given[oldest - before :], oldest % size
        up_to_the_end = size - place
        kept[place : place + len(newest)] = newest[:up_to_the_end]
        kept[: len(newest[up_to_the_end:])] = newest[up_to_the_end:]
    memory.enqueued.fill_(after)
    memory._know(after)
    numbers = torch.arange(before + first, before + end, device=memory.labels.device)
    return torch.where(numbers < oldest, -1, numbers % size)
