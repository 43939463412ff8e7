"""Kinds of data: embeddings and labels as training meets them, and as no training should."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

INT64 = torch.iinfo(torch.int64)


def _random(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return (
        torch.randn(n, d, generator=generator, dtype=torch.float64),
        torch.randint(0, max(1, n // 4), (n,), generator=generator),
    )


def _clusters(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tight and well separated, the state that training aims at."""
    _, labels = _random(n, d, generator)
    centres = torch.randn(max(1, n // 4), d, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return centres[labels] + 0.05 * noise, labels


def _collapsed(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    embeddings, labels = _random(n, d, generator)
    return embeddings[:1].expand(n, d).clone(), labels


def _duplicates_and_antipodes(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Similarities of exactly 1 and -1, within and across classes."""
    embeddings, labels = _random(n, d, generator)
    embeddings[n // 3 : 2 * (n // 3)] = embeddings[: n // 3]
    embeddings[2 * (n // 3) : 3 * (n // 3)] = -embeddings[: n // 3]
    return embeddings, labels


def _one_class(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return _random(n, d, generator)[0], torch.full((n,), 7)


def _distinct_classes(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return _random(n, d, generator)[0], torch.randperm(n, generator=generator)


def _mixed_empty_rows(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Some classes with one member only."""
    embeddings, labels = _random(n, d, generator)
    labels[::3] = 1000 + torch.arange(len(labels[::3]))
    return embeddings, labels


def _sorted_labels(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    embeddings, labels = _random(n, d, generator)
    return embeddings, labels.sort().values


def _extreme_labels(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The ends of int64, and labels that are equal in their lower 32 bits."""
    embeddings, labels = _random(n, d, generator)
    values = torch.tensor([INT64.min, INT64.max, 0, -1, 2**32, -(2**32), INT64.min + 1])
    return embeddings, values[labels % len(values)]


def _unlike_norms(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Norms from 1e-3 to 1e3, as an unnormalised last layer gives."""
    embeddings, labels = _random(n, d, generator)
    return embeddings * torch.logspace(-3, 3, n, dtype=torch.float64)[:, None], labels


def _non_negative(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Features behind a ReLU: every similarity is a sum of terms of one sign."""
    embeddings, labels = _random(n, d, generator)
    return embeddings.relu(), labels


def _one_direction(
    noise: float, n: int, d: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One vector and a little noise: what a network's last layer gives before it is trained.

    Gradients are what little is left of long sums after their part along the vector is taken away.
    """
    embeddings, labels = _random(n, d, generator)
    return embeddings[:1] + noise * embeddings.roll(1, 0), labels


Regime = Callable[[int, int, torch.Generator], tuple[Tensor, Tensor]]

REGIMES: dict[str, Regime] = {
    regime.__name__.removeprefix("_"): regime
    for regime in (
        _random,
        _clusters,
        _collapsed,
        _duplicates_and_antipodes,
        _one_class,
        _distinct_classes,
        _mixed_empty_rows,
        _sorted_labels,
        _extreme_labels,
        _unlike_norms,
        _non_negative,
    )
}
REGIMES |= {
    f"one_direction_{noise:g}": functools.partial(_one_direction, noise)
    for noise in (3e-2, 1e-2, 1e-4, 1e-5)
}
