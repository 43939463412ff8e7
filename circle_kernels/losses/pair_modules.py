"""The pair losses of other papers as modules: their numbers and options and, where they have any,
their learned vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from circle_kernels.backends.choice import check_backend
from circle_kernels.losses.clip import clip_loss
from circle_kernels.losses.modules import SharingModule
from circle_kernels.losses.pair_losses import (
    multi_similarity_loss,
    n_pairs_loss,
    ntxent_loss,
    supcon_loss,
)
from circle_kernels.losses.pairs import OF_SHARING, PairOptions
from circle_kernels.losses.proxy_losses import proxy_anchor_loss
from circle_kernels.operation.batch import sharing_of
from circle_kernels.operation.chosen_pairs import OF_PAIRS
from circle_kernels.operation.pair_masks import PairMask
from circle_kernels.options import check_integer, positive_number

_DEFAULTS: dict[str, Any] = {
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

    def __init__(self, numbers: dict[str, Any], reduction: str, options: PairOptions) -> None:
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
        return _DEFAULTS

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
        names = [name for name in self._names if name not in OF_SHARING]
        numbers = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{numbers}, {self._describe_sharing()}"


class MultiSimilarityLoss(FunctionLoss):
    """See :func:`multi_similarity_loss`."""

    _function = staticmethod(multi_similarity_loss)

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 0.5,
        *,
        reduction: str = "mean",
        **options: Unpack[PairOptions],
    ) -> None:
        super().__init__({"alpha": alpha, "beta": beta, "base": base}, reduction, options)


class SupConLoss(FunctionLoss):
    """See :func:`supcon_loss`."""

    _function = staticmethod(supcon_loss)

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        reduction: str = "mean",
        **options: Unpack[PairOptions],
    ) -> None:
        super().__init__({"temperature": temperature}, reduction, options)


class NTXentLoss(FunctionLoss):
    """See :func:`ntxent_loss`."""

    _function = staticmethod(ntxent_loss)

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        reduction: str = "mean",
        **options: Unpack[PairOptions],
    ) -> None:
        super().__init__({"temperature": temperature}, reduction, options)


class NPairsLoss(FunctionLoss):
    """See :func:`n_pairs_loss`."""

    _function = staticmethod(n_pairs_loss)
    group = None

    def __init__(
        self,
        *,
        normalize: bool = True,
        reduction: str = "mean",
        skip_below: float = 0.0,
        backend: str = "auto",
    ) -> None:
        options = PairOptions(normalize=normalize, skip_below=skip_below, backend=backend)
        super().__init__({}, reduction, options)

    def _defaults(self) -> dict[str, Any]:
        return {}

    def forward(  # type: ignore[override]
        self,
        embeddings: Tensor,  # (N, D)
        labels: Tensor,  # (N,)
    ) -> Tensor:
        return self._call(embeddings, labels, **self._settings())


class ProxyAnchorLoss(FunctionLoss):
    """See :func:`proxy_anchor_loss`; has its ``proxies``, a (C, D) parameter.

    Args:
        num_classes: C.
        embedding_dim: D.
        margin, alpha: margin and scale.
        reduction, options: as for the function.
        device, dtype: of ``proxies``.
    """

    _function = staticmethod(proxy_anchor_loss)

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        margin: float = 0.1,
        alpha: float = 32.0,
        *,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[PairOptions],
    ) -> None:
        super().__init__({"margin": margin, "alpha": alpha}, reduction, options)
        self.num_classes = check_integer("num_classes", num_classes, smallest=1)
        self.embedding_dim = check_integer("embedding_dim", embedding_dim, smallest=1)
        self.proxies = nn.Parameter(
            torch.empty(self.num_classes, self.embedding_dim, device=device, dtype=dtype)
        )
        self.reset_parameters()

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
        return self._call(embeddings, labels, self.proxies, **self._settings())


class CLIPLoss(FunctionLoss):
    """See :func:`clip_loss`; has the scale that it learns.

    Args:
        logit_scale: the scale at first; by default CLIP's, 1 / 0.07.
        learned: whether it is a parameter, ``log_scale`` (its logarithm, as CLIP learns it), or
            stays.
        largest: what the scale is at most, as CLIP has it for stability.
        reduction, options: as for the function.
    """

    _function = staticmethod(clip_loss)

    def __init__(
        self,
        logit_scale: float = 1 / 0.07,
        *,
        learned: bool = True,
        largest: float = 100.0,
        reduction: str = "mean",
        **options: Unpack[PairOptions],
    ) -> None:
        super().__init__({}, reduction, options)
        logarithm = torch.tensor(math.log(positive_number("logit_scale", logit_scale)))
        self.largest = positive_number("largest", largest)
        if learned:
            self.log_scale = nn.Parameter(logarithm)
        else:
            self.register_buffer("log_scale", logarithm)

    def _defaults(self) -> dict[str, Any]:
        return {name: value for name, value in _DEFAULTS.items() if name not in OF_PAIRS}

    def _try(self, **settings: Any) -> None:
        self._call(torch.empty(0, 1), torch.empty(0, 1), 1.0, **settings)

    @property
    def logit_scale(self) -> Tensor:
        """The scale, a tensor with one number, at most ``largest``."""
        return cast(Tensor, self.log_scale).exp().clamp_max(self.largest)

    def forward(  # type: ignore[override]
        self,
        image_emb: Tensor,  # (N, D)
        text_emb: Tensor,  # (N, D)
    ) -> Tensor:
        return self._call(image_emb, text_emb, self.logit_scale, **self._settings())
