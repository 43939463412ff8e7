"""What blocks of a shared batch have in the sums over all of them."""

from __future__ import annotations

import math

import torch

from circle_kernels.operation.shared.band import _shares


def test_shares_of_blocks_add_up_and_those_of_empty_ones_are_0() -> None:
    nothing = -math.inf
    parts = torch.tensor([[1.0, nothing, nothing], [2.0, 3.0, nothing]])
    shares = _shares(parts, torch.logsumexp(parts, 0).expand(2, 3))
    torch.testing.assert_close(shares.sum(0), torch.tensor([1.0, 1.0, 0.0]))
    assert shares[0, 1] == 0
    assert shares.isfinite().all()
