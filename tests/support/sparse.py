"""Sparse gradients, as embeddings and class weights have them."""

from __future__ import annotations

import torch
from torch import Tensor


def sparse(rows: list[int], values: Tensor, size: torch.Size) -> Tensor:
    """Values for some rows, which may be listed in any order and more than once."""
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, size, check_invariants=True)
