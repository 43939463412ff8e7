"""The library's pair losses of other papers on the fused kernels."""

from __future__ import annotations

import math

import torch
from pytorch_metric_learning.reducers import MeanReducer, MultipleReducers
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor

from circle_kernels.formula import UnifiedFormula
from circle_kernels.integrations.pytorch_metric_learning import library as losses
from circle_kernels.integrations.pytorch_metric_learning.fused import (
    FusedLoss,
    LossDict,
    Obstacle,
    elements,
)
from circle_kernels.integrations.pytorch_metric_learning.pairs import (
    BatchPairs,
    FewPairs,
    FusedPairLoss,
    Pairs,
    of_rows,
)
from circle_kernels.integrations.pytorch_metric_learning.repeated import (
    pair_similarities,
    repeated_logsumexp,
)
from circle_kernels.logsumexp import present_logsumexp
from circle_kernels.losses.pair_losses import first_two_of_classes
from circle_kernels.operation.eager import pair_logsumexp
from circle_kernels.operation.listed_pairs import PairIndices, matrix_batch, pair_matrix
from circle_kernels.operation.positives import unit_rows
from circle_kernels.operation.reductions import softplus
from circle_kernels.options import positive_number, real_number


class MultiSimilarityLoss(FusedPairLoss, losses.MultiSimilarityLoss):
    """Multi-similarity loss as ``pytorch_metric_learning.losses.MultiSimilarityLoss``; see
    :func:`circle_kernels.losses.multi_similarity_loss` for the formula, and :class:`CircleLoss`
    for what is fused.

    Args:
        alpha, beta: scales of positives and of negatives.
        base: the similarity that positives should be above and negatives below.
        **kwargs: the library's.
    """

    def _formula(self) -> UnifiedFormula:
        margin = real_number("base", self.base)
        return UnifiedFormula(
            margin_pos=margin,
            margin_neg=margin,
            gamma_pos=positive_number("alpha", self.alpha),
            gamma_neg=positive_number("beta", self.beta),
        )

    def _losses(self, pairs: Pairs) -> LossDict:
        lse_pos, lse_neg = pairs.logsumexps(self._formula())
        rows = softplus(lse_pos) / self.alpha + softplus(lse_neg) / self.beta
        return of_rows(rows[:, None])


class SupConLoss(FusedPairLoss, losses.SupConLoss):
    """Supervised contrastive loss as ``pytorch_metric_learning.losses.SupConLoss``; see
    :func:`circle_kernels.losses.supcon_loss` for the formula, and :class:`CircleLoss` for what is
    fused.

    Args:
        temperature: what similarities are divided by.
        **kwargs: the library's.
    """

    def _formula(self) -> UnifiedFormula:
        gamma = 1 / positive_number("temperature", self.temperature)
        # Positives count as negatives do: both together are all pairs.
        return UnifiedFormula(gamma=gamma, gamma_pos=-gamma)

    def _losses(self, pairs: Pairs) -> LossDict:
        formula = self._formula()
        lse_pos, lse_neg = pairs.logsumexps(formula)
        has_positives, has_negatives = lse_pos != -math.inf, lse_neg != -math.inf
        if not (has_positives.any() and has_negatives.any()):
            return self.zero_losses()
        positives = pairs.positives
        # Of a single pair the loss is 0, and not what rounding leaves of it, which reducers count.
        counted = has_positives & (has_negatives | (positives.numbers > 1))
        lse_all = present_logsumexp(torch.stack([lse_pos, lse_neg]), dim=0)
        rows = lse_all - positives.mean_similarity() * formula.gamma
        return of_rows(torch.where(counted | lse_all.isnan(), rows, 0.0))


class NTXentLoss(FusedPairLoss, losses.NTXentLoss):
    """NT-Xent or InfoNCE as ``pytorch_metric_learning.losses.NTXentLoss``, one loss for each
    positive pair; see :func:`circle_kernels.losses.ntxent_loss` for the formula, and
    :class:`CircleLoss` for what is fused.

    With labels alone and the default reducer the positive pairs are never listed; for other
    reducers they are. What a miner lists several times counts as often, as in the library, which
    takes a product in blocks where it is negatives. Losses are not cut off at the logarithm of the
    dtype's smallest number (87 in float32), as the library's are.

    Args:
        temperature: what similarities are divided by.
        **kwargs: the library's.
    """

    def _formula(self) -> UnifiedFormula:
        return UnifiedFormula(gamma=1 / positive_number("temperature", self.temperature))

    def _losses(self, pairs: Pairs) -> LossDict:
        assert isinstance(pairs, BatchPairs)
        formula, positives = self._formula(), pairs.positives
        lse_pos, lse_neg = pairs.logsumexps(formula)
        number = positives.numbers.sum()
        if number == 0 or not (lse_neg != -math.inf).any():
            return self.zero_losses()
        if not self._is_averaged():
            mine, others = positives.sides
            return self._of_each_pair(mine, others, positives.indices(), lse_neg)
        if positives.are_single():
            rows = softplus(lse_pos + lse_neg)
        else:
            rows = positives.softplus_sums(lse_neg, formula.gamma)
        mean = rows.sum() / number
        return {"loss": {"losses": mean, "indices": None, "reduction_type": "already_reduced"}}

    def _losses_of_lists(
        self, embeddings: Tensor, ref_emb: Tensor, indices: PairIndices, *, itself: bool
    ) -> LossDict | Obstacle:
        if not (len(indices.rows_pos) and len(indices.rows_neg)):
            return self.zero_losses()
        rows, columns = len(embeddings), len(ref_emb)
        for index, size in zip(vars(indices).values(), (rows, columns, rows, columns), strict=True):
            if ((index < 0) | (index >= size)).any():
                return "range", f"a miner's tuple has an index that is not in [0, {size})"
        with torch.autocast(embeddings.device.type, enabled=False):
            mine = unit_rows(embeddings, self.distance.normalize_embeddings)
            others = mine
            if not itself:
                others = unit_rows(ref_emb, self.distance.normalize_embeddings)
            negatives = (indices.rows_neg, indices.columns_neg)
            lse_neg = self._of_negatives(embeddings, None if itself else ref_emb, negatives)
            if lse_neg is None:
                keys = negatives[0] * columns + negatives[1]
                counted = torch.unique(keys, return_counts=True)
                lse_neg = repeated_logsumexp(mine, others, counted, self._formula().gamma)
        positives = (indices.rows_pos, indices.columns_pos)
        return self._of_each_pair(mine, others, positives, lse_neg)

    def _of_negatives(
        self, embeddings: Tensor, ref_emb: Tensor | None, listed: tuple[Tensor, Tensor]
    ) -> Tensor | None:
        """The log-sum-exps (N,) of listed negatives; None where one is listed twice."""
        rows, columns = len(embeddings), len(embeddings if ref_emb is None else ref_emb)
        nobody = listed[0][:0]
        indices = PairIndices(nobody, nobody, *listed)
        normalize = self.distance.normalize_embeddings
        pairs: Pairs
        if indices.is_short(rows, columns):
            keys = torch.unique(listed[0] * columns + listed[1])
            number = len(keys)
            unique = (keys // columns, keys % columns, torch.zeros_like(keys, dtype=torch.bool))
            pairs = FewPairs(embeddings, ref_emb, unique, normalize)
        else:
            kinds = pair_matrix(indices, rows, columns)
            number = int(kinds.count_nonzero())
            if number < len(indices):
                return None
            pairs = BatchPairs(matrix_batch(embeddings, ref_emb, kinds), normalize)
        return None if number < len(indices) else pairs.logsumexps(self._formula())[1]

    def _of_each_pair(
        self, rows: Tensor, columns: Tensor, places: tuple[Tensor, Tensor], lse_neg: Tensor
    ) -> LossDict:
        """The losses of positive pairs, in the order in which they are listed."""
        similarity = pair_similarities(rows, columns, places)
        each = softplus(lse_neg[places[0]] - self._formula().gamma * similarity)
        return {"loss": {"losses": each, "indices": places, "reduction_type": "pos_pair"}}

    def _is_averaged(self) -> bool:
        """Whether nobody sees of the positive pairs' losses more than their mean."""
        reducer = self.reducer
        if type(reducer) is MultipleReducers:
            if reducer._forward_hooks or reducer._forward_pre_hooks:
                return False
            reducer = dict(reducer.reducers).get("loss")
        return (
            type(reducer) is MeanReducer
            and not (reducer._forward_hooks or reducer._forward_pre_hooks)
            and not reducer.collect_stats
        )


class NPairsLoss(FusedLoss, losses.NPairsLoss):
    """N-pairs loss as ``pytorch_metric_learning.losses.NPairsLoss``, whose default distance, a
    ``DotProductSimilarity``, divides embeddings by their norms; see
    :func:`circle_kernels.losses.n_pairs_loss` for the formula, and :class:`CircleLoss` for what is
    fused.

    Args:
        **kwargs: the library's.
    """

    _REPLACED = ()

    def _formula(self) -> UnifiedFormula:
        return UnifiedFormula(m=0.0, gamma=1.0)

    def compute_loss(
        self,
        embeddings: Tensor,  # (N, D)
        labels: Tensor,  # (N,)
        indices_tuple: tuple[Tensor, ...] | None,
        ref_emb: Tensor,
        ref_labels: Tensor,
    ) -> LossDict:
        """What the library asks of a loss: one loss for each class that has a pair."""
        self._check_alone(embeddings, labels, ref_emb, ref_labels)
        obstacle = self._obstacle(embeddings=embeddings)
        if obstacle is not None:
            arguments = (embeddings, labels, indices_tuple, ref_emb, ref_labels)
            return self._by_the_library(*obstacle, *arguments)
        if indices_tuple is None:
            first, second = first_two_of_classes(labels)
        else:
            first, second = lmu.convert_to_pos_pairs_with_unique_labels(indices_tuple, labels)
        self.num_pairs: int = len(first)
        if self.num_pairs == 0:
            return self.zero_losses()
        anchors, positives = embeddings[first], embeddings[second]
        self._record_norms(anchors, positives)
        classes = torch.arange(self.num_pairs, device=embeddings.device)
        lse_pos, lse_neg = pair_logsumexp(
            anchors,
            classes,
            positives,
            classes,
            formula=self._formula(),
            normalize=self.distance.normalize_embeddings,
        )
        rows = softplus(lse_pos + lse_neg).to(embeddings.dtype)
        return {"loss": elements(rows, first)}
