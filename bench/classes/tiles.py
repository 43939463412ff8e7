"""Which tiles ``skip_below`` leaves: the share that holds a pair worth keeping."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from bench.classes.heads import HeadCase, M
from circle_kernels import CircleFormula
from circle_kernels.reference import similarity_matrix

GAMMAS = (64.0, 256.0)
THRESHOLDS = (2.0**-24, 2.0**-12, 2.0**-8, 2.0**-6)  # skip_below
SHAPES = ((128, 128), (96, 96), (32, 32), (96, 1), (1, 96))  # rows and classes of a tile
_STRIP = 128 * 96  # classes at a time: whole tiles of every shape


@torch.no_grad()
def surviving_shares(case: HeadCase) -> Iterator[dict[str, Any]]:
    """One row for each gamma, threshold and shape of tile.

    Rows are in the order of their labels, as the kernels take them. A pair is worth keeping if it
    has more than ``skip_below / C`` of its row's weight.
    """
    embeddings, labels, weight = case.data()
    embeddings = embeddings[labels.argsort()]
    strips = weight.split(_STRIP)
    labels = labels.sort().values
    for gamma in GAMMAS:
        formula = CircleFormula(m=M, gamma=gamma)
        total = torch.full((case.rows,), -torch.inf)
        shares = []
        for strip, first in zip(strips, range(0, case.classes, _STRIP), strict=True):
            logits = formula.negative_logits(similarity_matrix(embeddings, strip))
            own = labels[:, None] == torch.arange(first, first + len(strip))
            # A positive's weight is all of its kind: it is always kept, and adds no negative.
            negative = logits.masked_fill(own, -torch.inf)
            total = torch.logaddexp(total, negative.logsumexp(1))
            shares.append(logits.masked_fill_(own, torch.inf))
        for threshold in THRESHOLDS:
            lowest = total + torch.tensor(threshold / case.classes).log()
            for rows, columns in SHAPES:
                alive = tiles = 0
                for logits in shares:
                    above = (logits - lowest[:, None])[None]
                    highest = _tile_maxima(above, rows, columns)
                    alive += int((highest > 0).sum())
                    tiles += highest.numel()
                yield {
                    "gamma": gamma,
                    "skip_below": threshold,
                    "tile": f"{rows}x{columns}",
                    "share": alive / tiles,
                }


def _tile_maxima(values: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The largest value of every tile of (1, N, K) values; tiles at the border are smaller."""
    return F.max_pool2d(values, (rows, columns), ceil_mode=True)
