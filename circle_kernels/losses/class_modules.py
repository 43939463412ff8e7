"""The losses with one learned vector per class as modules, with the predictions of all heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from circle_kernels.classes.losses import checked_labels
from circle_kernels.classes.modules import ClassUnifiedLoss
from circle_kernels.losses.proxy_losses import Margin, arcface_loss, margin_function
from circle_kernels.options import real_number


class CosFaceLoss(ClassUnifiedLoss):
    """See :func:`cosface_loss`: :class:`circle_kernels.ClassUnifiedLoss` by another name.

    Args:
        num_classes: C.
        embedding_dim: D.
        margin, scale: its ``m`` and ``gamma``.
        options: those of :class:`circle_kernels.ClassUnifiedLoss`.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        margin: float = 0.35,
        scale: float = 64.0,
        **options: Any,
    ) -> None:
        super().__init__(num_classes, embedding_dim, margin, scale, **options)


class ProxyNCALoss(ClassUnifiedLoss):
    """See :func:`proxy_nca_loss`; ``weight`` are the proxies.

    Args:
        num_classes: C.
        embedding_dim: D.
        scale: of squared distances, half of ``gamma``.
        options: those of :class:`circle_kernels.ClassUnifiedLoss`.
    """

    def __init__(
        self, num_classes: int, embedding_dim: int, scale: float = 1.0, **options: Any
    ) -> None:
        gamma = 2 * real_number("scale", scale)
        super().__init__(num_classes, embedding_dim, 0.0, gamma, **options)


class ArcFaceLoss(ClassUnifiedLoss):
    """See :func:`arcface_loss`; ``weight`` is its (C, D) parameter.

    Args:
        num_classes: C.
        embedding_dim: D.
        margin: radians, or a function of the similarities with the own classes.
        scale: of the logits.
        options: those of :class:`circle_kernels.ClassUnifiedLoss` but ``label_smoothing`` and
            ``normalize``.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        margin: Margin = 0.5,
        scale: float = 64.0,
        **options: Any,
    ) -> None:
        for name in ("label_smoothing", "normalize"):
            if name in options:
                raise TypeError(f"ArcFaceLoss() takes no {name}: its margin is an angle's")
        margin_function(margin)
        gamma = real_number("scale", scale)
        super().__init__(num_classes, embedding_dim, 0.0, gamma, **options)
        self.margin = margin

    def forward(
        self,
        embeddings: Tensor,  # (N, D)
        labels: Tensor,  # (N,)
    ) -> Tensor:
        options = self._options()
        for name in ("m", "gamma", "normalize"):
            del options[name]
        return arcface_loss(
            embeddings, labels, self.weight, margin=self.margin, scale=self._scale(), **options
        )

    def get_logits(
        self,
        embeddings: Tensor,  # (N, D)
        labels: Tensor | None = None,  # (N,)
    ) -> Tensor:  # (N, C)
        """The whole matrix of logits, with labels those whose cross-entropy is the loss."""
        logits = super().get_logits(embeddings)
        if labels is None:
            return logits
        labels, _ = checked_labels(labels, embeddings, self.num_classes, self.ignore_index)
        classes = torch.arange(self.num_classes, device=labels.device)
        with_margin = margin_function(self.margin)(logits / self.gamma) * self.gamma
        return torch.where(labels[:, None] == classes, with_margin, logits)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, margin={self.margin!r}"
