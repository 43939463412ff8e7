"""What the modules share that are a loss function with its numbers and options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from circle_kernels.backends.choice import check_backend
from circle_kernels.distributed.sharing import OF_SHARING
from circle_kernels.losses.modules import SharingModule
from circle_kernels.losses.pairs import LabelOptions, SharedOptions
from circle_kernels.operation.batch import sharing_of
from circle_kernels.operation.pair_masks import PairMask
from circle_kernels.options import BackendName, Reduction

DEFAULTS: LabelOptions = {
    "normalize": True,
    "skip_below": 0.0,
    "ignore_label": None,
    "group": None,
    "exchange": "gather",
    "same_sizes": False,
    "grad_reduction": "mean",
    "backend": "auto",
}
_OF_CALLS = frozenset(("pair_mask", "self_index"))  # what belongs to a batch


class FunctionLoss(SharingModule):
    """A loss function with its numbers and options, which are attributes and may be changed.

    They are checked here as well as at the call, so that a typo fails before training starts.
    """

    _function: ClassVar[Callable[..., Tensor]]
    reduction: Reduction
    normalize: bool
    skip_below: float
    backend: BackendName

    def __init__(
        self, numbers: dict[str, Any], reduction: Reduction, options: SharedOptions
    ) -> None:
        super().__init__()
        for name in _OF_CALLS.intersection(options):
            raise TypeError(f"{type(self).__name__}() takes no {name}: it goes with each batch")
        given: dict[str, Any] = {**self._defaults(), **options}
        self._names = (*numbers, "reduction", *given)
        for name, value in {**numbers, "reduction": reduction, **given}.items():
            setattr(self, name, value)
        check_backend(given.get("backend"))
        sharing_of(**{name: given.pop(name) for name in OF_SHARING if name in given})
        self._try(**numbers, reduction=reduction, **{**given, "backend": "tiled"})

    def _defaults(self) -> dict[str, Any]:
        return {**DEFAULTS}

    def _try(self, **settings: Any) -> None:
        """Call the function with a batch of no rows."""
        self._call(torch.empty(0, 1), torch.empty(0, dtype=torch.int64), **settings)

    def _call(self, *tensors: Any, **settings: Any) -> Tensor:
        return type(self)._function(*tensors, **settings)

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._names}

    def forward(
        self,
        embeddings: Tensor,  # (N, D)
        labels: Tensor | None,  # (N,)
        ref_emb: Tensor | None = None,  # (M, D)
        ref_labels: Tensor | None = None,  # (M,)
        *,
        pair_mask: PairMask | None = None,
        self_index: Tensor | None = None,  # (N,)
    ) -> Tensor:
        """The loss of a batch.

        Args:
            embeddings: (N, D), float16, bfloat16, float32 or float64; need not be normalised.
            labels: (N,) integers of any dtype; ``None`` with ``pair_mask``.
            ref_emb: (M, D) references; without them the batch is compared with itself.
            ref_labels: (M,) integers.
            pair_mask: which pairs are positive and which negative, in place of labels.
            self_index: (N,) the place of each row's own copy among the references, -1 for none.

        Returns:
            A scalar, or (N,) with ``reduction="none"``.

        Raises:
            TypeError, ValueError, RuntimeError: as :func:`circle_kernels.circle_loss`.
        """
        return self._call(
            embeddings,
            labels,
            ref_emb,
            ref_labels,
            pair_mask=pair_mask,
            self_index=self_index,
            **self._settings(),
        )

    def extra_repr(self) -> str:
        """The numbers, the settings that are not the defaults, and who shares the batch."""
        usual = {"reduction": "mean", **DEFAULTS}
        shown = [
            f"{name}={value!r}"
            for name, value in self._settings().items()
            if name not in OF_SHARING and (name not in usual or value != usual[name])
        ]
        return ", ".join([*shown, self._describe_sharing()])
