"""What the widely copied single-file implementation computes, written out from its formula.

It takes normalised features, lists the similarities of all pairs i < j, and has one softplus over
all of them. Its users call it in two steps; ours is ``scope="batch"``, or the second step alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def similarities(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of positive and of negative pairs, each unordered pair once."""
    directions = F.normalize(embeddings)
    cosines = directions @ directions.T
    same = labels[:, None] == labels[None, :]
    once = torch.ones_like(same).triu(1)
    return cosines[same & once], cosines[~same & once]


def expected_loss(sp: Tensor, sn: Tensor, m: float, gamma: float) -> Tensor:
    alpha_p = (1 + m - sp.detach()).clamp_min(0)
    alpha_n = (sn.detach() + m).clamp_min(0)
    logits_p = -gamma * alpha_p * (sp - (1 - m))
    logits_n = gamma * alpha_n * (sn - m)
    return F.softplus(torch.logsumexp(logits_n, 0) + torch.logsumexp(logits_p, 0))
