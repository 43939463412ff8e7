"""Pair losses and losses with class weights, as functions and as modules, on the fused operation.

Names and numbers are those of pytorch-metric-learning; :func:`circle_kernels.circle_loss` and
:func:`circle_kernels.unified_loss` are the front door.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from circle_kernels._later import load_later

if TYPE_CHECKING:
    from circle_kernels.losses.class_modules import ArcFaceLoss, CosFaceLoss, ProxyNCALoss
    from circle_kernels.losses.clip import clip_loss
    from circle_kernels.losses.learned_modules import CLIPLoss, ProxyAnchorLoss
    from circle_kernels.losses.pair_losses import (
        multi_similarity_loss,
        n_pairs_loss,
        ntxent_loss,
        supcon_loss,
    )
    from circle_kernels.losses.pair_modules import (
        MultiSimilarityLoss,
        NPairsLoss,
        NTXentLoss,
        SupConLoss,
    )
    from circle_kernels.losses.proxy_losses import (
        arcface_loss,
        cosface_loss,
        proxy_anchor_loss,
        proxy_nca_loss,
    )
else:
    # Who computes circle loss needs none of them.
    __getattr__ = load_later(
        __name__,
        {
            "class_modules": ("ArcFaceLoss", "CosFaceLoss", "ProxyNCALoss"),
            "clip": ("clip_loss",),
            "pair_losses": ("multi_similarity_loss", "n_pairs_loss", "ntxent_loss", "supcon_loss"),
            "learned_modules": ("CLIPLoss", "ProxyAnchorLoss"),
            "pair_modules": ("MultiSimilarityLoss", "NPairsLoss", "NTXentLoss", "SupConLoss"),
            "proxy_losses": ("arcface_loss", "cosface_loss", "proxy_anchor_loss", "proxy_nca_loss"),
        },
    )

__all__ = [
    "ArcFaceLoss",
    "CLIPLoss",
    "CosFaceLoss",
    "MultiSimilarityLoss",
    "NPairsLoss",
    "NTXentLoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "SupConLoss",
    "arcface_loss",
    "clip_loss",
    "cosface_loss",
    "multi_similarity_loss",
    "n_pairs_loss",
    "ntxent_loss",
    "proxy_anchor_loss",
    "proxy_nca_loss",
    "supcon_loss",
]


def __dir__() -> list[str]:
    return sorted(__all__)
