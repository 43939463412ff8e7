"""This process's rows beside the rows of all processes that share a batch, gathered here.

For what losses ask beside log-sum-exps, in PyTorch: what this process's losses have of the others'
gradient goes back to where the rows came from.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from circle_kernels.backends.problem import result_dtype
from circle_kernels.distributed.collectives import gather_integers, gather_numbers
from circle_kernels.distributed.columns import Spread
from circle_kernels.distributed.gathered import GatheredRows
from circle_kernels.distributed.groups import resolve_group
from circle_kernels.distributed.sharing import Sharing
from circle_kernels.distributed.traced import refuse_to_be_traced
from circle_kernels.operation.batch import Batch
from circle_kernels.operation.positives import Positives


def beside_all(batch: Batch, sharing: Sharing, what: str) -> Batch:
    """The batch's rows with the columns of all processes as references, in the result's dtype.

    A collective call: every process has to make it, and its backward pass where there is one.

    Raises:
        RuntimeError: it is only traced, or compiled, for ``what``.
    """
    assert sharing.group is not None
    if torch.compiler.is_compiling():
        raise RuntimeError(
            f"{what} gathers embeddings with group, which no graph may hold: compute the loss "
            "outside of what is compiled"
        )
    refuse_to_be_traced("group", batch.embeddings)
    group = resolve_group(sharing.group)
    local, labels = batch.embeddings, batch.labels
    if batch.ref_emb is not None and batch.ref_labels is not None:
        local, labels = batch.ref_emb, batch.ref_labels
    if local.shape[0] == 0 and torch.is_grad_enabled() and not local.requires_grad:
        # The others wait for this process in their backward pass.
        local = local.detach().requires_grad_()
    sizes = [len(local)] * dist.get_world_size(group)
    if not sharing.same_sizes:
        sizes = [size for (size,) in gather_integers([len(local)], group)]
    spread = Spread(tuple(sizes), group, ring=False)
    own = None
    if batch.ref_emb is None:
        own = spread.own.start + torch.arange(len(local), device=local.device)
    columns = GatheredRows.apply(local, spread, result_dtype(local.dtype))
    (column_labels,) = spread.gather((labels,))
    return Batch(batch.embeddings, batch.labels, columns, column_labels, own_columns=own)


def positives_of(batch: Batch, normalize: bool, sharing: Sharing, what: str) -> Positives:
    """The positives of this process's rows; as :func:`beside_all`."""
    assert sharing.group is not None
    whole = beside_all(batch, sharing, what)
    assert whole.ref_emb is not None
    assert whole.ref_labels is not None
    sides = (whole.own_columns, whole.ref_emb, whole.ref_labels)
    return _SharedPositives(whole, normalize, *sides, resolve_group(sharing.group))


class _SharedPositives(Positives):
    group: Any

    def __init__(self, *positives: Any) -> None:
        *of_all, group = positives
        super().__init__(*of_all)
        object.__setattr__(self, "group", group)

    def are_single(self) -> bool:
        """Whether no row of any process has more than one; the host waits to know."""
        most = torch.cat([self.numbers, self.numbers.new_zeros(1)]).amax(0, keepdim=True)
        return bool((gather_numbers(most, self.group) <= 1).all())
