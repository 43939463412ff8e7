"""The library's losses with one learned vector for each class on the fused kernels."""

from __future__ import annotations

import torch
from pytorch_metric_learning import distances
from pytorch_metric_learning.utils import common_functions as c_f
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
from circle_kernels.operation.batch import Batch, Operation
from circle_kernels.operation.eager import logsumexps, pair_logsumexp
from circle_kernels.operation.reductions import softplus
from circle_kernels.options import positive_number, real_number


class _FusedProxyLoss(FusedLoss):
    """A loss between embeddings and the classes' vectors."""

    @property
    def _vectors(self) -> Tensor:  # (C, D)
        return self.proxies

    def _losses(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: tuple[Tensor, ...] | None
    ) -> LossDict | Obstacle:
        raise NotImplementedError

    def compute_loss(
        self,
        embeddings: Tensor,  # (N, D)
        labels: Tensor,  # (N,)
        indices_tuple: tuple[Tensor, ...] | None,
        ref_emb: Tensor,
        ref_labels: Tensor,
    ) -> LossDict:
        """What the library asks of a loss, with that of its regularizer."""
        self._check_alone(embeddings, labels, ref_emb, ref_labels)
        self.cast_types(embeddings.dtype, embeddings.device)
        obstacle = self._obstacle(embeddings=embeddings) or self._obstacle_of_labels(labels)
        result = obstacle or self._losses(embeddings, labels, indices_tuple)
        if isinstance(result, tuple):
            arguments = (embeddings, labels, indices_tuple, ref_emb, ref_labels)
            return self._by_the_library(*result, *arguments)
        self._record_norms(embeddings, self._vectors)
        self.add_weight_regularization_to_loss_dict(result, self._vectors)
        return result

    def _obstacle_of_labels(self, labels: Tensor) -> Obstacle | None:
        number = len(self._vectors)
        if labels.dtype == torch.int64 and not ((labels < 0) | (labels >= number)).any():
            return None
        return "labels", f"labels are not all int64 in [0, {number})"

    def _of_classes(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Both log-sum-exps (N,): of the own class, and of the others."""
        operation = Operation(self._formula(), self.distance.normalize_embeddings)
        return logsumexps(Batch(embeddings, labels, self._vectors), operation)


class _FusedMarginLoss(_FusedProxyLoss):
    """A cross-entropy in which the similarity with the own class gives way to another number."""

    _REPLACED = ("get_cosine", "get_target_mask", "scale_logits")

    @property
    def _vectors(self) -> Tensor:
        return self.W.t()

    def _formula(self) -> UnifiedFormula:
        return UnifiedFormula(gamma=positive_number("scale", self.scale))

    def _losses(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: tuple[Tensor, ...] | None
    ) -> LossDict:
        lse_pos, lse_neg = self._of_classes(embeddings, labels)
        scale = self._formula().gamma
        with_margin = self.modify_cosine_of_target_classes(lse_pos / -scale)
        rows = softplus(lse_neg - scale * with_margin).to(embeddings.dtype)
        if indices_tuple is not None:
            rows = rows * lmu.convert_to_weights(indices_tuple, labels, dtype=rows.dtype)
        return {"loss": elements(rows, c_f.torch_arange_from_size(embeddings))}


class ArcFaceLoss(_FusedMarginLoss, losses.ArcFaceLoss):
    """ArcFace as ``pytorch_metric_learning.losses.ArcFaceLoss``; see
    :func:`circle_kernels.losses.arcface_loss` for the formula, whose margin is in radians, and
    :class:`CircleLoss` for what is fused.

    Args:
        num_classes, embedding_size: C and D of the parameter ``W`` (D, C).
        margin: degrees.
        scale: of the logits.
        **kwargs: the library's.
    """


class CosFaceLoss(_FusedMarginLoss, losses.CosFaceLoss):
    """CosFace as ``pytorch_metric_learning.losses.CosFaceLoss``; see
    :func:`circle_kernels.losses.cosface_loss` for the formula, and :class:`CircleLoss` for what is
    fused.

    Args:
        num_classes, embedding_size: C and D of the parameter ``W`` (D, C).
        margin: between the similarity with the own class and others.
        scale: of the logits.
        **kwargs: the library's.
    """


class ProxyNCALoss(_FusedProxyLoss, losses.ProxyNCALoss):
    """ProxyNCA as ``pytorch_metric_learning.losses.ProxyNCALoss``; see
    :func:`circle_kernels.losses.proxy_nca_loss` for the formula, and :class:`CircleLoss` for what
    is fused: also the default distance, the squared one of vectors over their norms. A proxy of
    zeros, which the library takes for one at a squared distance of 1 from all, is at 2.

    Args:
        num_classes, embedding_size: C and D of the parameter ``proxies`` (C, D).
        softmax_scale: of the squared distances.
        **kwargs: the library's.
    """

    _REPLACED = ("nca_computation",)

    def _is_squared(self) -> bool:
        distance = self.distance
        squared = (distance.p, distance.power, distance.normalize_embeddings) == (2, 2, True)
        return type(distance) is distances.LpDistance and squared

    def _obstacle_of_distance(self) -> Obstacle | None:
        return None if self._is_squared() else super()._obstacle_of_distance()

    def _formula(self) -> UnifiedFormula:
        # The squared distance of unit vectors is 2 - 2 s.
        factor = 2 if self._is_squared() else 1
        return UnifiedFormula(gamma=factor * positive_number("softmax_scale", self.softmax_scale))

    def _losses(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: tuple[Tensor, ...] | None
    ) -> LossDict:
        lse_pos, lse_neg = self._of_classes(embeddings, labels)
        rows = softplus(lse_pos + lse_neg).to(embeddings.dtype)
        # The library leaves out rows whose probability is 0 in their dtype.
        kept = (-rows).exp() != 0
        if indices_tuple is not None:
            weights = lmu.convert_to_weights(
                indices_tuple, labels, dtype=rows.dtype, using_ref=True
            )
            rows = rows * weights
        return {"loss": elements(rows[kept], c_f.torch_arange_from_size(embeddings)[kept])}


class ProxyAnchorLoss(_FusedProxyLoss, losses.ProxyAnchorLoss):
    """Proxy-anchor loss as ``pytorch_metric_learning.losses.ProxyAnchorLoss``; see
    :func:`circle_kernels.losses.proxy_anchor_loss` for the formula, and :class:`CircleLoss` for
    what is fused. Weights of a miner, which the library adds to the logits, are not.

    Args:
        num_classes, embedding_size: C and D of the parameter ``proxies`` (C, D).
        margin: what similarities of a proxy's class should be above, and others' below its
            negative.
        alpha: scale.
        **kwargs: the library's.
    """

    _REPLACED = ("get_logits",)

    def _formula(self) -> UnifiedFormula:
        margin = real_number("margin", self.margin)
        scale = positive_number("alpha", self.alpha)
        return UnifiedFormula(gamma=scale, margin_pos=margin, margin_neg=-margin)

    def _losses(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: tuple[Tensor, ...] | None
    ) -> LossDict | Obstacle:
        if indices_tuple is not None:
            weights = lmu.convert_to_weights(indices_tuple, labels, dtype=embeddings.dtype)
            if (weights != 1).any():
                return "weights", "a miner's tuple weighs embeddings in the logits"
        classes = torch.arange(self.num_classes, device=labels.device)
        lse_pos, lse_neg = pair_logsumexp(
            self.proxies,
            classes,
            embeddings,
            labels,
            formula=self._formula(),
            normalize=self.distance.normalize_embeddings,
        )
        of_positives, of_negatives = (
            softplus(each).to(embeddings.dtype) for each in (lse_pos, lse_neg)
        )
        return {
            "pos_loss": elements(of_positives, classes, divisor=len(labels.unique())),
            "neg_loss": elements(of_negatives, classes, divisor=self.num_classes),
        }
