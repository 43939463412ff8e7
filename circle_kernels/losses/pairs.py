"""What pair losses have in common: from what users give to the sums of rows, and to one number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor

from circle_kernels.arguments import INTEGER_DTYPES, beside, check_kinds, describe
from circle_kernels.backends.addressable import host_may_look, materialized
from circle_kernels.distributed.groups import Group, rank_in
from circle_kernels.distributed.headers import CALL, check_together
from circle_kernels.distributed.sharing import Sharing
from circle_kernels.formula import PairFormula
from circle_kernels.operation.batch import Batch, Operation, check_batch, check_shared, sharing_of
from circle_kernels.operation.eager import logsumexps
from circle_kernels.operation.reductions import REDUCTIONS, reduce_losses
from circle_kernels.options import check_choice, check_integer

if TYPE_CHECKING:
    from circle_kernels.operation.pair_masks import PairMask
    from circle_kernels.operation.positives import Positives

# Embeddings, labels, references and their labels, as users give them.
Tensors = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


class PairOptions(TypedDict, total=False):
    """What every pair loss takes beside its own numbers; see :func:`circle_kernels.circle_loss`."""

    normalize: bool
    skip_below: float
    ignore_label: int | None
    pair_mask: PairMask | None
    self_index: Tensor | None
    group: Group | None
    exchange: str
    same_sizes: bool
    grad_reduction: str
    backend: str


_OF_OPERATION = ("normalize", "skip_below", "backend")
OF_PAIRS = ("ignore_label", "pair_mask", "self_index")
OF_SHARING = ("group", "exchange", "same_sizes", "grad_reduction")

_RANK_BITS = 40  # more rows than one process has


@dataclass
class PairRows:
    """The rows of a batch whose arguments are checked, on their way to a loss."""

    batch: Batch  # without rows and references that are ignored
    operation: Operation
    sharing: Sharing
    alike: dict[str, str]  # what processes that share the batch have to have alike
    reduction: str
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

        return shared_losses.logsumexps_over_processes(*of_this_one, self.sharing, self.alike)

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
    reduction: str,
    options: PairOptions,
    *,
    scope: str = "anchor",
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
        batch, kept = _checked_batch(call, tensors, given)
        check_shared(batch, operation, sharing)
        alike = {CALL: call, "scope": scope, "reduction": reduction}
        alike["grad_reduction"] = sharing.grad_reduction
        given_rows = tensors[0].shape[0]
        return PairRows(batch, operation, sharing, alike, reduction, kept=kept, given=given_rows)

    if group is None:
        return check()
    return check_together(check, call, group, same_sizes)


def numbers_of_rows(embeddings: Tensor, group: Group | None) -> Tensor:
    """Labels (N,) where each row is a class of its own, of no two processes of a group the same."""
    numbers = torch.arange(embeddings.shape[0], device=embeddings.device)
    return numbers if group is None else numbers + (rank_in(group) << _RANK_BITS)


def checked_options(
    call: str, formula: Callable[[], PairFormula], reduction: str, options: PairOptions
) -> tuple[Operation, Sharing]:
    """What a call's options say of all batches.

    Raises:
        TypeError, ValueError: one that there is not, or of the wrong type or range.
    """
    unknown = options.keys() - PairOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"{call}() got an unexpected keyword argument {min(unknown)!r}")
    given: dict[str, Any] = dict(options)
    check_choice("reduction", reduction, REDUCTIONS)
    if given.get("ignore_label") is not None:
        check_integer("ignore_label", given["ignore_label"])
    sharing = sharing_of(**{name: given[name] for name in OF_SHARING if name in given})
    of_operation = {name: given[name] for name in _OF_OPERATION if name in given}
    return Operation(formula(), **of_operation), sharing


def _checked_batch(
    call: str, tensors: Tensors, options: dict[str, Any]
) -> tuple[Batch, Tensor | None]:
    """The batch without what is ignored, and which rows were kept, where that are not all."""
    embeddings, labels, ref_emb, ref_labels = tensors
    ignore_label, mask, self_index = (options.get(name) for name in OF_PAIRS)
    if options.get("group") is not None:
        for name in ("pair_mask", "self_index"):
            if options.get(name) is not None:
                raise ValueError(
                    f"{call} takes {name} of the rows and references of one process, and not with "
                    "group, where those of other processes count as well"
                )
    if self_index is not None:
        self_index = _checked_self_index(self_index, embeddings, ref_emb)
    if mask is not None:
        if labels is not None or ref_labels is not None or ignore_label is not None:
            raise ValueError(
                f"{call} takes pair_mask in place of labels: give labels=None, and neither "
                "ref_labels nor ignore_label"
            )
        from circle_kernels.operation.pair_masks import masked_batch

        return masked_batch(embeddings, ref_emb, mask, self_index), None
    if labels is None:
        raise TypeError(f"{call} wants labels, or pair_mask in their place; got None for both")
    batch = check_batch(embeddings, labels, ref_emb, ref_labels)._replace(own_columns=self_index)
    if ignore_label is None:
        return batch, None
    return _without_ignored(batch, check_integer("ignore_label", ignore_label))


def _checked_self_index(index: Tensor, embeddings: Tensor, ref_emb: Tensor | None) -> Tensor:
    check_kinds(self_index=index, embeddings=embeddings)
    wanted = (
        "self_index must be integers of shape (rows,): of each row the place of its own copy "
        "among the references, or -1"
    )
    if not isinstance(index, Tensor) or index.dtype not in INTEGER_DTYPES:
        raise TypeError(f"{wanted}; got {describe(index)}")
    if ref_emb is None:
        raise ValueError("self_index needs ref_emb, among which own copies are; got None")
    if index.shape != embeddings.shape[:1]:
        raise ValueError(f"{wanted}; wanted {tuple(embeddings.shape[:1])}, got {describe(index)}")
    index = beside("self_index", materialized(index), embeddings).to(torch.int64)
    if host_may_look(index):
        wrong = (index < -1) | (index >= len(ref_emb))
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"{wanted}; there are {len(ref_emb)} references, got {index[row].item()} in row "
                f"{row}"
            )
    return index


def _without_ignored(batch: Batch, ignored: int) -> tuple[Batch, Tensor | None]:
    """On a device the host waits to know how many rows are left."""
    embeddings, labels, ref_emb, ref_labels = batch[:4]
    kept = (labels != ignored).nonzero().squeeze(1)
    own = None if batch.own_columns is None else batch.own_columns[kept]
    batch = batch._replace(embeddings=embeddings[kept], labels=labels[kept], own_columns=own)
    if ref_emb is not None and ref_labels is not None:
        present = ref_labels != ignored
        references = present.nonzero().squeeze(1)
        if own is not None:
            places = torch.where(present, present.cumsum(0) - 1, -1)
            own = torch.where(own < 0, -1, places[own.clamp_min(0)])
        batch = batch._replace(
            ref_emb=ref_emb[references], ref_labels=ref_labels[references], own_columns=own
        )
    return batch, kept
