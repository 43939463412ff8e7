# The library has no types: what its constructors take, as of 2.8 and 2.9.

from collections.abc import Callable
from typing import Any, TypedDict

from torch import Tensor, nn
from typing_extensions import Unpack

class Options(TypedDict, total=False):
    collect_stats: bool | None
    distance: nn.Module | None
    reducer: nn.Module | None
    embedding_regularizer: nn.Module | None
    embedding_reg_weight: float

class WeightOptions(Options, total=False):
    weight_init_func: Callable[[Tensor], object] | None
    weight_regularizer: nn.Module | None
    weight_reg_weight: float

class BaseMetricLossFunction(nn.Module):
    def __init__(self, **kwargs: Unpack[Options]) -> None: ...
    def forward(
        self,
        embeddings: Tensor,  # (N, D)
        labels: Tensor | None = None,  # (N,)
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,  # (M, D)
        ref_labels: Tensor | None = None,  # (M,)
    ) -> Tensor: ...
    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: tuple[Tensor, ...] | None,
        ref_emb: Tensor,
        ref_labels: Tensor,
    ) -> dict[str, dict[str, Any]]: ...
    def __getattr__(self, name: str) -> Any: ...

class CircleLoss(BaseMetricLossFunction):
    def __init__(
        self, m: float = 0.4, gamma: float | Tensor = 80, **kwargs: Unpack[Options]
    ) -> None: ...

class MultiSimilarityLoss(BaseMetricLossFunction):
    def __init__(
        self, alpha: float = 2, beta: float = 50, base: float = 0.5, **kwargs: Unpack[Options]
    ) -> None: ...

class NPairsLoss(BaseMetricLossFunction): ...

class NTXentLoss(BaseMetricLossFunction):
    def __init__(self, temperature: float = 0.07, **kwargs: Unpack[Options]) -> None: ...

class SupConLoss(BaseMetricLossFunction):
    def __init__(self, temperature: float = 0.1, **kwargs: Unpack[Options]) -> None: ...

class ArcFaceLoss(BaseMetricLossFunction):
    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = 28.6,
        scale: float = 64,
        **kwargs: Unpack[WeightOptions],
    ) -> None: ...

class CosFaceLoss(BaseMetricLossFunction):
    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        margin: float = 0.35,
        scale: float = 64,
        **kwargs: Unpack[WeightOptions],
    ) -> None: ...

class ProxyAnchorLoss(BaseMetricLossFunction):
    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = 0.1,
        alpha: float = 32,
        **kwargs: Unpack[WeightOptions],
    ) -> None: ...

class ProxyNCALoss(BaseMetricLossFunction):
    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        softmax_scale: float = 1,
        **kwargs: Unpack[WeightOptions],
    ) -> None: ...
