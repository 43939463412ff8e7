"""Losses between embeddings and one learned vector per class: proxies, or the weights of a head.

ArcFace, CosFace and ProxyNCA are class losses, whose options (:class:`ClassOptions`) they take;
proxy-anchor is a pair loss whose rows are the proxies. Names and numbers are those of
pytorch-metric-learning, with margins in radians.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from circle_kernels.arguments import describe
from circle_kernels.classes.arguments import (
    IGNORE_INDEX,
    NO_CLASS,
    ClassRows,
    checked_labels,
    checked_sides,
)
from circle_kernels.classes.losses import class_loss
from circle_kernels.classes.options import RowOptions
from circle_kernels.classes.sampling import Sampling
from circle_kernels.distributed.headers import check_together
from circle_kernels.formula import UnifiedFormula
from circle_kernels.losses.pairs import LabelOptions, pair_rows
from circle_kernels.operation.batch import Operation
from circle_kernels.operation.reductions import softplus
from circle_kernels.options import (
    PROXY_REDUCTIONS,
    ProxyReduction,
    check_choice,
    finite_number,
    positive_number,
    real_number,
)

# A margin in radians, or a function of the similarities of rows with their own classes.
Margin = float | Callable[[Tensor], Tensor]


class ClassOptions(RowOptions, total=False):
    """What class losses take beside their own numbers; see
    :func:`circle_kernels.class_circle_loss`."""

    generator: torch.Generator | None


def arcface_loss(
    embeddings: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    weight: Tensor,  # (C, D)
    *,
    margin: Margin = 0.5,
    scale: float = 64.0,
    **options: Unpack[ClassOptions],
) -> Tensor:
    """ArcFace (Deng et al., CVPR 2019, arXiv 1801.07698, Eq. 3), and any margin on the own class.

    ``loss_i = -log softmax_y`` of the logits ``scale s_ij``, with ``scale cos(acos s_iy + margin)``
    at the own class y; where ``acos s_iy`` is above ``pi - margin``, with
    ``scale (s_iy - margin sin margin)``, so that it keeps rising with the similarity.

    Args:
        embeddings: (N, D), float16, bfloat16, float32 or float64; need not be normalised.
        labels: (N,) integers of any dtype in [0, C), or ``ignore_index``.
        weight: (C, D) one row per class, same device; need not be normalised.
        margin: radians in [0, pi]; or a function of the similarities (N,) of rows with their own
            classes that returns what stands for them (N,), written in torch, as MagFace's and
            AdaFace's margins are. It may use what it knows of each row.
        scale: scale of the logits, greater than 0.
        **options: ``reduction``, ``ignore_index``, ``skip_below``, ``sample_rate``,
            ``sample_correction``, ``sparse_grad``, ``generator`` and ``backend``, as for
            :func:`circle_kernels.class_circle_loss`.

    Returns:
        A scalar, or (N,) with ``reduction="none"``.

    Raises:
        As :func:`circle_kernels.class_circle_loss`.
    """
    scale, with_margin = positive_number("scale", scale), margin_function(margin)

    def losses_of(lse_pos: Tensor, lse_neg: Tensor) -> Tensor:
        absent = lse_pos == -math.inf  # so for rows to ignore
        similarity = lse_pos.masked_fill(absent, 0.0) / -scale
        losses = softplus(lse_neg - scale * with_margin(similarity))
        # A row to ignore that is NaN says so, as in the other class losses.
        return torch.where(absent, lse_neg.masked_fill(~lse_neg.isnan(), 0.0), losses)

    formula = UnifiedFormula(gamma=scale)
    return _of_classes("arcface_loss", (embeddings, labels, weight), formula, options, losses_of)


def cosface_loss(
    embeddings: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    weight: Tensor,  # (C, D)
    *,
    margin: float = 0.35,
    scale: float = 64.0,
    **options: Unpack[ClassOptions],
) -> Tensor:
    """CosFace (Wang et al., CVPR 2018, arXiv 1801.09414, Eq. 4) or AM-Softmax: the paper's unified
    loss, under its other name.

    ``loss_i = -log softmax_y`` of the logits ``scale s_ij``, with ``scale (s_iy - margin)`` at the
    own class y.

    Args:
        embeddings: (N, D), float16, bfloat16, float32 or float64; need not be normalised.
        labels: (N,) integers of any dtype in [0, C), or ``ignore_index``.
        weight: (C, D) one row per class, same device; need not be normalised.
        margin: between the similarity with the own class and others, any finite number.
        scale: scale of the logits, greater than 0.
        **options: ``reduction``, ``ignore_index``, ``skip_below``, ``sample_rate``,
            ``sample_correction``, ``sparse_grad``, ``generator`` and ``backend``, as for
            :func:`circle_kernels.class_circle_loss`.

    Returns:
        A scalar, or (N,) with ``reduction="none"``.

    Raises:
        As :func:`circle_kernels.class_circle_loss`.
    """
    formula = UnifiedFormula(
        m=finite_number("margin", margin), gamma=positive_number("scale", scale)
    )
    return _of_classes("cosface_loss", (embeddings, labels, weight), formula, options)


def proxy_nca_loss(
    embeddings: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    proxies: Tensor,  # (C, D)
    *,
    scale: float = 1.0,
    **options: Unpack[ClassOptions],
) -> Tensor:
    """ProxyNCA (Movshovitz-Attias et al., ICCV 2017, arXiv 1703.07464, Eq. 4), with the own proxy
    in the denominator, too.

    ``loss_i = -log softmax_y`` of ``-scale |x_i - p_j|^2`` over all proxies p_j, where x and p have
    length 1: ``2 scale s_ij`` but for a constant.

    Args:
        embeddings: (N, D), float16, bfloat16, float32 or float64; need not be normalised.
        labels: (N,) integers of any dtype in [0, C), or ``ignore_index``.
        proxies: (C, D) one row per class, same device; need not be normalised.
        scale: scale of the squared distances, greater than 0.
        **options: ``reduction``, ``ignore_index``, ``skip_below``, ``sample_rate``,
            ``sample_correction``, ``sparse_grad``, ``generator`` and ``backend``, as for
            :func:`circle_kernels.class_circle_loss`.

    Returns:
        A scalar, or (N,) with ``reduction="none"``.

    Raises:
        As :func:`circle_kernels.class_circle_loss`.
    """
    formula = UnifiedFormula(gamma=2 * positive_number("scale", scale))
    return _of_classes("proxy_nca_loss", (embeddings, labels, proxies), formula, options)


def proxy_anchor_loss(
    embeddings: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    proxies: Tensor,  # (C, D)
    *,
    margin: float = 0.1,
    alpha: float = 32.0,
    reduction: ProxyReduction = "mean",
    **options: Unpack[LabelOptions],
) -> Tensor:
    """Proxy-anchor loss (Kim et al., CVPR 2020, arXiv 2003.13911, Eq. 4): rows are the proxies.

    ``sum_c softplus(log sum_p exp(-alpha (s_cp - margin))) / C'
    + sum_c softplus(log sum_n exp(alpha (s_cn + margin))) / C`` over the proxies c, the embeddings
    p of their classes and n of others; C' is how many have one of their class in the batch.

    Args:
        embeddings: (N, D), float16, bfloat16, float32 or float64; need not be normalised.
        labels: (N,) integers of any dtype in [0, C), or ``ignore_label``.
        proxies: (C, D) one row per class, same device; need not be normalised.
        margin: what similarities of a proxy's class should be above, and others' below its
            negative.
        alpha: scale, greater than 0.
        reduction: ``"mean"`` as above; ``"sum"`` without both divisors; ``"none"`` for the two
            terms of each proxy, added, (C,).
        **options: ``normalize``, ``skip_below``, ``ignore_label``, ``group``, ``exchange``,
            ``same_sizes``, ``grad_reduction`` and ``backend``, as for
            :func:`circle_kernels.circle_loss`; with ``group``, each process has all proxies and its
            own embeddings.

    Returns:
        A scalar, or (C,) with ``reduction="none"``.

    Raises:
        As :func:`circle_kernels.circle_loss`; a label out of range raises on the CPU, and makes the
        loss NaN on other devices, where the host does not wait to see it.
    """

    def formula() -> UnifiedFormula:
        limit = finite_number("margin", margin)
        gamma = positive_number("alpha", alpha)
        return UnifiedFormula(gamma=gamma, margin_pos=limit, margin_neg=-limit)

    group, ignored = options.get("group"), options.get("ignore_label")

    def check() -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        check_choice("reduction", reduction, PROXY_REDUCTIONS)
        sides = checked_sides(embeddings, labels, proxies, name="proxies")
        classes = len(sides[1])
        return *sides, *checked_labels(labels, sides[0], classes, ignored, "ignore_label")

    call, same_sizes = "proxy_anchor_loss", options.get("same_sizes", False)
    checked = check() if group is None else check_together(check, call, group, same_sizes)
    embeddings, proxies, labels, factors = checked
    if ignored is not None:
        options = {**options, "ignore_label": NO_CLASS}
    classes = labels.new_ones(len(proxies)).cumsum(0) - 1  # fake where labels are
    rows = pair_rows(call, formula, (proxies, classes, embeddings, labels), reduction, options)
    lse_pos, lse_neg = rows.logsumexps_over_processes()
    positives, negatives = softplus(lse_pos), softplus(lse_neg)
    if reduction == "mean":
        with_positives = (lse_pos != -math.inf).sum().clamp_min(1)
        loss = positives.sum() / with_positives + negatives.sum() / max(len(proxies), 1)
    else:
        loss = positives + negatives
        loss = loss.sum() if reduction == "sum" else loss
    return loss if factors is None else loss * factors.prod()


def margin_function(margin: Margin) -> Callable[[Tensor], Tensor]:
    """What a margin makes of the similarities with the own classes.

    Raises:
        TypeError, ValueError: neither a function nor radians in [0, pi]; or, when called, a
            function that does not return as many similarities as it gets.
    """
    if callable(margin):
        return functools.partial(_moved, margin)
    radians = real_number("margin", margin)
    if not 0 <= radians <= math.pi:
        raise ValueError(f"margin must be in radians from 0 to pi, or a function; got {margin!r}")
    cosine, sine = math.cos(radians), math.sin(radians)

    def add_angle(similarity: Tensor) -> Tensor:
        bounded = similarity.clamp(-1, 1)
        # sin(acos s), whose derivative has no bound at s = 1 and -1.
        opposite = (1 - bounded.square()).clamp_min(torch.finfo(similarity.dtype).tiny).sqrt()
        turned = bounded * cosine - opposite * sine
        return torch.where(bounded >= -cosine, turned, bounded - radians * sine)

    return add_angle


def _moved(margin: Callable[[Tensor], Tensor], similarity: Tensor) -> Tensor:
    """What a user's function returns, of which another shape would be broadcast."""
    moved = margin(similarity)
    if not isinstance(moved, Tensor) or moved.shape != similarity.shape:
        raise ValueError(
            "margin must return what stands for each similarity: wanted a tensor of shape "
            f"{tuple(similarity.shape)}, got {describe(moved)}"
        )
    return moved


def _of_classes(
    call: str,
    inputs: tuple[Tensor, Tensor, Tensor],
    formula: UnifiedFormula,
    options: ClassOptions,
    losses_of: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """A class loss of options that nobody has checked."""
    operation, rows, sampling = class_options(call, formula, options)
    return class_loss(inputs, operation, rows, sampling, losses_of)


def class_options(
    call: str, formula: UnifiedFormula, options: ClassOptions
) -> tuple[Operation, ClassRows, Sampling]:
    """Options as :func:`class_loss` takes them.

    Raises:
        TypeError, ValueError: one that there is not, or of the wrong type or range.
    """
    given: dict[str, Any] = dict(options)
    unknown = given.keys() - ClassOptions.__optional_keys__
    if unknown:
        raise TypeError(f"{call}() got an unexpected keyword argument {min(unknown)!r}")
    operation = Operation(
        formula, skip_below=given.get("skip_below", 0.0), backend=given.get("backend", "auto")
    )
    rows = ClassRows(given.get("reduction", "mean"), given.get("ignore_index", IGNORE_INDEX))
    sampling = Sampling(
        given.get("sample_rate", 1.0),
        given.get("sample_correction", False),
        given.get("sparse_grad", False),
        given.get("generator"),
    )
    return operation, rows, sampling
