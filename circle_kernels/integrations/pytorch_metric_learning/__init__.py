"""pytorch-metric-learning's losses on the fused kernels: change the import, keep the rest.

    from circle_kernels.integrations.pytorch_metric_learning import CircleLoss, SupConLoss

Miners, reducers, regularizers, ``CrossBatchMemory``, ``SelfSupervisedLoss``,
``DistributedLossWrapper`` and trainers of that library take them as they take their own.
"""

from __future__ import annotations

try:
    import pytorch_metric_learning  # noqa: F401
except ModuleNotFoundError as _error:
    if _error.name != "pytorch_metric_learning":
        raise
    raise ImportError(
        "circle_kernels.integrations.pytorch_metric_learning needs that library: "
        "pip install 'pytorch-metric-learning>=2.8'",
        name=_error.name,
    ) from _error

from circle_kernels.integrations.pytorch_metric_learning.circle import CircleLoss
from circle_kernels.integrations.pytorch_metric_learning.pair_losses import (
    MultiSimilarityLoss,
    NPairsLoss,
    NTXentLoss,
    SupConLoss,
)
from circle_kernels.integrations.pytorch_metric_learning.proxy_losses import (
    ArcFaceLoss,
    CosFaceLoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
)

__all__ = [
    "ArcFaceLoss",
    "CircleLoss",
    "CosFaceLoss",
    "MultiSimilarityLoss",
    "NPairsLoss",
    "NTXentLoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "SupConLoss",
]
