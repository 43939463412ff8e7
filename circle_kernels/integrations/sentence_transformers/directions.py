"""Multiple negatives ranking of embeddings: which pairs are compared, by the fused operation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from circle_kernels.formula import UnifiedFormula
from circle_kernels.logsumexp import present_logsumexp
from circle_kernels.losses.pairs import PairOptions, PairRows, Tensors, numbers_of_rows, pair_rows
from circle_kernels.operation.positives import unit_rows
from circle_kernels.operation.reductions import softplus
from circle_kernels.options import positive_number, real_number

Direction: TypeAlias = Literal["query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"]
PartitionMode: TypeAlias = Literal["joint", "per_direction"]
HardnessMode: TypeAlias = Literal["in_batch_negatives", "hard_negatives", "all_negatives"]

DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
PARTITION_MODES: tuple[PartitionMode, ...] = get_args(PartitionMode)
HARDNESS_MODES: tuple[HardnessMode, ...] = get_args(HardnessMode)
_NO_ANCHORS = -1  # the number of documents that are no anchor's positive


@dataclass(frozen=True)
class RankingFormula:
    """What the library's loss lets its users choose, and has explained.

    Raises:
        TypeError, ValueError: a number of the wrong type or range.
    """

    scale: float
    directions: tuple[Direction, ...]
    partition_mode: PartitionMode
    hardness_mode: HardnessMode | None
    hardness_strength: float

    def __post_init__(self) -> None:
        positive_number("scale", self.scale)
        if not 0 <= real_number("hardness_strength", self.hardness_strength) < float("inf"):
            raise ValueError(
                f"hardness_strength must be at least 0 and finite, got {self.hardness_strength!r}"
            )

    def strength(self, *modes: str) -> float:
        """That of negatives which become harder in these modes."""
        return float(self.hardness_strength) if self.hardness_mode in modes else 0.0


def ranking_loss(
    embeddings: Sequence[Tensor],  # anchors, positives, hard negatives, ...: each (N, D)
    formula: RankingFormula,
    options: PairOptions,
) -> Tensor:
    """The mean over anchors, of all processes where ``options`` have a group.

    Each is ``log sum_k exp(z_k) - z_p`` over the logits of its pairs, among them that of its
    positive, ``z_p``: ``softplus`` of the others' log-sum-exp less ``z_p``.
    """
    columns = _Columns(embeddings, formula, options)
    rows, positive, others = columns.query_to_doc()
    for direction in formula.directions:
        if direction not in others:
            others[direction] = [columns.negatives(direction)]
    if formula.partition_mode == "per_direction":
        exponents = [_logsumexp(each) - positive for each in others.values()]
        return rows.reduced(torch.stack([softplus(each) for each in exponents]).mean(0))
    together = [logits for each in others.values() for logits in each]
    if "doc_to_query" in others:
        together.append(positive)  # which is a pair of that direction once more
    return rows.reduced(softplus(_logsumexp(together) - positive))


class _Columns:
    """Anchors ("queries") and documents, and the numbers that say which belong together."""

    def __init__(
        self, embeddings: Sequence[Tensor], formula: RankingFormula, options: PairOptions
    ) -> None:
        self.anchors, *self.documents = embeddings
        self.candidates = torch.cat(self.documents)
        self.formula, self.options = formula, options
        self.numbers = numbers_of_rows(self.anchors, options.get("group"))

    def query_to_doc(self) -> tuple[PairRows, Tensor, dict[str, list[Tensor]]]:
        """Anchors as rows, the logits (N,) of their positives, and log-sum-exps or logits (N,) of
        the other pairs by direction: of this one, and of others that cost no product more."""
        formula, count = self.formula, self.anchors.shape[0]
        own = formula.strength("hard_negatives", "all_negatives")
        in_batch = formula.strength("in_batch_negatives", "all_negatives")
        apart = len(self.documents) > 1 and own != in_batch
        # Sums over columns would have what makes negatives of anchors harder, too.
        both_sides = (
            "doc_to_query" in formula.directions
            and self.options.get("group") is None
            and in_batch == 0
        )
        of_candidates = self._of_anchors()
        if not apart:
            of_candidates[count:] = _NO_ANCHORS
        tensors = (self.anchors, self.numbers, self.candidates, of_candidates)
        rows = self._rows("query_to_doc", tensors, formula.scale + in_batch)
        lse_pos, lse_neg = rows.logsumexps(both_sides=both_sides)
        positive, negatives = -lse_pos[:count], lse_neg[:count]
        if in_batch > 0:
            # Held constant, the hardness is no part of what negatives' slopes are.
            share = formula.scale / (formula.scale + in_batch)
            negatives = negatives * share + (negatives * (1 - share)).detach()
        others = {"query_to_doc": [negatives]}
        if both_sides:
            others["doc_to_query"] = [lse_neg[count : 2 * count]]
        if apart:
            positive, *own_negatives = self._own_similarities()
            others["query_to_doc"] += [
                each * formula.scale + each.detach() * own for each in own_negatives
            ]
            positive = positive * formula.scale
        return rows, positive, others

    def negatives(self, direction: str) -> Tensor:
        """The log-sum-exp (N,) over a direction's pairs that do not belong together."""
        positives, numbers = self.documents[0], self.numbers
        tensors: dict[str, Tensors] = {
            "query_to_query": (self.anchors, numbers, None, None),
            "doc_to_query": (positives, numbers, self.anchors, numbers),
            "doc_to_doc": (positives, numbers, self.candidates, self._of_anchors()),
        }
        _, lse_neg = self._rows(direction, tensors[direction], self.formula.scale).logsumexps()
        return lse_neg

    def _rows(self, direction: str, tensors: Tensors, gamma_neg: float) -> PairRows:
        scale = self.formula.scale

        def formula() -> UnifiedFormula:
            return UnifiedFormula(gamma=scale, gamma_neg=gamma_neg)

        return pair_rows(
            f"MultipleNegativesRankingLoss {direction}", formula, tensors, "mean", self.options
        )

    def _of_anchors(self) -> Tensor:
        """Of each candidate the number of the anchor that it belongs to."""
        return self.numbers.repeat(len(self.documents))

    def _own_similarities(self) -> list[Tensor]:
        """Those (N,) of anchors with their own documents."""
        anchors, *documents = (
            unit_rows(each, self.options["normalize"]) for each in (self.anchors, *self.documents)
        )
        return [(anchors * each).sum(1) for each in documents]


def _logsumexp(logits: list[Tensor]) -> Tensor:
    """Of vectors (N,), where all may be ``-inf``."""
    return logits[0] if len(logits) == 1 else present_logsumexp(torch.stack(logits), 0)
