"""The two kinds of embeddings that are timed, the same for a given seed on every device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PER_CLASS = 4
COSINE_TO_CENTRE = 0.8
COSINE_BETWEEN_CONFUSABLE_CENTRES = 0.5


def random_data(rows: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Standard normal embeddings (rows, dim), four per class: the first step of a training."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, dim, generator=generator), torch.arange(rows) // PER_CLASS


def trained_data(rows: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit embeddings (rows, dim) as a trained network gives them.

    Four per class, each at cosine 0.8 to its class centre. Classes come in confusable pairs whose
    centres lie at cosine 0.5 (where their number is odd, one has no partner); all other centres
    are random. A class's rows stand together, as samplers deal them; the classes are in random
    order, so confusable classes are not neighbours.
    """
    generator = torch.Generator().manual_seed(seed)
    classes = -(-rows // PER_CLASS)
    centres = confusable_centres(classes, dim, generator)
    order = torch.randperm(classes, generator=generator)
    labels = order.repeat_interleave(PER_CLASS)[:rows]
    return at_cosine(centres[labels], COSINE_TO_CENTRE, generator), labels


def confusable_centres(classes: int, dim: int, generator: torch.Generator) -> Tensor:
    """Unit vectors (classes, dim), of which 2k and 2k + 1 are confusable and others random."""
    centres = F.normalize(torch.randn(-(-classes // 2), dim, generator=generator), dim=1)
    partners = at_cosine(centres, COSINE_BETWEEN_CONFUSABLE_CENTRES, generator)
    return torch.stack([centres, partners], dim=1).flatten(0, 1)[:classes]


def at_cosine(vectors: Tensor, cosine: float, generator: torch.Generator) -> Tensor:
    """For each unit vector (rows, dim) a random unit vector at the given cosine to it."""
    noise = torch.randn(vectors.shape, generator=generator)
    noise -= (noise * vectors).sum(1, keepdim=True) * vectors
    return cosine * vectors + (1 - cosine**2) ** 0.5 * F.normalize(noise, dim=1)


REGIMES: dict[str, Callable[[int, int, int], tuple[Tensor, Tensor]]] = {
    "random": random_data,
    "trained": trained_data,
}


def describe_data() -> dict[str, Any]:
    """The numbers behind both regimes, for a results file."""
    return {
        "per_class": PER_CLASS,
        "trained": {
            "cosine_to_centre": COSINE_TO_CENTRE,
            "cosine_between_confusable_centres": COSINE_BETWEEN_CONFUSABLE_CENTRES,
        },
    }


def make_data(
    regime: str,
    rows: int,
    dim: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> tuple[Tensor, Tensor]:  # (rows, dim), (rows,) int64
    """Embeddings that require a gradient, and their labels.

    Drawn on the CPU in float32 and then moved, so a seed means the same numbers everywhere.
    """
    embeddings, labels = REGIMES[regime](rows, dim, seed)
    return embeddings.to(device, dtype).requires_grad_(), labels.to(device)
