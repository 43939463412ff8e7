"""Losses over pairs: the pairs that labels make, and those that miners and memories list."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor

from circle_kernels.arguments import label_numbers, one_dtype
from circle_kernels.backends.addressable import all_addressable
from circle_kernels.backends.problem import ROW_NEGATIVE, ROW_POSITIVE
from circle_kernels.formula import PairFormula
from circle_kernels.integrations.library_inputs import are_indices, readable_indices
from circle_kernels.integrations.pytorch_metric_learning.fused import (
    FusedLoss,
    LossDict,
    Obstacle,
    check_readable,
    elements,
)
from circle_kernels.operation.batch import Batch, Operation, check_batch
from circle_kernels.operation.eager import logsumexps
from circle_kernels.operation.learned_scale import with_scale_gradient
from circle_kernels.operation.listed_pairs import (
    PairIndices,
    gathered_logsumexp,
    label_matrix,
    labels_of,
    matrix_batch,
    matrix_of_pairs,
    pair_matrix,
    unique_pairs,
)
from circle_kernels.operation.positives import Positives, unit_rows

_BOTH = ("pairs", "a pair is listed both as positive and as negative")


@dataclass(frozen=True)
class BatchPairs:
    """The pairs of a batch, by labels or in a matrix."""

    batch: Batch
    normalize: bool

    def logsumexps(
        self, formula: PairFormula, scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Both log-sum-exps (N,); ``scale`` is the formula's gamma where it is a tensor."""
        operation = Operation(formula, self.normalize, scale=scale)
        sums = logsumexps(self.batch, operation)
        if not operation.scale_is_learned:
            return sums
        return with_scale_gradient(sums, self.batch, operation)

    @functools.cached_property
    def positives(self) -> Positives:
        """The positive ones."""
        return Positives.of(self.batch, self.normalize)


@dataclass(frozen=True)
class FewPairs:
    """A short list of pairs, with what :class:`BatchPairs` has."""

    embeddings: Tensor  # (N, D)
    ref_emb: Tensor | None  # (M, D)
    pairs: tuple[Tensor, Tensor, Tensor]  # from unique_pairs
    normalize: bool

    def logsumexps(
        self, formula: PairFormula, scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Both log-sum-exps (N,); ``scale`` is the formula's gamma where it is a tensor."""
        sides = (self.embeddings, self.ref_emb)
        if scale is not None and scale.requires_grad:
            batch = matrix_batch(*sides, matrix_of_pairs(self.pairs, *sides))
            return BatchPairs(batch, self.normalize).logsumexps(formula, scale)
        return gathered_logsumexp(*sides, self.pairs, formula=formula, normalize=self.normalize)

    @property
    def positives(self) -> FewPairs:
        """What says how many of them are positive, and how similar."""
        return self

    @functools.cached_property
    def numbers(self) -> Tensor:  # (N,) int64
        """How many positives each row has."""
        rows, _, positive = self.pairs
        return torch.bincount(rows[positive], minlength=len(self.embeddings))

    def mean_similarity(self) -> Tensor:  # (N,)
        """The mean similarity of each row's positives, 0 of none; differentiable."""
        rows, columns, positive = self.pairs
        mine = unit_rows(self.embeddings, self.normalize)
        others = mine if self.ref_emb is None else unit_rows(self.ref_emb, self.normalize)
        sums = torch.zeros_like(mine).index_add(0, rows[positive], others[columns[positive]])
        return (mine * sums).sum(1) / self.numbers.clamp_min(1)


Pairs = BatchPairs | FewPairs


class FusedPairLoss(FusedLoss):
    """A loss over pairs, of labels or of listed ones."""

    def _losses(self, pairs: Pairs) -> LossDict:
        """What the library's ``_compute_loss`` returns."""
        raise NotImplementedError

    def compute_loss(
        self,
        embeddings: Tensor,  # (N, D)
        labels: Tensor | None,  # (N,)
        indices_tuple: tuple[Tensor, ...] | None,
        ref_emb: Tensor,  # (M, D); the embeddings themselves where none were given
        ref_labels: Tensor | None,  # (M,)
    ) -> LossDict:
        """What the library asks of a loss: the rows' losses, for the reducer."""
        c_f.labels_or_indices_tuple_required(labels, indices_tuple)
        self.distance.check_shapes(embeddings, ref_emb)
        check_readable(embeddings, labels, ref_emb, ref_labels)
        if indices_tuple is not None and not all_addressable(*indices_tuple):
            indices_tuple = readable_indices(indices_tuple)
        if ref_emb.device != embeddings.device:
            raise ValueError(
                f"ref_emb must be on the device of embeddings: wanted {embeddings.device}, got "
                f"{ref_emb.device}"
            )
        arguments = (embeddings, labels, indices_tuple, ref_emb, ref_labels)
        obstacle = self._obstacle(embeddings=embeddings, ref_emb=ref_emb)
        if indices_tuple is None and ref_labels is None and len(ref_emb) != len(embeddings):
            reason = "ref_emb has no ref_labels and another length than embeddings"
            obstacle = obstacle or ("ref_labels", reason)
        if obstacle is not None:
            return self._by_the_library(*obstacle, *arguments)
        if indices_tuple is None and embeddings.shape[0] * ref_emb.shape[0] <= 2:
            # The library has a rule for lists of at most one pair.
            indices_tuple = lmu.get_all_pairs_indices(labels, ref_labels)
        if indices_tuple is None:
            assert labels is not None
            pairs = self._of_labels(embeddings, labels, ref_emb, ref_labels)
            result: LossDict | Obstacle = self._losses(pairs)
        else:
            listed = lmu.convert_to_pairs(indices_tuple, labels)
            if all(len(each) <= 1 for each in listed):
                return self.zero_losses()
            listed = tuple(torch.as_tensor(each, device=embeddings.device) for each in listed)
            if not are_indices(*listed):
                reason = "a miner's tuple holds other things than vectors of int32 or int64"
                return self._by_the_library("indices", reason, *arguments)
            indices = PairIndices(*(each.to(torch.int64) for each in listed))
            sides = one_dtype(embeddings, ref_emb)
            result = self._losses_of_lists(*sides, indices, itself=ref_emb is embeddings)
        if isinstance(result, tuple):
            return self._by_the_library(*result, *arguments)
        self._record_norms(embeddings, ref_emb)
        for each in result.values():
            if isinstance(each["losses"], Tensor):
                each["losses"] = each["losses"].to(embeddings.dtype)
        return result

    def _of_labels(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> Pairs:
        """The pairs that labels make."""
        without_diagonal = ref_labels is None or ref_labels is labels
        if ref_labels is None:
            ref_labels = labels
        labels, ref_labels = label_numbers(labels, ref_labels.to(labels.device))
        normalize = self.distance.normalize_embeddings
        if without_diagonal and ref_emb is embeddings:
            return BatchPairs(check_batch(embeddings, labels, None, None), normalize)
        embeddings, ref_emb = one_dtype(embeddings, ref_emb)
        if not without_diagonal:
            return BatchPairs(check_batch(embeddings, labels, ref_emb, ref_labels), normalize)
        kinds = label_matrix(labels, labels, with_diagonal=False)
        return BatchPairs(matrix_batch(embeddings, ref_emb, kinds), normalize)

    def _losses_of_lists(
        self, embeddings: Tensor, ref_emb: Tensor, indices: PairIndices, *, itself: bool
    ) -> LossDict | Obstacle:
        """The losses of listed pairs, of which each counts once, or why they cannot be fused."""
        columns = None if itself else ref_emb
        pairs = self._of_lists(embeddings, columns, indices)
        return _BOTH if pairs is None else self._losses(pairs)

    def _of_lists(
        self, embeddings: Tensor, ref_emb: Tensor | None, indices: PairIndices
    ) -> Pairs | None:
        """Listed pairs; None where one is positive and negative."""
        rows, columns = len(embeddings), len(embeddings if ref_emb is None else ref_emb)
        normalize = self.distance.normalize_embeddings
        if indices.is_short(rows, columns):
            pairs = unique_pairs(indices, rows, columns)
            return None if pairs is None else FewPairs(embeddings, ref_emb, pairs, normalize)
        kinds = pair_matrix(indices, rows, columns)
        if len(indices) >= rows * columns - min(rows, columns):
            with_diagonal = ref_emb is not None or bool((kinds.diagonal() != 0).any())
            labels = labels_of(kinds, with_diagonal=with_diagonal)
            if labels is not None:
                references: Any = (None, None)
                if with_diagonal:
                    references = (embeddings if ref_emb is None else ref_emb, labels[1])
                return BatchPairs(check_batch(embeddings, labels[0], *references), normalize)
        if (kinds == ROW_POSITIVE | ROW_NEGATIVE).any():
            return None
        return BatchPairs(matrix_batch(embeddings, ref_emb, kinds), normalize)


def of_rows(losses: Tensor) -> LossDict:
    """The losses (N,) or (N, 1) of all rows."""
    return {"loss": elements(losses, c_f.torch_arange_from_size(losses))}
