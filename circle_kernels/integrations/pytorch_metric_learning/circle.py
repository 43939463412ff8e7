"""The library's CircleLoss on the fused kernels."""

from __future__ import annotations

import contextlib
import math
import warnings
from typing import Any

import torch
from pytorch_metric_learning import distances, losses
from pytorch_metric_learning.reducers import AvgNonZeroReducer
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor

from circle_kernels.arguments import FLOATING_DTYPES, check_kinds, label_numbers, one_dtype
from circle_kernels.backends.addressable import all_addressable
from circle_kernels.backends.problem import ROW_NEGATIVE, ROW_POSITIVE
from circle_kernels.formula import CircleFormula
from circle_kernels.integrations.library_inputs import are_indices, is_plain_batch, readable_indices
from circle_kernels.operation.batch import Batch, Operation, remembered
from circle_kernels.operation.eager import pair_logsumexp
from circle_kernels.operation.listed_pairs import (
    PairIndices,
    gathered_logsumexp,
    label_matrix,
    labels_of,
    matrix_logsumexp,
    pair_matrix,
    unique_pairs,
)
from circle_kernels.operation.reductions import MEAN_NONZERO, softplus
from circle_kernels.operation.row_losses import reduced_row_losses

_COSINE = (distances.CosineSimilarity, distances.DotProductSimilarity)
# What forward() of the library calls of this object before its reducer.
_ON_THE_WAY = ("compute_loss", "add_embedding_regularization_to_loss_dict")
_BOTH = ("pairs", "a pair is listed both as positive and as negative")


class CircleLoss(losses.CircleLoss):
    """Circle loss (Sun et al., CVPR 2020, Eq. 6) as ``pytorch_metric_learning.losses.CircleLoss``.

    The same values, gradients, defaults and special cases, without the N×M similarity matrix. Rows
    are computed in float32 (float64 for float64) and reach the reducer in the embeddings' dtype.

    With labels alone the pairs are never listed. Miners' tuples are worked off pair by pair where
    they are short; else they become a matrix of one byte for each pair. On the CPU, a tuple that
    lists exactly the pairs of some labels gives the bits that those labels give.

    What cannot be fused is left to the library's own computation, with one warning for each kind of
    reason: another distance, or one with another ``p`` or ``power``; m or gamma that are no plain
    numbers; a pair that is listed both as positive and as negative, which the library refuses since
    2.9; indices that are no vectors of int32 or int64; references without labels whose number is
    not that of the embeddings.

    A second derivative, as of a gradient penalty, needs the library's own class.

    Args:
        m: relaxation margin.
        gamma: scale of the logits.
        **kwargs: the library's: ``distance``, ``reducer``, ``embedding_regularizer``,
            ``embedding_reg_weight``, ``collect_stats``.
    """

    def __init__(self, m: float = 0.4, gamma: float = 80, **kwargs: Any) -> None:
        super().__init__(m=m, gamma=gamma, **kwargs)
        self._warned: set[str] = set()

    def forward(
        self,
        embeddings: Tensor,  # (N, D)
        labels: Tensor | None = None,  # (N,)
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,  # (M, D)
        ref_labels: Tensor | None = None,  # (M,)
    ) -> Tensor:
        """What the library's own does, in its usual case as one node of the graph."""
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
            and type(distance) in _COSINE
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

    def compute_loss(
        self,
        embeddings: Tensor,  # (N, D)
        labels: Tensor | None,  # (N,)
        indices_tuple: tuple[Tensor, ...] | None,
        ref_emb: Tensor,  # (M, D); the embeddings themselves where none were given
        ref_labels: Tensor | None,  # (M,)
    ) -> dict[str, dict[str, Any]]:
        """What the library asks of a loss: the rows' losses, for the reducer."""
        c_f.labels_or_indices_tuple_required(labels, indices_tuple)
        self.distance.check_shapes(embeddings, ref_emb)
        if not all_addressable(embeddings, labels, ref_emb, ref_labels, *(indices_tuple or ())):
            check_kinds(
                embeddings=embeddings, labels=labels, ref_emb=ref_emb, ref_labels=ref_labels
            )
            if indices_tuple is not None:
                indices_tuple = readable_indices(indices_tuple)
        if ref_emb.device != embeddings.device:
            raise ValueError(
                f"ref_emb must be on the device of embeddings: wanted {embeddings.device}, got "
                f"{ref_emb.device}"
            )
        arguments = (embeddings, labels, indices_tuple, ref_emb, ref_labels)
        obstacle = self._obstacle(embeddings, indices_tuple, ref_emb, ref_labels)
        if obstacle is not None:
            return self._by_the_library(*obstacle, *arguments)
        if indices_tuple is None and embeddings.shape[0] * ref_emb.shape[0] <= 2:
            # The library has a rule for lists of at most one pair.
            indices_tuple = lmu.get_all_pairs_indices(labels, ref_labels)
        statistics: tuple[Tensor, Tensor] | None
        if indices_tuple is None:
            assert labels is not None
            statistics = self._of_labels(embeddings, labels, ref_emb, ref_labels)
        else:
            listed = lmu.convert_to_pairs(indices_tuple, labels)
            if all(len(each) <= 1 for each in listed):
                return self.zero_losses()
            listed = tuple(torch.as_tensor(each, device=embeddings.device) for each in listed)
            if not are_indices(*listed):
                reason = "a miner's tuple holds other things than vectors of int32 or int64"
                return self._by_the_library("indices", reason, *arguments)
            statistics = self._of_pairs(embeddings, ref_emb, listed)
        if statistics is None:
            return self._by_the_library(*_BOTH, *arguments)
        self._record_norms(embeddings, ref_emb)
        lse_pos, lse_neg = statistics
        # A row without positives or negatives has the sum -inf, hence loss and gradient exactly 0.
        rows = softplus(lse_pos + lse_neg).to(embeddings.dtype)
        return {
            "loss": {
                "losses": rows[:, None],
                "indices": c_f.torch_arange_from_size(embeddings),
                "reduction_type": "element",
            }
        }

    def _formula(self) -> CircleFormula:
        return CircleFormula(
            m=self.m,
            gamma=self.gamma,
            optimum_pos=self.op,
            optimum_neg=self.on,
            margin_pos=self.delta_p,
            margin_neg=self.delta_n,
        )

    def _obstacle(
        self,
        embeddings: Tensor,
        indices_tuple: tuple[Tensor, ...] | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> tuple[str, str] | None:
        """Why this call cannot be fused, as a kind and in words; None where it can."""
        distance = self.distance
        if type(distance) not in _COSINE or distance.p != 2 or distance.power != 1:
            return "distance", (
                f"the distance is {type(distance).__name__} with p={distance.p} and "
                f"power={distance.power}, not a plain CosineSimilarity"
            )
        try:
            self._formula()
        except (TypeError, ValueError) as error:
            return "formula", str(error)
        for name, value in (("embeddings", embeddings), ("ref_emb", ref_emb)):
            if value.dtype not in FLOATING_DTYPES or value.shape[1] == 0:
                return name, f"{name} are {value.dtype} of shape {tuple(value.shape)}"
        if indices_tuple is None and ref_labels is None and len(ref_emb) != len(embeddings):
            return "ref_labels", "ref_emb has no ref_labels and another length than embeddings"
        return None

    def _by_the_library(self, kind: str, reason: str, *arguments: Any) -> dict[str, dict[str, Any]]:
        """With one warning for each kind: words may hold values, which change from step to step."""
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(
                f"CircleLoss is not fused but computed by pytorch-metric-learning: {reason}",
                stacklevel=2,
            )
        return super().compute_loss(*arguments)

    def _of_labels(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Both log-sum-exps over the pairs that labels make."""
        without_diagonal = ref_labels is None or ref_labels is labels
        if ref_labels is None:
            ref_labels = labels
        labels, ref_labels = label_numbers(labels, ref_labels.to(labels.device))
        if not without_diagonal:
            return self._fused(embeddings, labels, ref_emb, ref_labels)
        if ref_emb is embeddings:
            return self._fused(embeddings, labels, None, None)
        kinds = label_matrix(labels, labels, with_diagonal=False)
        return self._over_matrix(embeddings, ref_emb, kinds)

    def _of_pairs(
        self, embeddings: Tensor, ref_emb: Tensor, listed: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor] | None:
        """Both log-sum-exps over listed pairs; None where a pair is positive and negative."""
        indices = PairIndices(*(each.to(torch.int64) for each in listed))
        rows, columns = len(embeddings), len(ref_emb)
        self_mode = ref_emb is embeddings
        if indices.is_short(rows, columns):
            pairs = unique_pairs(indices, rows, columns)
            if pairs is None:
                return None
            return gathered_logsumexp(
                *_one_dtype(embeddings, None if self_mode else ref_emb), pairs, **self._settings()
            )
        kinds = pair_matrix(indices, rows, columns)
        if len(indices) >= rows * columns - min(rows, columns):
            with_diagonal = not self_mode or bool((kinds.diagonal() != 0).any())
            labels = labels_of(kinds, with_diagonal=with_diagonal)
            if labels is not None and with_diagonal:
                return self._fused(embeddings, labels[0], ref_emb, labels[1])
            if labels is not None:
                return self._fused(embeddings, labels[0], None, None)
        if (kinds == ROW_POSITIVE | ROW_NEGATIVE).any():
            return None
        return self._over_matrix(embeddings, None if self_mode else ref_emb, kinds)

    def _settings(self) -> dict[str, Any]:
        return {"formula": self._formula(), "normalize": self.distance.normalize_embeddings}

    def _fused(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        embeddings, ref_emb = _one_dtype(embeddings, ref_emb)
        return pair_logsumexp(embeddings, labels, ref_emb, ref_labels, **self._settings())

    def _over_matrix(
        self, embeddings: Tensor, ref_emb: Tensor | None, kinds: Tensor
    ) -> tuple[Tensor, Tensor]:
        embeddings, ref_emb = _one_dtype(embeddings, ref_emb)
        return matrix_logsumexp(embeddings, ref_emb, kinds, **self._settings())

    def _record_norms(self, embeddings: Tensor, ref_emb: Tensor) -> None:
        """The statistics of the distance, which is not called."""
        if not self.distance.collect_stats:
            return
        self.distance.reset_stats()
        with torch.no_grad():
            self.distance.set_default_stats(
                embeddings,
                ref_emb,
                self.distance.maybe_normalize(embeddings),
                self.distance.maybe_normalize(ref_emb),
            )


@remembered
def _operation(*formula: Any, normalize: bool) -> Operation:
    return Operation(CircleFormula(*formula), normalize)


def _one_dtype(embeddings: Tensor, ref_emb: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return (embeddings, None) if ref_emb is None else one_dtype(embeddings, ref_emb)
