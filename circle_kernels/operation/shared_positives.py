"""The positives of this process's rows among the rows of all processes that share a batch.

Unlike log-sum-exps they take the others' embeddings in PyTorch: these are gathered, and what this
process's losses have of their gradient goes back to where they came from.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from circle_kernels.backends.problem import result_dtype
from circle_kernels.distributed.collectives import gather_integers, gather_numbers
from circle_kernels.distributed.columns import Spread
from circle_kernels.distributed.gathered import GatheredRows
from circle_kernels.distributed.groups import resolve_group
from circle_kernels.distributed.sharing import Sharing
from circle_kernels.distributed.traced import refuse_to_be_traced
from circle_kernels.operation.batch import Batch
from circle_kernels.operation.positives import Positives


def positives_of(batch: Batch, normalize: bool, sharing: Sharing) -> Positives:
    """A collective call: every process has to make it, and the backward pass.

    Raises:
        RuntimeError: it is only traced, or compiled.
    """
    assert sharing.group is not None
    if torch.compiler.is_compiling():
        raise RuntimeError(
            "supcon_loss and ntxent_loss gather embeddings with group, which no graph may hold: "
            "compute the loss outside of what is compiled"
        )
    refuse_to_be_traced("group", batch.embeddings)
    group = resolve_group(sharing.group)
    own: Tensor | None
    if batch.ref_emb is None or batch.ref_labels is None:
        local, labels = batch.embeddings, batch.labels
    else:
        local, labels = batch.ref_emb, batch.ref_labels
    if local.shape[0] == 0 and torch.is_grad_enabled() and not local.requires_grad:
        # The others wait for this process in their backward pass.
        local = local.detach().requires_grad_()
    sizes = [len(local)] * dist.get_world_size(group)
    if not sharing.same_sizes:
        sizes = [size for (size,) in gather_integers([len(local)], group)]
    own = None
    if batch.ref_emb is None:
        first = sum(sizes[: dist.get_rank(group)])
        own = first + torch.arange(len(local), device=local.device)
    spread = Spread(tuple(sizes), group, ring=False)
    columns = GatheredRows.apply(local, spread, result_dtype(local.dtype))
    (column_labels,) = spread.gather((labels,))
    return _SharedPositives(batch, normalize, own, columns, column_labels, group)


@dataclass(frozen=True)
class _SharedPositives(Positives):
    group: Any

    @functools.cached_property
    def _known(self) -> bool:
        own = self.numbers.amax(0, keepdim=True) if len(self.numbers) else self.numbers.new_zeros(1)
        return bool((gather_numbers(own, self.group) <= 1).all())

    def are_single(self) -> bool:
        """Whether no row of any process has more than one; the host waits to know."""
        return self._known
