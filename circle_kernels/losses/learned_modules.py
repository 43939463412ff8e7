"""The pair losses as modules that learn something of their own: proxies, or a scale."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from circle_kernels.losses.clip import clip_loss
from circle_kernels.losses.function_loss import DEFAULTS, FunctionLoss
from circle_kernels.losses.pairs import LabelOptions, SharedOptions
from circle_kernels.losses.proxy_losses import proxy_anchor_loss
from circle_kernels.operation.chosen_pairs import OF_PAIRS
from circle_kernels.options import ProxyReduction, Reduction, check_integer, positive_number


class ProxyAnchorLoss(FunctionLoss):
    """Proxy-anchor loss (Kim et al., CVPR 2020) with its ``proxies``, a (C, D) parameter; see
    :func:`circle_kernels.losses.proxy_anchor_loss`.

    Args:
        num_classes: C.
        embedding_dim: D.
        margin: what similarities of a proxy's class should be above, and others' below its
            negative.
        alpha: scale, greater than 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        device, dtype: of ``proxies``.
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

    margin: float
    alpha: float
    num_classes: int
    embedding_dim: int
    proxies: nn.Parameter  # (C, D)
    _function = staticmethod(proxy_anchor_loss)

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        margin: float = 0.1,
        alpha: float = 32.0,
        *,
        reduction: ProxyReduction = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[LabelOptions],
    ) -> None:
        super().__init__({"margin": margin, "alpha": alpha}, reduction, options)
        self.num_classes = check_integer("num_classes", num_classes, smallest=1)
        self.embedding_dim = check_integer("embedding_dim", embedding_dim, smallest=1)
        self.proxies = nn.Parameter(
            torch.empty(self.num_classes, self.embedding_dim, device=device, dtype=dtype)
        )
        self.reset_parameters()

    def extra_repr(self) -> str:
        """The sizes, and what all losses show."""
        return f"{self.num_classes}, {self.embedding_dim}, {super().extra_repr()}"

    def reset_parameters(self) -> None:
        """Draw the proxies anew, as the paper's code does."""
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")

    def _try(self, **settings: Any) -> None:
        labels = torch.empty(0, dtype=torch.int64)
        self._call(torch.empty(0, 1), labels, torch.empty(1, 1), **settings)

    def forward(  # type: ignore[override]
        self,
        embeddings: Tensor,  # (N, D)
        labels: Tensor,  # (N,)
    ) -> Tensor:
        """The loss of a batch.

        Args:
            embeddings: (N, D), float16, bfloat16, float32 or float64; need not be normalised.
            labels: (N,) integers of any dtype in [0, C), or ``ignore_label``.

        Returns:
            A scalar, or (C,) with ``reduction="none"``.

        Raises:
            TypeError, ValueError, RuntimeError: as the function.
        """
        return self._call(embeddings, labels, self.proxies, **self._settings())


class CLIPLoss(FunctionLoss):
    """The loss of CLIP (Radford et al., ICML 2021) with the scale that it learns; see
    :func:`circle_kernels.losses.clip_loss`.

    Args:
        logit_scale: the scale at first; by default CLIP's, 1 / 0.07.
        learned: whether it is a parameter, ``log_scale`` (its logarithm, as CLIP learns it), or
            stays.
        largest: what the scale is at most, as CLIP has it for stability.
        reduction: ``"mean"``, ``"mean_all"``, ``"sum"`` or ``"none"``.
        normalize: ``False`` takes inner products instead of cosines.
        skip_below: share of a row's weight that its gradient may leave out; 0 is exact.
        group: the processes that share one batch, all with ``"world"``; ``None`` for this process
            alone.
        exchange, same_sizes, grad_reduction: how they share it; see
            :func:`circle_kernels.circle_loss`.
        backend: see :func:`circle_kernels.available_backends`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or range, also at the call.
    """

    largest: float
    log_scale: Tensor  # ()
    _function = staticmethod(clip_loss)

    def __init__(
        self,
        logit_scale: float = 1 / 0.07,
        *,
        learned: bool = True,
        largest: float = 100.0,
        reduction: Reduction = "mean",
        **options: Unpack[SharedOptions],
    ) -> None:
        super().__init__({}, reduction, options)
        logarithm = torch.tensor(math.log(positive_number("logit_scale", logit_scale)))
        self.largest = positive_number("largest", largest)
        if learned:
            self.log_scale = nn.Parameter(logarithm)
        else:
            self.register_buffer("log_scale", logarithm)

    def _defaults(self) -> dict[str, Any]:
        return {name: value for name, value in DEFAULTS.items() if name not in OF_PAIRS}

    def _try(self, **settings: Any) -> None:
        self._call(torch.empty(0, 1), torch.empty(0, 1), 1.0, **settings)

    def extra_repr(self) -> str:
        """The scale as it is now, and what all losses show."""
        learned = " (learned)" if isinstance(self.log_scale, nn.Parameter) else ""
        scale = self.logit_scale.detach()
        return f"logit_scale={scale!r}{learned}, largest={self.largest}, {super().extra_repr()}"

    @property
    def logit_scale(self) -> Tensor:
        """The scale, a tensor with one number, at most ``largest``."""
        return self.log_scale.exp().clamp_max(self.largest)

    def forward(  # type: ignore[override]
        self,
        image_emb: Tensor,  # (N, D)
        text_emb: Tensor,  # (N, D)
    ) -> Tensor:
        """The loss of a batch.

        Args:
            image_emb, text_emb: (N, D) each, row i of both belonging together; float16, bfloat16,
                float32 or float64; need not be normalised.

        Returns:
            A scalar, or (N,) with ``reduction="none"``.

        Raises:
            TypeError, ValueError, RuntimeError: as the function.
        """
        return self._call(image_emb, text_emb, self.logit_scale, **self._settings())
