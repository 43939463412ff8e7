"""The losses as modules: hyper-parameters and nothing else."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from circle_kernels.distributed.groups import Group, describe_group, is_saveable
from circle_kernels.distributed.sharing import OF_SHARING, Sharing
from circle_kernels.formula import CircleFormula
from circle_kernels.losses.functional import RowReduction, loss_of
from circle_kernels.operation.batch import operation_of
from circle_kernels.options import (
    BackendName,
    Exchange,
    GradReduction,
    Reduction,
    Scope,
    changed_settings,
    check_integer,
    describe_scale,
    explain_other_names,
)

if TYPE_CHECKING:
    from circle_kernels.operation.pair_masks import PairMask


class SharingModule(nn.Module):
    """A loss that processes may share: how it is saved, copied and shown."""

    group: Group | None
    exchange: Exchange
    same_sizes: bool
    grad_reduction: GradReduction

    def __getstate__(self) -> dict[str, Any]:
        """What is saved; a process group belongs to running processes."""
        if not is_saveable(self.group):
            raise TypeError(
                f"{type(self).__name__} with group={describe_group(self.group)} cannot be saved, "
                "since a process group lasts no longer than its processes: use group='world', "
                "which is looked up at each call, or set group to None before saving"
            )
        return self.__dict__

    def __copy__(self) -> SharingModule:
        """Copies within this process share the group."""
        copied = type(self).__new__(type(self))
        copied.__dict__ = self.__dict__.copy()
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> SharingModule:
        """A copy that shares the process group, a handle that cannot be copied."""
        memo[id(self.group)] = self.group
        copied = type(self).__new__(type(self))
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        return copied

    def _describe_sharing(self) -> str:
        if self.group is None:
            return "group=None (this process alone)"
        return (
            f"group={describe_group(self.group)}, exchange={self.exchange!r}, "
            f"same_sizes={self.same_sizes}, grad_reduction={self.grad_reduction!r}"
        )


class CircleLoss(SharingModule):
    """Circle loss with pair-wise labels; see :func:`circle_kernels.circle_loss`.

    Args:
        m: relaxation margin, greater than -1 and less than 1.
        gamma: scale of the logits, greater than 0. One that is an ``nn.Parameter`` is one of the
            module's, and learned.
        scope: ``"anchor"``, one loss per row, or ``"batch"``, one over all pairs.
        reduction: ``"mean"`` over valid rows, ``"mean_all"``, ``"sum"`` or ``"none"``.
        detach_weights: treat the weights ``[.]_+`` as constants in the gradient.
        normalize: ``False`` takes inner products instead of cosines.
        skip_below: share of a row's weight that its gradient may leave out; 0 is exact.
        ignore_label: rows and references with this label take part in nothing.
        group: the processes that share one batch, all with ``"world"``; ``None`` for this process
            alone.
        exchange: ``"gather"`` all embeddings or pass them on in a ``"ring"``.
        same_sizes: that all processes always have as many rows, so that none are counted.
        grad_reduction: what is done to the processes' gradients afterwards, ``"mean"`` or
            ``"sum"``.
        backend: see :func:`circle_kernels.available_backends`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or range, also at the call.

    Example:
        >>> loss = CircleLoss(m=0.25, gamma=128)
        >>> loss(embeddings, labels).backward()
    """

    @explain_other_names
    def __init__(
        self,
        m: float = 0.4,
        gamma: float | Tensor = 80.0,
        *,
        scope: Scope = "anchor",
        reduction: Reduction = "mean",
        detach_weights: bool = True,
        normalize: bool = True,
        skip_below: float = 0.0,
        ignore_label: int | None = None,
        group: Group | None = None,
        exchange: Exchange = "gather",
        same_sizes: bool = False,
        grad_reduction: GradReduction = "mean",
        backend: BackendName = "auto",
    ) -> None:
        super().__init__()
        # Checked here as well as at the call, so that a typo fails before training starts.
        operation = operation_of(
            CircleFormula,
            m=m,
            gamma=gamma,
            detach_weights=detach_weights,
            normalize=normalize,
            skip_below=skip_below,
            backend=backend,
        )
        RowReduction(scope, reduction)
        sharing = Sharing(group, exchange, same_sizes, grad_reduction)
        self.m: float = m
        self.gamma: float | Tensor = gamma
        self.scope: Scope = scope
        self.reduction: Reduction = reduction
        self.detach_weights: bool = operation.formula.detach_weights
        self.normalize: bool = operation.normalize
        self.skip_below: float = operation.skip_below
        if ignore_label is not None:
            check_integer("ignore_label", ignore_label)
        self.ignore_label: int | None = ignore_label
        self.group: Group | None = group
        self.exchange: Exchange = exchange
        self.same_sizes: bool = sharing.same_sizes
        self.grad_reduction: GradReduction = grad_reduction
        self.backend: BackendName = backend

    @explain_other_names
    def forward(
        self,
        embeddings: Tensor,  # (N, D)
        labels: Tensor | None,  # (N,)
        ref_emb: Tensor | None = None,  # (M, D)
        ref_labels: Tensor | None = None,  # (M,)
        *,
        pair_mask: PairMask | None = None,
        self_index: Tensor | None = None,  # (N,)
    ) -> Tensor:
        """The loss of a batch.

        Args:
            embeddings: (N, D), float16, bfloat16, float32 or float64; need not be normalised.
            labels: (N,) integers of any dtype; ``None`` with ``pair_mask``.
            ref_emb: (M, D) references; without them the batch is compared with itself.
            ref_labels: (M,) integers.
            pair_mask: which pairs are positive and which negative, in place of labels.
            self_index: (N,) the place of each row's own copy among the references, -1 for none.

        Returns:
            A scalar, or (N,) with ``reduction="none"``; float32, or float64 for float64 input.

        Raises:
            TypeError, ValueError, RuntimeError: as :func:`circle_kernels.circle_loss`.
        """
        return loss_of(
            CircleFormula,
            (embeddings, labels, ref_emb, ref_labels),
            (self.scope, self.reduction),
            (self.ignore_label, pair_mask, self_index),
            (self.group, self.exchange, self.same_sizes, self.grad_reduction),
            m=self.m,
            gamma=self.gamma,
            detach_weights=self.detach_weights,
            normalize=self.normalize,
            skip_below=self.skip_below,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """The numbers, the settings that are not the defaults, and who shares the batch."""
        changed = changed_settings(self, CircleLoss.__init__, but=OF_SHARING)
        gamma = f"gamma={describe_scale(self.gamma)}"
        return ", ".join([f"m={self.m}", gamma, *changed, self._describe_sharing()])
