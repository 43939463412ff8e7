"""The naive path: build the (N, M) similarity matrix and walk over it in ordinary PyTorch.

It is the oracle of the tests (in float64), the baseline of the benchmarks and the backend
``"reference"``. Its gradient comes from autograd, so it shares nothing with the kernels'
hand-written backward passes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from circle_kernels.formula import PairFormula
from circle_kernels.logsumexp import masked_logsumexp


def similarity_matrix(
    embeddings: Tensor,  # (N, D)
    references: Tensor,  # (M, D)
    *,
    normalize: bool = True,
) -> Tensor:  # (N, M)
    """Cosine similarities, or plain inner products with ``normalize=False``."""
    if normalize:
        embeddings = F.normalize(embeddings, dim=1)
        references = F.normalize(references, dim=1)
    else:
        # A product with inf can end in a finite loss; NaN cannot.
        embeddings = embeddings.masked_fill(embeddings.isinf(), math.nan)
        references = references.masked_fill(references.isinf(), math.nan)
    return embeddings @ references.T


def pair_masks(
    labels: Tensor,  # (N,)
    ref_labels: Tensor | None = None,  # (M,)
) -> tuple[Tensor, Tensor]:  # (N, M) bool each
    """Which pairs are positive and which negative; in self mode the diagonal is neither."""
    columns = labels if ref_labels is None else ref_labels
    positive = labels[:, None] == columns[None, :]
    negative = ~positive
    if ref_labels is None:
        positive = positive & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return positive, negative


def pair_logsumexp_reference(
    embeddings: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    ref_emb: Tensor | None = None,  # (M, D)
    ref_labels: Tensor | None = None,  # (M,)
    *,
    formula: PairFormula,
    normalize: bool = True,
) -> tuple[Tensor, Tensor]:  # (N,) each
    """Row log-sum-exps of both kinds of pair, computed in the embeddings' own dtype.

    Takes what :func:`circle_kernels.pair_logsumexp` takes and does not check it.
    """
    references = embeddings if ref_emb is None else ref_emb
    if ref_emb is not None and ref_labels is None:
        ref_labels = torch.arange(ref_emb.shape[0], device=ref_emb.device)
    similarity = similarity_matrix(embeddings, references, normalize=normalize)
    return masked_logsumexps(similarity, *pair_masks(labels, ref_labels), formula)


def masked_logsumexps(
    similarity: Tensor,  # (N, M)
    positive: Tensor,  # (N, M) bool
    negative: Tensor,  # (N, M) bool
    formula: PairFormula,
) -> tuple[Tensor, Tensor]:  # (N,) each
    """Row log-sum-exps of the pairs that the masks name."""
    positives, negatives = (
        similarities_of(similarity, mask, formula) for mask in (positive, negative)
    )
    return (
        masked_logsumexp(formula.positive_logits(positives), positive, dim=1),
        masked_logsumexp(formula.negative_logits(negatives), negative, dim=1),
    )


def similarities_of(similarity: Tensor, mask: Tensor, formula: PairFormula) -> Tensor:
    """The same numbers, constants to autograd where ``mask`` is false.

    A user's function may have an infinite slope there, as a distance has at 1, and that times the
    gradient 0 is NaN.
    """
    if not formula.is_of_functions:
        return similarity
    return torch.where(mask, similarity, similarity.detach())
