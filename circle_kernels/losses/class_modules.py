"""The losses with one learned vector per class as modules, with the predictions of all heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from circle_kernels.classes.losses import checked_labels
from circle_kernels.classes.modules import ClassUnifiedLoss
from circle_kernels.losses.proxy_losses import Margin, arcface_loss, margin_function
from circle_kernels.options import real_number

_MARGIN, _SCALE = "it is called margin here", "it is called scale here"


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
        _refuse(self, options, m=_MARGIN, gamma=_SCALE)
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
        no_margin = "it has no margin"
        half = "it is twice the scale of squared distances here"
        _refuse(self, options, m=no_margin, margin=no_margin, gamma=half)
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
        of_angles = "its margin is an angle's"
        _refuse(self, options, label_smoothing=of_angles, normalize=of_angles)
        _refuse(self, options, m=_MARGIN, gamma=_SCALE)
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
        is_own = labels[:, None] == classes
        # A margin may know of each row, so that it gets (N,), as in the loss.
        similarity = logits.masked_fill(~is_own, 0.0).sum(1) / self.gamma
        with_margin = margin_function(self.margin)(similarity) * self.gamma
        return torch.where(is_own, with_margin[:, None], logits)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, margin={self.margin!r}"


def _refuse(module: ClassUnifiedLoss, options: dict[str, Any], **instead: str) -> None:
    """Name what the module takes in place of what it is made of."""
    for name, words in instead.items():
        if name in options:
            raise TypeError(f"{type(module).__name__}() takes no {name}: {words}")
