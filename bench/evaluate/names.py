"""Names in many languages and scripts, embedded by their characters, to time evaluation on."""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.places import ROOT
from bench.reporting.errors import UserError

_HASHED = 2**16


def embedded_names(rows: int, dim: int) -> tuple[Tensor, Tensor]:  # (N, D) unit rows, (N,) int64
    """Names drawn from those of all entities, as random projections of their counted n-grams.

    Raises:
        UserError: a package is missing, or there are not as many names.
    """
    try:
        from sklearn.feature_extraction.text import HashingVectorizer
        from sklearn.random_projection import GaussianRandomProjection

        names, labels = _names(rows)
    except ImportError as error:
        raise UserError(
            f"names need Babel and scikit-learn (pip install babel scikit-learn): {error}"
        ) from error
    if rows > len(names):
        raise UserError(f"there are {len(names):,} names, fewer than {rows:,}")
    counted = HashingVectorizer(
        analyzer="char_wb", ngram_range=(1, 3), n_features=_HASHED, alternate_sign=False
    ).transform(names)
    projected = GaussianRandomProjection(dim, random_state=0).fit_transform(counted)
    return F.normalize(torch.from_numpy(projected).float()), labels


def _names(most: int) -> tuple[list[str], Tensor]:
    examples = str(ROOT / "examples")
    if examples not in sys.path:
        sys.path.append(examples)
    from names.data import load_locales, name_set

    return name_set(load_locales()).many_names(most)
