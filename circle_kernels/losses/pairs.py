"""What pair losses have in common: from what users give to the sums of rows, and to one number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor

from circle_kernels.distributed.groups import Group, rank_in
from circle_kernels.distributed.headers import CALL, check_together
from circle_kernels.distributed.sharing import OF_SHARING, Sharing
from circle_kernels.formula import PairFormula
from circle_kernels.operation.batch import (
    Batch,
    Operation,
    alike_of,
    check_shared,
    sharing_of,
)
from circle_kernels.operation.chosen_pairs import Tensors, chosen_batch
from circle_kernels.operation.eager import logsumexps
from circle_kernels.operation.reductions import reduce_losses
from circle_kernels.options import (
    REDUCTIONS,
    BackendName,
    Exchange,
    GradReduction,
    Reduction,
    Scope,
    check_choice,
    check_integer,
)

if TYPE_CHECKING:
    from circle_kernels.operation.pair_masks import PairMask
    from circle_kernels.operation.positives import Positives


class SharingOptions(TypedDict, total=False):
    """How processes share a batch; see :func:`circle_kernels.circle_loss`."""

    group: Group | None
    exchange: Exchange
    same_sizes: bool
    grad_reduction: GradReduction


class SharedOptions(SharingOptions, total=False):
    """What all losses of pairs take beside their own numbers; see
    :func:`circle_kernels.circle_loss`."""

    normalize: bool
    skip_below: float
    backend: BackendName


class LabelOptions(SharedOptions, total=False):
    """The same where labels choose the pairs."""

    ignore_label: int | None


class PairOptions(LabelOptions, total=False):
    """The same where not only labels choose the pairs."""

    pair_mask: PairMask | None
    self_index: Tensor | None


_OF_OPERATION = ("normalize", "skip_below", "backend")

_RANK_BITS = 40  # more rows than one process has


@dataclass
class PairRows:
    """The rows of a batch whose arguments are checked, on their way to a loss."""

    batch: Batch  # without rows and references that are ignored
    operation: Operation
    sharing: Sharing
    alike: dict[str, str]  # what processes that share the batch have to have alike
    reduction: Reduction
    kept: Tensor | None = None  # (n,): which of the rows that were given, if not all
    given: int = 0  # how many these are
    told: Tensor | None = None  # by the exchange of a batch that processes share

    def logsumexps(self, *, both_sides: bool = False) -> tuple[Tensor, Tensor]:
        """Both log-sum-exps (n,) of the rows that are not ignored; (n + m,) with those of the
        references, where all are in this process and ``both_sides`` asks for it."""
        if self.sharing.group is None:
            operation = replace(self.operation, both_sides=both_sides)
            return self._with_scale(logsumexps(self.batch, operation), operation)
        # With its ops, which few need and whose definition takes milliseconds.
        from circle_kernels.operation.shared import over_processes

        shared = (self.batch, self.operation, self.sharing)
        lse_pos, lse_neg, self.told = over_processes.shared_logsumexps(*shared, alike=self.alike)
        return self._with_scale((lse_pos, lse_neg), self.operation)

    def _with_scale(
        self, sums: tuple[Tensor, Tensor], operation: Operation
    ) -> tuple[Tensor, Tensor]:
        """Log-sum-exps from which a learned gamma gets its gradient."""
        if not operation.scale_is_learned:
            return sums
        from circle_kernels.operation.learned_scale import with_scale_gradient

        batch = self.batch
        if self.sharing.group is not None:
            from circle_kernels.operation.shared.columns import beside_all

            with torch.no_grad():
                batch = beside_all(batch, self.sharing, f"{self.alike[CALL]} with a learned gamma")
        return with_scale_gradient(sums, batch, operation)

    def logsumexps_over_processes(self) -> tuple[Tensor, Tensor]:
        """:meth:`logsumexps` of rows that all processes have, over the references of all."""
        of_this_one = logsumexps(self.batch, self.operation)
        if self.sharing.group is None:
            return of_this_one
        from circle_kernels.operation.shared import losses as shared_losses
        from circle_kernels.operation.shared.call import settings_of

        alike = {**self.alike, **settings_of(self.batch, self.operation)}
        return shared_losses.logsumexps_over_processes(*of_this_one, self.sharing, alike)

    def positives(self) -> Positives:
        """The positive pairs of the rows that are not ignored."""
        if self.sharing.group is None:
            from circle_kernels.operation.positives import Positives

            return Positives.of(self.batch, self.operation.normalize)
        from circle_kernels.operation.shared import columns

        return columns.positives_of(
            self.batch, self.operation.normalize, self.sharing, self.alike[CALL]
        )

    def reduced(self, losses: Tensor, counted: Tensor | None = None) -> Tensor:
        """The loss, of rows' losses (n,); the mean is over those that are ``counted`` (n,) bool,
        which are all rows where there is None."""
        if self.kept is not None and self.reduction == "none":
            losses = losses.new_zeros(self.given).index_put((self.kept,), losses)
        number: Tensor | int = self.given
        if self.reduction == "mean":
            number = losses.shape[0] if counted is None else counted.sum()
        if self.sharing.group is None:
            return reduce_losses(losses, number, self.reduction)
        from circle_kernels.operation.shared import losses as shared_losses

        assert self.told is not None
        return shared_losses.reduced_over_processes(
            losses, number, self.told, self.sharing, self.reduction
        )


def pair_rows(
    call: str,
    formula: Callable[[], PairFormula],
    tensors: Tensors,
    reduction: Reduction,
    options: SharedOptions,
    *,
    scope: Scope = "anchor",
    scale: Tensor | None = None,
) -> PairRows:
    """The rows of a call that nobody has checked.

    ``formula`` is made with what is checked, so that processes which share the batch fail together.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or range; in all
            processes where one of those that share the batch has one.
    """
    given: dict[str, Any] = dict(options)
    group, same_sizes = given.get("group"), given.get("same_sizes", False)

    def check() -> PairRows:
        operation, sharing = checked_options(call, formula, reduction, options)
        if scale is not None:
            operation = replace(operation, scale=scale)
        batch, kept = chosen_batch(call, tensors, given)
        check_shared(batch, operation, sharing)
        ignored = given.get("ignore_label")
        alike = alike_of(call, (scope, reduction), sharing, operation, ignored)
        given_rows = tensors[0].shape[0]
        return PairRows(batch, operation, sharing, alike, reduction, kept=kept, given=given_rows)

    if group is None:
        return check()
    return check_together(check, call, group, same_sizes)


def numbers_of_rows(embeddings: Tensor, group: Group | None) -> Tensor:
    """Labels (N,) where each row is a class of its own, of no two processes of a group the same."""
    ones = embeddings.new_ones(embeddings.shape[0], dtype=torch.int64)  # fake where they are
    numbers = ones.cumsum(0) - 1
    return numbers if group is None else numbers + (rank_in(group) << _RANK_BITS)


def checked_options(
    call: str, formula: Callable[[], PairFormula], reduction: Reduction, options: SharedOptions
) -> tuple[Operation, Sharing]:
    """What a call's options say of all batches.

    Raises:
        TypeError, ValueError: one that there is not, or of the wrong type or range.
    """
    unknown = options.keys() - PairOptions.__optional_keys__
    if unknown:
        raise TypeError(f"{call}() got an unexpected keyword argument {min(unknown)!r}")
    given: dict[str, Any] = dict(options)
    check_choice("reduction", reduction, REDUCTIONS)
    if given.get("ignore_label") is not None:
        check_integer("ignore_label", given["ignore_label"])
    sharing = sharing_of(**{name: given[name] for name in OF_SHARING if name in given})
    of_operation = {name: given[name] for name in _OF_OPERATION if name in given}
    return Operation(formula(), **of_operation), sharing
