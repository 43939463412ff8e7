"""The library's CircleLoss on the fused kernels."""

from __future__ import annotations

import contextlib
import math
from typing import Any

from pytorch_metric_learning.reducers import AvgNonZeroReducer
from torch import Tensor

from circle_kernels.formula import CircleFormula
from circle_kernels.integrations.library_inputs import is_plain_batch
from circle_kernels.integrations.pytorch_metric_learning import library as losses
from circle_kernels.integrations.pytorch_metric_learning.fused import COSINE, LossDict
from circle_kernels.integrations.pytorch_metric_learning.pairs import FusedPairLoss, Pairs, of_rows
from circle_kernels.operation.batch import Batch, Operation, check_scale, number_of, remembered
from circle_kernels.operation.reductions import MEAN_NONZERO, softplus
from circle_kernels.operation.row_losses import reduced_row_losses

# What forward() of the library calls of this object before its reducer.
_ON_THE_WAY = ("compute_loss", "_compute_loss", "add_embedding_regularization_to_loss_dict")


class CircleLoss(FusedPairLoss, losses.CircleLoss):
    """Circle loss (Sun et al., CVPR 2020, Eq. 6) as ``pytorch_metric_learning.losses.CircleLoss``.

    The same values, gradients, defaults and special cases, without the N×M similarity matrix. Rows
    are computed in float32 (float64 for float64) and reach the reducer in the embeddings' dtype.

    With labels alone the pairs are never listed. Miners' tuples are worked off pair by pair where
    they are short; else they become a matrix of one byte for each pair. On the CPU, a tuple that
    lists exactly the pairs of some labels gives the bits that those labels give.

    What cannot be fused is left to the library's own computation, with one warning for each kind of
    reason: another distance, or one with another ``p`` or ``power``; an m that is no plain number,
    or a gamma that is neither one nor a tensor with one, which may be learned; a pair that is
    listed both as positive and as negative, which the library refuses since 2.9; indices that are
    no vectors of int32 or int64; references without labels whose number is not that of the
    embeddings.

    A second derivative, as of a gradient penalty, needs the library's own class.

    Args:
        m: relaxation margin.
        gamma: scale of the logits.
        **kwargs: the library's: ``distance``, ``reducer``, ``embedding_regularizer``,
            ``embedding_reg_weight``, ``collect_stats``.
    """

    def forward(
        self,
        embeddings: Tensor,  # (N, D)
        labels: Tensor | None = None,  # (N,)
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,  # (M, D)
        ref_labels: Tensor | None = None,  # (M,)
    ) -> Tensor:
        """What the library's own does, in its usual case as one node of the graph.

        Args:
            embeddings: (N, D), float16, bfloat16, float32 or float64.
            labels: (N,) integers.
            indices_tuple: what a miner returned, in place of all pairs.
            ref_emb, ref_labels: (M, D) and (M,) references; without them the batch is compared with
                itself.

        Returns:
            What the reducer makes of the losses of rows, by default a scalar.
        """
        if labels is not None and indices_tuple is ref_emb is ref_labels is None:
            operation = self._plain_operation()
            if operation is not None and is_plain_batch(embeddings, labels):
                batch = Batch(embeddings, labels, readable=True)
                loss = reduced_row_losses(batch, operation, MEAN_NONZERO)
                if not math.isnan(loss.item()):  # of which the reducer makes something else
                    return loss
        return super().forward(embeddings, labels, indices_tuple, ref_emb, ref_labels)

    def _plain_operation(self) -> Operation | None:
        """What a plain batch's loss is computed by, unless somebody wants to see or change what the
        library computes on the way."""
        reducer, distance = self.reducer, self.distance
        if (
            not any(self._overrides(name) for name in _ON_THE_WAY)
            and not (reducer._forward_hooks or reducer._forward_pre_hooks)
            and type(reducer) is AvgNonZeroReducer
            and (reducer.low, reducer.high) == (0, None)
            and type(distance) in COSINE
            and (distance.p, distance.power) == (2, 1)
            and self.embedding_regularizer is None
            and not (self.collect_stats or reducer.collect_stats or distance.collect_stats)
        ):
            with contextlib.suppress(TypeError, ValueError):  # then the library's own loss serves
                return _operation(
                    self.m,
                    self.gamma,
                    self.op,
                    self.on,
                    self.delta_p,
                    self.delta_n,
                    normalize=distance.normalize_embeddings,
                )
        return None

    def _overrides(self, name: str) -> bool:
        """Whether a method is another than this class has, a subclass's or the object's own."""
        return getattr(getattr(self, name), "__func__", None) is not getattr(CircleLoss, name)

    def _formula(self) -> CircleFormula:
        return CircleFormula(
            m=self.m,
            gamma=self.gamma if self._scale() is None else number_of(self.gamma),
            optimum_pos=self.op,
            optimum_neg=self.on,
            margin_pos=self.delta_p,
            margin_neg=self.delta_n,
        )

    def _scale(self) -> Tensor | None:
        """gamma where it is a tensor, which may be learned."""
        return check_scale("gamma", self.gamma) if isinstance(self.gamma, Tensor) else None

    def _losses(self, pairs: Pairs) -> LossDict:
        lse_pos, lse_neg = pairs.logsumexps(self._formula(), self._scale())
        # A row without positives or negatives has the sum -inf, hence loss and gradient exactly 0.
        return of_rows(softplus(lse_pos + lse_neg)[:, None])


@remembered
def _operation(*formula: Any, normalize: bool) -> Operation:
    return Operation(CircleFormula(*formula), normalize)
