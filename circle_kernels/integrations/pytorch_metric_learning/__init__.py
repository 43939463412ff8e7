"""pytorch-metric-learning's CircleLoss on the fused kernels: change the import, keep the rest.

    from circle_kernels.integrations.pytorch_metric_learning import CircleLoss

Miners, reducers, regularizers, ``CrossBatchMemory``, ``SelfSupervisedLoss``,
``DistributedLossWrapper`` and trainers of that library take it as they take their own.
"""

from __future__ import annotations

try:
    import pytorch_metric_learning  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "pytorch_metric_learning":
        raise
    raise ImportError(
        "circle_kernels.integrations.pytorch_metric_learning needs that library: "
        "pip install 'pytorch-metric-learning>=2.8'",
        name=error.name,
    ) from error

from circle_kernels.integrations.pytorch_metric_learning.circle import CircleLoss

__all__ = ["CircleLoss"]
