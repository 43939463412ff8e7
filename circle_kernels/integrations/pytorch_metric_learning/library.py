"""The library's losses that the drop-ins derive from; their types are in the stub beside it."""

from pytorch_metric_learning.losses import (
    ArcFaceLoss,
    BaseMetricLossFunction,
    CircleLoss,
    CosFaceLoss,
    MultiSimilarityLoss,
    NPairsLoss,
    NTXentLoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    SupConLoss,
)

__all__ = [
    "ArcFaceLoss",
    "BaseMetricLossFunction",
    "CircleLoss",
    "CosFaceLoss",
    "MultiSimilarityLoss",
    "NPairsLoss",
    "NTXentLoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "SupConLoss",
]
