"""What the modules of class losses have in common, wherever their weight is."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from circle_kernels.classes.arguments import (
    IGNORE_INDEX,
    ClassRows,
    checked_labels,
    checked_sides,
)
from circle_kernels.classes.losses import class_logits
from circle_kernels.classes.prediction import (
    TopClasses,
    check_class_count,
    count_hits,
    own_and_best_other,
    top_classes,
)
from circle_kernels.classes.sampling import Sampling
from circle_kernels.classes.smoothing import check_label_smoothing
from circle_kernels.formula import CircleFormula, PairFormula, UnifiedFormula
from circle_kernels.operation.batch import operation_of
from circle_kernels.options import (
    BackendName,
    Reduction,
    changed_settings,
    check_integer,
    describe_scale,
)

INITIAL_STD = 0.01  # usual for face recognition: short weights turn quickly at first


class ClassHead(nn.Module):
    """What all class losses share: the options that are not the formula's."""

    _formula_type: ClassVar[type[CircleFormula] | type[UnifiedFormula]]
    weight: nn.Parameter  # (C, D)
    num_classes: int
    embedding_dim: int
    ignore_index: int
    normalize: bool
    skip_below: float
    sample_rate: float
    sample_correction: bool
    sparse_grad: bool
    label_smoothing: float = 0.0  # of those that take none

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        m: float,
        gamma: float | Tensor,
        *,
        reduction: Reduction = "mean",
        ignore_index: int = IGNORE_INDEX,
        normalize: bool = True,
        skip_below: float = 0.0,
        sample_rate: float = 1.0,
        sample_correction: bool = False,
        sparse_grad: bool = False,
        backend: BackendName = "auto",
    ) -> None:
        super().__init__()
        # Checked here as well as at the call, so that a typo fails before training starts.
        operation = operation_of(
            self._formula_type,
            m=m,
            gamma=gamma,
            normalize=normalize,
            skip_below=skip_below,
            backend=backend,
        )
        sampling = Sampling(sample_rate, sample_correction, sparse_grad)
        self.num_classes = check_integer("num_classes", num_classes, smallest=1)
        self.embedding_dim = check_integer("embedding_dim", embedding_dim, smallest=1)
        self.m: float = m
        self.gamma: float | Tensor = gamma
        self.reduction: Reduction = reduction
        self.ignore_index = ClassRows(reduction, ignore_index).ignore_index
        self.normalize = operation.normalize
        self.skip_below = operation.skip_below
        self.sample_rate = sampling.rate
        self.sample_correction = sampling.correction
        self.sparse_grad = sampling.sparse_grad
        self.backend: BackendName = backend

    def get_logits(
        self,
        embeddings: Tensor,  # (N, D)
        labels: Tensor | None = None,  # (N,)
    ) -> Tensor:  # (N, C)
        """The whole matrix of logits, for inference, evaluation or label smoothing.

        With labels, those whose cross-entropy is the loss: ``z_n``, and ``-z_p`` at the label.
        Without, ``gamma`` times the cosines.
        """
        return class_logits(
            embeddings,
            labels,
            self._whole_weight(),
            formula=self._formula(),
            ignore_index=self.ignore_index,
            normalize=self.normalize,
        )

    def predict(
        self,
        embeddings: Tensor,  # (N, D)
        k: int = 1,
    ) -> TopClasses:
        """The ``k`` most similar classes of each row, without the (N, C) similarities and autograd.

        Returns:
            ``(similarities, classes)``, (N, k) each, the most similar first, and of equally similar
            ones the lower number. Similarities are cosines (inner products with
            ``normalize=False``), float32, or float64 if one side is; times ``gamma`` they are the
            logits of :meth:`get_logits` without labels. NaN counts as the largest: a row that holds
            NaN or infinity has no others.

        Raises:
            TypeError, ValueError: embeddings of the wrong type, shape, dtype or device, or a ``k``
                that is no integer from 1 to the number of classes.
        """
        k = check_class_count("k", k, self.num_classes)
        embeddings, weight = checked_sides(embeddings, None, self.weight)
        return top_classes(embeddings, weight, k, normalize=self.normalize)

    def accuracy(
        self,
        embeddings: Tensor,  # (N, D)
        labels: Tensor,  # (N,)
    ) -> Tensor:
        """The share of rows that are more similar to their own class than to any other.

        A row that is as similar to another one counts as a miss, and so does NaN. Rows to ignore
        are left out; without others it is NaN, as it is with a label out of range on other devices
        than the CPU. Margins do not count. Neither the (N, C) similarities nor autograd take part.

        Returns:
            A float32 scalar.

        Raises:
            TypeError, ValueError: as the loss.
        """
        embeddings, weight = checked_sides(embeddings, labels, self.weight)
        labels, factors = checked_labels(labels, embeddings, len(weight), self.ignore_index)
        both = own_and_best_other(embeddings, labels, weight, normalize=self.normalize)
        hits, counted = count_hits(both, labels)
        accuracy = hits / counted
        return accuracy if factors is None else accuracy * factors.prod()

    def extra_repr(self) -> str:
        """The settings that are not the defaults."""
        numbers = f"{self.num_classes}, {self.embedding_dim}, m={self.m}"
        changed = changed_settings(self, ClassHead.__init__)
        return ", ".join([numbers, f"gamma={describe_scale(self.gamma)}", *changed])

    def _formula(self) -> PairFormula:
        raise NotImplementedError

    def _scale(self) -> float:
        return self.gamma.item() if isinstance(self.gamma, Tensor) else self.gamma

    def _whole_weight(self) -> Tensor:  # (C, D)
        return self.weight


class CircleHead(ClassHead):
    """What is circle loss's own, wherever the weight is."""

    _formula_type = CircleFormula
    detach_weights: bool

    def extra_repr(self) -> str:
        """The settings that are not the defaults."""
        return super().extra_repr() + ("" if self.detach_weights else ", detach_weights=False")

    def _formula(self) -> CircleFormula:
        return CircleFormula(m=self.m, gamma=self._scale(), detach_weights=self.detach_weights)


class UnifiedHead(ClassHead):
    """What is the unified loss's own, wherever the weight is."""

    _formula_type = UnifiedFormula

    def extra_repr(self) -> str:
        """The settings that are not the defaults."""
        smoothing = f", label_smoothing={self.label_smoothing}" if self.label_smoothing else ""
        return super().extra_repr() + smoothing

    def _smooth(self, label_smoothing: float) -> None:
        """Set what a constructor was given, after all else."""
        sampling = Sampling(self.sample_rate, self.sample_correction, self.sparse_grad)
        self.label_smoothing: float = check_label_smoothing(label_smoothing, sampling)

    def _formula(self) -> UnifiedFormula:
        return UnifiedFormula(m=self.m, gamma=self._scale())
