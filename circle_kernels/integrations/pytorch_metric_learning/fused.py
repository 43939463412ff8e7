"""What all drop-ins share: what they leave to the library, and how they say so."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch
from pytorch_metric_learning import distances
from pytorch_metric_learning.utils import common_functions as c_f
from torch import Tensor

from circle_kernels.arguments import FLOATING_DTYPES, check_kinds
from circle_kernels.backends.addressable import all_addressable
from circle_kernels.formula import PairFormula
from circle_kernels.integrations.pytorch_metric_learning import library as losses

COSINE: tuple[type[torch.nn.Module], ...] = (
    distances.CosineSimilarity,
    distances.DotProductSimilarity,
)

Obstacle = tuple[str, str]  # why a call cannot be fused, as a kind and in words
LossDict = dict[str, dict[str, Any]]  # what the library's losses hand to reducers


class FusedLoss(losses.BaseMetricLossFunction):
    """Stands before a class of the library among the bases of a drop-in."""

    # Methods of the library's computation that the fused one does not call.
    _REPLACED: ClassVar[tuple[str, ...]] = ("_compute_loss",)

    def _formula(self) -> PairFormula:
        """The pair logits.

        Raises:
            TypeError, ValueError: a number that is no plain number, or out of range.
        """
        raise NotImplementedError

    def _obstacle(self, **matrices: Tensor) -> Obstacle | None:
        """Why this object cannot compute a fused loss of these matrices; None where it can."""
        changed = self._changed_method()
        if changed is not None:
            return "method", f"{changed} is not the library's own"
        obstacle = self._obstacle_of_distance()
        if obstacle is not None:
            return obstacle
        try:
            self._formula()
        except (TypeError, ValueError) as error:
            return "formula", str(error)
        for name, value in matrices.items():
            if value.dtype not in FLOATING_DTYPES or value.shape[1] == 0:
                return name, f"{name} are {value.dtype} of shape {tuple(value.shape)}"
        return None

    def _obstacle_of_distance(self) -> Obstacle | None:
        distance = self.distance
        if type(distance) in COSINE and (distance.p, distance.power) == (2, 1):
            return None
        return "distance", (
            f"the distance is {type(distance).__name__} with p={distance.p} and "
            f"power={distance.power}, not a plain CosineSimilarity"
        )

    def _changed_method(self) -> str | None:
        """What a subclass, or this object itself, has in place of the library's."""
        theirs = next(each for each in type(self).__mro__ if _is_of_the_library(each))
        for name in self._REPLACED:
            if name in vars(self) or getattr(type(self), name) is not getattr(theirs, name):
                return name
        entropy = getattr(self, "cross_entropy", None)
        if entropy is not None and not _is_plain(entropy):
            return "cross_entropy"
        return None

    def _check_alone(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor
    ) -> None:
        """The library's checks of a loss that wants labels and takes no references, and ours."""
        c_f.labels_required(labels)
        c_f.ref_not_supported(embeddings, labels, ref_emb, ref_labels)
        self.distance.check_shapes(embeddings, ref_emb)
        check_readable(embeddings, labels, ref_emb, ref_labels)

    def _by_the_library(self, kind: str, reason: str, *arguments: Any) -> LossDict:
        """With one warning for each kind: words may hold values, which change from step to step."""
        warned = self.__dict__.setdefault("_warned", set())
        if kind not in warned:
            warned.add(kind)
            warnings.warn(
                f"{type(self).__name__} is not fused but computed by pytorch-metric-learning: "
                f"{reason}",
                stacklevel=2,
            )
        return super().compute_loss(*arguments)

    def _record_norms(self, embeddings: Tensor, ref_emb: Tensor) -> None:
        """The statistics of the distance, which is not called."""
        if not self.distance.collect_stats:
            return
        self.distance.reset_stats()
        with torch.no_grad():
            self.distance.set_default_stats(
                embeddings,
                ref_emb,
                self.distance.maybe_normalize(embeddings),
                self.distance.maybe_normalize(ref_emb),
            )


def check_readable(
    embeddings: Tensor, labels: Tensor | None, ref_emb: Tensor, ref_labels: Tensor | None
) -> None:
    """Require tensors that a kernel could read, of a call that came through the library.

    Raises:
        TypeError, ValueError: one that is of another kind.
    """
    if not all_addressable(embeddings, labels, ref_emb, ref_labels):
        check_kinds(embeddings=embeddings, labels=labels, ref_emb=ref_emb, ref_labels=ref_labels)


def elements(losses: Tensor, indices: Tensor, **more: Any) -> dict[str, Any]:
    """Losses of rows, as the library's reducers take them."""
    return {"losses": losses, "indices": indices, "reduction_type": "element", **more}


def _is_plain(entropy: torch.nn.Module) -> bool:
    return (
        type(entropy) is torch.nn.CrossEntropyLoss
        and entropy.weight is None
        and (entropy.reduction, entropy.label_smoothing) == ("none", 0)
    )


def _is_of_the_library(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "pytorch_metric_learning"
