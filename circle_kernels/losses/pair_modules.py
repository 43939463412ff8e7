"""The pair losses of other papers as modules: their numbers and options."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from circle_kernels.distributed.groups import Group
from circle_kernels.losses.function_loss import FunctionLoss
from circle_kernels.losses.pair_losses import (
    multi_similarity_loss,
    n_pairs_loss,
    ntxent_loss,
    supcon_loss,
)
from circle_kernels.losses.pairs import LabelOptions, SharedOptions
from circle_kernels.options import BackendName, Reduction


class MultiSimilarityLoss(FunctionLoss):
    """Multi-similarity loss (Wang et al., CVPR 2019); see
    :func:`circle_kernels.losses.multi_similarity_loss`.

    Args:
        alpha, beta: scales of positives and of negatives, greater than 0.
        base: the similarity that positives should be above and negatives below.
        reduction: ``"mean"`` over all rows, ``"mean_all"``, ``"sum"`` or ``"none"``.
        normalize: ``False`` takes inner products instead of cosines.
        skip_below: share of a row's weight that its gradient may leave out; 0 is exact.
        ignore_label: rows and references with this label take part in nothing.
        group: the processes that share one batch, all with ``"world"``; ``None`` for this process
            alone.
        exchange, same_sizes, grad_reduction: how they share it; see
            :func:`circle_kernels.circle_loss`.
        backend: see :func:`circle_kernels.available_backends`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or range, also at the call.
    """

    alpha: float
    beta: float
    base: float
    _function = staticmethod(multi_similarity_loss)

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 0.5,
        *,
        reduction: Reduction = "mean",
        **options: Unpack[LabelOptions],
    ) -> None:
        super().__init__({"alpha": alpha, "beta": beta, "base": base}, reduction, options)


class SupConLoss(FunctionLoss):
    """Supervised contrastive loss (Khosla et al., NeurIPS 2020); see
    :func:`circle_kernels.losses.supcon_loss`.

    Args:
        temperature: what similarities are divided by, greater than 0.
        reduction: ``"mean"`` over rows that count, ``"mean_all"``, ``"sum"`` or ``"none"``.
        normalize: ``False`` takes inner products instead of cosines.
        skip_below: share of a row's weight that its gradient may leave out; 0 is exact.
        ignore_label: rows and references with this label take part in nothing.
        group: the processes that share one batch, all with ``"world"``; ``None`` for this process
            alone.
        exchange, same_sizes, grad_reduction: how they share it; see
            :func:`circle_kernels.circle_loss`.
        backend: see :func:`circle_kernels.available_backends`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or range, also at the call.
    """

    temperature: float
    _function = staticmethod(supcon_loss)

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        reduction: Reduction = "mean",
        **options: Unpack[LabelOptions],
    ) -> None:
        super().__init__({"temperature": temperature}, reduction, options)


class NTXentLoss(FunctionLoss):
    """NT-Xent or InfoNCE (Chen et al., ICML 2020); see
    :func:`circle_kernels.losses.ntxent_loss`.

    Args:
        temperature: what similarities are divided by, greater than 0.
        reduction: ``"mean"`` over positive pairs, ``"mean_all"`` over rows, ``"sum"`` or
            ``"none"``.
        normalize: ``False`` takes inner products instead of cosines.
        skip_below: share of a row's weight that its gradient may leave out; 0 is exact.
        ignore_label: rows and references with this label take part in nothing.
        group: the processes that share one batch, all with ``"world"``; ``None`` for this process
            alone.
        exchange, same_sizes, grad_reduction: how they share it; see
            :func:`circle_kernels.circle_loss`.
        backend: see :func:`circle_kernels.available_backends`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or range, also at the call.
    """

    temperature: float
    _function = staticmethod(ntxent_loss)

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        reduction: Reduction = "mean",
        **options: Unpack[LabelOptions],
    ) -> None:
        super().__init__({"temperature": temperature}, reduction, options)


class NPairsLoss(FunctionLoss):
    """N-pairs loss (Sohn, NIPS 2016); see :func:`circle_kernels.losses.n_pairs_loss`.

    Args:
        normalize: ``False`` takes inner products, as the paper does, instead of cosines.
        reduction: ``"mean"`` or ``"mean_all"`` over classes with two rows, ``"sum"`` or ``"none"``.
        skip_below: share of a row's weight that its gradient may leave out; 0 is exact.
        backend: see :func:`circle_kernels.available_backends`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or range, also at the call.
    """

    _function = staticmethod(n_pairs_loss)
    group: Group | None = None

    def __init__(
        self,
        *,
        normalize: bool = True,
        reduction: Reduction = "mean",
        skip_below: float = 0.0,
        backend: BackendName = "auto",
    ) -> None:
        options = SharedOptions(normalize=normalize, skip_below=skip_below, backend=backend)
        super().__init__({}, reduction, options)

    def _defaults(self) -> dict[str, Any]:
        return {}

    def forward(  # type: ignore[override]
        self,
        embeddings: Tensor,  # (N, D)
        labels: Tensor,  # (N,)
    ) -> Tensor:
        """The loss of a batch.

        Args:
            embeddings: (N, D), float16, bfloat16, float32 or float64.
            labels: (N,) integers of any dtype.

        Returns:
            A scalar, or with ``reduction="none"`` one loss for each class that has two rows.

        Raises:
            TypeError, ValueError, RuntimeError: as :func:`circle_kernels.circle_loss`.
        """
        return self._call(embeddings, labels, **self._settings())
