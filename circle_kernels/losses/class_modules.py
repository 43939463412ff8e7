"""The losses with one learned vector per class as modules, with the predictions of all heads."""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import Tensor
from typing_extensions import Unpack

from circle_kernels.classes.arguments import checked_labels
from circle_kernels.classes.modules import ClassUnifiedLoss
from circle_kernels.classes.options import PlacedOptions, UnifiedOptions
from circle_kernels.losses.proxy_losses import Margin, arcface_loss, margin_function
from circle_kernels.options import real_number

_MARGIN, _SCALE = "it is called margin here", "it is called scale here"


class CosFaceLoss(ClassUnifiedLoss):
    """CosFace (Wang et al., CVPR 2018): :class:`circle_kernels.ClassUnifiedLoss` by another name;
    see :func:`circle_kernels.losses.cosface_loss`.

    Args:
        num_classes: C.
        embedding_dim: D.
        margin: between the similarity with the own class and others, any finite number.
        scale: of the logits, greater than 0.
        label_smoothing: share of the target that is spread over all classes, in [0, 1].
        reduction: ``"mean"``, ``"mean_all"``, ``"sum"`` or ``"none"``.
        ignore_index: rows with this label have loss 0; by default -100.
        normalize, skip_below, sample_rate, sample_correction, sparse_grad, backend, device,
            dtype: as for :class:`circle_kernels.ClassUnifiedLoss`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or range, also at the call.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        margin: float = 0.35,
        scale: float = 64.0,
        **options: Unpack[UnifiedOptions],
    ) -> None:
        _refuse(self, options, m=_MARGIN, gamma=_SCALE)
        super().__init__(num_classes, embedding_dim, margin, scale, **options)


class ProxyNCALoss(ClassUnifiedLoss):
    """ProxyNCA (Movshovitz-Attias et al., ICCV 2017), whose proxies are ``weight``; see
    :func:`circle_kernels.losses.proxy_nca_loss`.

    Args:
        num_classes: C.
        embedding_dim: D.
        scale: of squared distances, half of ``gamma``; greater than 0.
        label_smoothing: share of the target that is spread over all classes, in [0, 1].
        reduction: ``"mean"``, ``"mean_all"``, ``"sum"`` or ``"none"``.
        ignore_index: rows with this label have loss 0; by default -100.
        normalize, skip_below, sample_rate, sample_correction, sparse_grad, backend, device,
            dtype: as for :class:`circle_kernels.ClassUnifiedLoss`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or range, also at the call.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        scale: float = 1.0,
        **options: Unpack[UnifiedOptions],
    ) -> None:
        no_margin = "it has no margin"
        half = "it is twice the scale of squared distances here"
        _refuse(self, options, m=no_margin, margin=no_margin, gamma=half)
        gamma = 2 * real_number("scale", scale)
        super().__init__(num_classes, embedding_dim, 0.0, gamma, **options)


class ArcFaceLoss(ClassUnifiedLoss):
    """ArcFace (Deng et al., CVPR 2019), whose (C, D) parameter is ``weight``; see
    :func:`circle_kernels.losses.arcface_loss`.

    Args:
        num_classes: C.
        embedding_dim: D.
        margin: radians in [0, pi], or a function of the similarities (N,) with the own classes.
        scale: of the logits, greater than 0.
        reduction: ``"mean"``, ``"mean_all"``, ``"sum"`` or ``"none"``.
        ignore_index: rows with this label have loss 0; by default -100.
        skip_below, sample_rate, sample_correction, sparse_grad, backend, device, dtype: as for
            :class:`circle_kernels.ClassUnifiedLoss`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or range, also at the call.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        margin: Margin = 0.5,
        scale: float = 64.0,
        **options: Unpack[PlacedOptions],
    ) -> None:
        of_angles = "its margin is an angle's"
        _refuse(self, options, label_smoothing=of_angles, normalize=of_angles)
        _refuse(self, options, m=_MARGIN, gamma=_SCALE)
        margin_function(margin)
        gamma = real_number("scale", scale)
        super().__init__(num_classes, embedding_dim, 0.0, gamma, **options)
        self.margin: Margin = margin

    def forward(
        self,
        embeddings: Tensor,  # (N, D)
        labels: Tensor,  # (N,)
    ) -> Tensor:
        """The loss of a batch.

        Args:
            embeddings: (N, D), float16, bfloat16, float32 or float64; need not be normalised.
            labels: (N,) integers of any dtype in [0, C), or ``ignore_index``.

        Returns:
            A scalar, or (N,) with ``reduction="none"``; float32, or float64 for float64 input.

        Raises:
            TypeError, ValueError, RuntimeError: as :func:`circle_kernels.losses.arcface_loss`.
        """
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
        """The settings that are not the defaults, and the margin."""
        return f"{super().extra_repr()}, margin={self.margin!r}"


def _refuse(module: ClassUnifiedLoss, options: Container[str], **instead: str) -> None:
    """Name what the module takes in place of what it is made of."""
    for name, words in instead.items():
        if name in options:
            raise TypeError(f"{type(module).__name__}() takes no {name}: {words}")
