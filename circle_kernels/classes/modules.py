"""The class losses as modules whose weight is in each process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from circle_kernels.classes.heads import INITIAL_STD, CircleHead, ClassHead, UnifiedHead
from circle_kernels.classes.losses import class_circle_loss, class_unified_loss
from circle_kernels.distributed.gradients import refuse_ddp
from circle_kernels.options import check_flag, explain_other_names

if TYPE_CHECKING:
    from circle_kernels.classes.options import HeadOptions


class _ClassLoss(ClassHead):
    """What both class losses share whose weight is in each process."""

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        m: float,
        gamma: float | Tensor,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__(num_classes, embedding_dim, m, gamma, **options)
        self.weight: nn.Parameter = nn.Parameter(
            torch.empty(self.num_classes, self.embedding_dim, device=device, dtype=dtype)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight anew from a normal distribution."""
        nn.init.normal_(self.weight, std=INITIAL_STD)

    def _options(self) -> dict[str, Any]:
        """What both losses take by name. In evaluation mode nothing is sampled."""
        sparse_grad = self.sparse_grad and self.training
        if sparse_grad and not torch.compiler.is_compiling():
            refuse_ddp(self.weight)
        return {
            "m": self.m,
            "gamma": self.gamma,
            "reduction": self.reduction,
            "ignore_index": self.ignore_index,
            "normalize": self.normalize,
            "skip_below": self.skip_below,
            "sample_rate": self.sample_rate if self.training else 1.0,
            "sample_correction": self.sample_correction,
            "sparse_grad": sparse_grad,
            "backend": self.backend,
        }


class ClassCircleLoss(CircleHead, _ClassLoss):
    """Circle loss with class labels; see :func:`circle_kernels.class_circle_loss`.

    Args:
        num_classes: C.
        embedding_dim: D.
        m: relaxation margin, greater than -1 and less than 1.
        gamma: scale of the logits, greater than 0; a tensor with one number, as an
            ``nn.Parameter``, gets its gradient. Both are by default the paper's for face
            recognition.
        detach_weights: treat the weights ``[.]_+`` as constants in the gradient.
        reduction: ``"mean"``, ``"mean_all"``, ``"sum"`` or ``"none"``.
        ignore_index: rows with this label have loss 0; by default -100.
        normalize: ``False`` takes inner products instead of cosines.
        skip_below: share of a row's weight that its gradient may leave out; 0 is exact.
        sample_rate: share of the classes to compare with. In evaluation mode nothing is sampled.
        sample_correction: make up for the classes that are left out.
        sparse_grad: whether the gradient of ``weight`` is sparse.
        backend: see :func:`circle_kernels.available_backends`.
        device, dtype: of ``weight``, the (C, D) parameter.

    Over several processes: inside of DistributedDataParallel it synchronises the weight; a head
    beside a wrapped network, and one with ``sparse_grad=True``, needs
    :func:`circle_kernels.average_gradients`. :class:`circle_kernels.ShardedClassCircleLoss` spreads
    the classes over processes.

    Raises:
        TypeError, ValueError: an argument of the wrong type or range, also at the call.

    Example:
        >>> head = ClassCircleLoss(num_classes=85_000, embedding_dim=512)
        >>> head(embeddings, labels).backward()
    """

    @explain_other_names
    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        m: float = 0.25,
        gamma: float | Tensor = 256.0,
        *,
        detach_weights: bool = True,
        **options: Unpack[HeadOptions],
    ) -> None:
        super().__init__(num_classes, embedding_dim, m, gamma, **options)
        self.detach_weights: bool = check_flag("detach_weights", detach_weights)

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
            TypeError, ValueError, RuntimeError: as :func:`circle_kernels.class_circle_loss`.
        """
        return class_circle_loss(
            embeddings,
            labels,
            self.weight,
            detach_weights=self.detach_weights,
            **self._options(),
        )


class ClassUnifiedLoss(UnifiedHead, _ClassLoss):
    """AM-Softmax, with ``m=0`` NormFace; see :func:`circle_kernels.class_unified_loss`.

    Args:
        num_classes: C.
        embedding_dim: D.
        m: margin, any finite number.
        gamma: scale of the logits, greater than 0; a tensor with one number, as an
            ``nn.Parameter``, gets its gradient. Both are by default those of AM-Softmax in the
            paper.
        label_smoothing: share of the target that is spread over all classes, in [0, 1].
        reduction: ``"mean"``, ``"mean_all"``, ``"sum"`` or ``"none"``.
        ignore_index: rows with this label have loss 0; by default -100.
        normalize: ``False`` takes inner products instead of cosines.
        skip_below: share of a row's weight that its gradient may leave out; 0 is exact.
        sample_rate: share of the classes to compare with. In evaluation mode nothing is sampled.
        sample_correction: make up for the classes that are left out.
        sparse_grad: whether the gradient of ``weight`` is sparse.
        backend: see :func:`circle_kernels.available_backends`.
        device, dtype: of ``weight``, the (C, D) parameter.

    Raises:
        TypeError, ValueError: an argument of the wrong type or range, also at the call.
    """

    @explain_other_names
    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        m: float = 0.35,
        gamma: float | Tensor = 64.0,
        *,
        label_smoothing: float = 0.0,
        **options: Unpack[HeadOptions],
    ) -> None:
        super().__init__(num_classes, embedding_dim, m, gamma, **options)
        self._smooth(label_smoothing)

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
            TypeError, ValueError, RuntimeError: as :func:`circle_kernels.class_unified_loss`.
        """
        return class_unified_loss(
            embeddings,
            labels,
            self.weight,
            label_smoothing=self.label_smoothing,
            **self._options(),
        )
