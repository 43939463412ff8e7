"""Log-sum-exp over sets that may be empty."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def masked_logsumexp(logits: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Differentiable log-sum-exp over ``dim`` of the entries at which ``mask`` is true.

    An empty set gives ``-inf`` with gradient zero, where ``torch.logsumexp`` over entries filled
    with ``-inf`` would give the gradient NaN.
    """
    if logits.shape[dim] == 0:
        return logits.sum(dim) - math.inf
    # The smallest finite number as filler: an empty row then has finite intermediate results, and
    # beside any real logit it adds exactly 0.
    filled = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    return torch.logsumexp(filled, dim).masked_fill(~mask.any(dim), -math.inf)


def present_logsumexp(logits: Tensor, dim: int) -> Tensor:
    """:func:`masked_logsumexp` without the entries equal to ``-inf``; NaN counts as present."""
    return masked_logsumexp(logits, logits != -math.inf, dim)
