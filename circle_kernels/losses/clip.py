"""The contrastive loss of image and text embeddings."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from typing_extensions import Unpack

from circle_kernels.arguments import check_embeddings, check_kinds, check_references, describe
from circle_kernels.distributed.headers import check_together
from circle_kernels.formula import UnifiedFormula
from circle_kernels.losses.pairs import PairRows, SharedOptions, numbers_of_rows, pair_rows
from circle_kernels.operation.chosen_pairs import OF_PAIRS
from circle_kernels.operation.positives import unit_rows
from circle_kernels.operation.reductions import softplus
from circle_kernels.options import Reduction, check_flag, positive_number


def clip_loss(
    image_emb: Tensor,  # (N, D)
    text_emb: Tensor,  # (N, D)
    logit_scale: float | Tensor,
    *,
    reduction: Reduction = "mean",
    **options: Unpack[SharedOptions],
) -> Tensor:
    """The loss of CLIP (Radford et al., ICML 2021, arXiv 2103.00020, Fig. 3), InfoNCE both ways.

    ``loss_i = (-log softmax_i(scale s_i.) - log softmax_i(scale s_.i)) / 2``: row i's text among
    all texts, and text i's image among all images. Both come from one product; where processes
    share a batch, from one each.

    Args:
        image_emb, text_emb: (N, D) of one device, row i of each belonging together; float16,
            bfloat16, float32 or float64; need not be normalised.
        logit_scale: what cosines are multiplied with, greater than 0: a number, or a tensor with
            one, which gets its gradient and which the host does not wait for. With a tensor half
            types are computed in float32.
        reduction: ``"mean"`` over all rows, ``"sum"`` or ``"none"``.
        **options: ``normalize``, ``skip_below``, ``group``, ``exchange``, ``same_sizes``,
            ``grad_reduction`` and ``backend``, as for :func:`circle_kernels.circle_loss`.

    Returns:
        A scalar, or (N,) with ``reduction="none"``.

    Raises:
        As :func:`circle_kernels.circle_loss`.
    """
    for name in OF_PAIRS:
        if name in options:
            raise TypeError(f"clip_loss() takes no {name}: row i of both sides belong together")
    group, same_sizes = options.get("group"), options.get("same_sizes", False)

    def check() -> tuple[Tensor, Tensor, float]:
        return _scaled(image_emb, text_emb, logit_scale, options)

    checked = check() if group is None else check_together(check, "clip_loss", group, same_sizes)
    images, texts, gamma = checked
    if isinstance(logit_scale, Tensor):
        options = {**options, "normalize": False}
    labels = numbers_of_rows(images, group)

    def rows_of(side: Tensor, others: Tensor) -> PairRows:
        tensors = (side, labels, others, labels)
        formula = functools.partial(UnifiedFormula, gamma=gamma)
        return pair_rows("clip_loss", formula, tensors, reduction, options)

    rows = rows_of(images, texts)
    if group is None:
        losses = softplus(torch.add(*rows.logsumexps(both_sides=True))).view(2, -1)
    else:
        both = [softplus(torch.add(*each.logsumexps())) for each in (rows, rows_of(texts, images))]
        losses = torch.stack(both)
    return rows.reduced(losses.mean(0))


def _scaled(
    image_emb: Tensor, text_emb: Tensor, logit_scale: float | Tensor, options: SharedOptions
) -> tuple[Tensor, Tensor, float]:
    """Both sides, and the scale of their similarities: 1 where a tensor of it is in one of them."""
    check_kinds(image_emb=image_emb, text_emb=text_emb)
    check_embeddings("image_emb", image_emb)
    check_references("text_emb", text_emb, image_emb, of="image_emb")
    if text_emb.shape[0] != image_emb.shape[0]:
        raise ValueError(
            "text_emb must have one row for each row of image_emb: wanted "
            f"{image_emb.shape[0]}, got {text_emb.shape[0]}"
        )
    if not isinstance(logit_scale, Tensor):
        return image_emb, text_emb, positive_number("logit_scale", logit_scale)
    if logit_scale.numel() != 1 or not logit_scale.is_floating_point():
        raise TypeError(
            f"logit_scale must be a number or a tensor with one, got {describe(logit_scale)}"
        )
    normalize = check_flag("normalize", options.get("normalize", True))
    images, texts = (unit_rows(each, normalize) for each in (image_emb, text_emb))
    return images * logit_scale.reshape(()).to(images.device, images.dtype), texts, 1.0
