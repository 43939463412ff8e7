"""Other losses of a batch that two processes share: the value and gradient of one process."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from circle_kernels import circle_loss, losses
from tests.distributed.one_process import Case, check, compare, own_rows, reduce_gradient, side
from tests.distributed.processes import run_processes

SIZES = ((5, 9), (0, 8), (0, 0), (1, 1), (1, 0))
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"reduction": "sum"},
    {"reduction": "none"},
    {"grad_reduction": "sum"},
    {"reduction": "none", "grad_reduction": "sum"},
    {"normalize": False},
    {"backend": "tiled"},
    {"exchange": "ring"},
)
SAME_SIZES: dict[str, Any] = {"same_sizes": True, "reduction": "sum"}
mild_multi_similarity = functools.partial(losses.multi_similarity_loss, beta=10.0)


def clip(images: Tensor, _: Tensor, texts: Tensor, __: Tensor, **options: Any) -> Tensor:
    return losses.clip_loss(images, texts, 3.0, **options)


def clip_of_a_tensor(
    images: Tensor, _: Tensor, texts: Tensor, __: Tensor, **options: Any
) -> Tensor:
    scale = torch.tensor(3.0, dtype=images.dtype)
    return losses.clip_loss(images, texts, scale, **options)


def test_multi_similarity_loss_is_that_of_one_process() -> None:
    function = mild_multi_similarity
    cases = [
        Case(sizes, references, options, function)
        for sizes in SIZES
        for references in (None, sizes[::-1])
        for options in (*OPTIONS, {"reduction": "mean_all"})
    ]
    cases += [
        Case((4, 4), references, {**SAME_SIZES, "exchange": exchange}, function)
        for references in (None, (3, 3))
        for exchange in ("gather", "ring")
    ]
    cases += [Case((6, 5), None, {"ignore_label": label}, function) for label in (0, 3, 99)]
    cases += [
        Case((6, 5), (4, 7), {"ignore_label": 1, "reduction": reduction}, function)
        for reduction in ("mean", "mean_all", "none")
    ]
    cases += [Case((6, 5), None, {}, function, classes=count) for count in (1, 50)]
    run_processes(2, compare, cases)


@pytest.mark.parametrize("function", [losses.supcon_loss, losses.ntxent_loss])
def test_losses_of_each_positive_are_those_of_one_process(function: Any) -> None:
    """With few classes rows have several positives, with many most have none or one."""
    mild = functools.partial(function, temperature=0.5)
    cases = [
        Case(sizes, references, options, mild, classes=classes)
        for sizes in SIZES
        for references in (None, sizes[::-1])
        for options in (*OPTIONS, {"reduction": "mean_all"})
        for classes in (2, 12)
        if "exchange" not in options
    ]
    cases += [Case((6, 5), None, {"ignore_label": 1}, mild), Case((4, 4), None, SAME_SIZES, mild)]
    cases += [Case((6, 5), (4, 3), {}, mild, classes=count) for count in (1, 50)]
    run_processes(2, compare, cases)


def _without_negatives(rank: int) -> None:
    """One process's rows have only positives, the other's only negatives: the batch has both."""
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    refs, ref_labels = rows.flip(0), torch.zeros(6, dtype=torch.int64)
    part = own_rows((3, 3), rank)
    for function in (losses.supcon_loss, losses.ntxent_loss):
        for reduction in ("mean", "sum"):
            expected = function(rows, labels, refs, ref_labels, reduction=reduction)
            ours = function(
                *(each[part] for each in (rows, labels, refs, ref_labels)),
                reduction=reduction,
                group="world",
            )
            torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_processes_whose_rows_lack_one_kind_of_pair_are_one_batch() -> None:
    run_processes(2, _without_negatives)


@pytest.mark.parametrize("function", [clip, clip_of_a_tensor], ids=["number", "tensor"])
def test_clip_loss_is_that_of_one_process(function: Any) -> None:
    cases = [Case(sizes, sizes, options, function) for sizes in SIZES for options in OPTIONS]
    cases += [Case((4, 4), (4, 4), {**SAME_SIZES, "exchange": "ring"}, function)]
    run_processes(2, compare, cases)


def _compare_proxy_anchor(rank: int, cases: list[Case]) -> None:
    """The proxies are in both processes; the gradient of either goes to what all have."""
    for case in cases:
        embeddings, labels = side(case, case.sizes, seed=3)
        rows = own_rows(case.sizes, rank)
        results = []
        for part, sharing in ((rows, {"group": "world"}), (slice(None), None)):
            weight = torch.eye(6, dtype=torch.float64, requires_grad=True)
            # One more than there are labels, which has no embedding.
            proxies, _ = side(case, (5,), seed=9)
            proxies.requires_grad_()
            options = {**case.options, **sharing} if sharing else dict(case.options)
            if sharing is None:
                for name in ("grad_reduction", "same_sizes"):
                    options.pop(name, None)
            loss = losses.proxy_anchor_loss(
                embeddings[part] @ weight, labels[part], proxies, **options
            )
            upstream = torch.linspace(0.5, 1.5, loss.numel(), dtype=torch.float64)
            gradients = torch.autograd.grad(
                (loss * upstream.view_as(loss)).sum(), (weight, proxies)
            )
            results.append((loss.detach(), gradients))
        (ours, our_gradients), (expected, gradients) = results
        check(ours, expected, case)
        for gradient, wanted in zip(our_gradients, gradients, strict=True):
            check(reduce_gradient(gradient, case), wanted, case)


def test_proxy_anchor_loss_is_that_of_one_process() -> None:
    cases = [
        Case(sizes, None, options)
        for sizes in SIZES
        for options in OPTIONS
        if "exchange" not in options
    ]
    cases += [Case((6, 5), None, {"ignore_label": 2}), Case((4, 4), None, SAME_SIZES)]
    run_processes(2, _compare_proxy_anchor, cases)


def _compare_learned_scale(rank: int, sizes: tuple[int, int]) -> None:
    case = Case(sizes)
    results = []
    for part, group in ((own_rows(sizes, rank), "world"), (slice(None), None)):
        scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
        images, texts = (side(case, sizes, seed)[0][part] for seed in (1, 2))
        loss = losses.clip_loss(images, texts, scale, group=group)
        results.append((loss.detach(), *torch.autograd.grad(loss, scale)))
    (ours, gradient), (expected, wanted) = results
    check(ours, expected, case)
    check(reduce_gradient(gradient, case), wanted, case)


@pytest.mark.parametrize("sizes", [(5, 9), (0, 8), (0, 0)])
def test_learned_scale_of_clip_has_the_gradient_of_one_process(sizes: tuple[int, int]) -> None:
    run_processes(2, _compare_learned_scale, sizes)


def _expect(message: str, function: Any, *tensors: Tensor, **options: Any) -> None:
    with pytest.raises((TypeError, ValueError, RuntimeError), match=message):
        function(*tensors, group="world", **options)


def _disagree(rank: int) -> None:
    """Both raise, also where one of them alone is wrong, and the next call works."""
    x, y = torch.randn(4, 3), torch.arange(4)
    own = {"alpha": 2.0 + rank}
    _expect("alpha|gamma", losses.multi_similarity_loss, x, y, **own)
    _expect("labels must have one entry", losses.multi_similarity_loss, x, y[: 4 - rank])
    _expect("reduction", losses.multi_similarity_loss, x, y, reduction=("mean", "sum")[rank])
    _expect("alpha must be greater than 0", losses.multi_similarity_loss, x, y, alpha=1.0 - rank)
    mask = torch.ones(4, 4, dtype=torch.bool)
    _expect("pair_mask .* not with group", losses.multi_similarity_loss, x, None, pair_mask=mask)
    _expect("self_index .* not with", losses.multi_similarity_loss, x, y, x, y, self_index=y)
    _expect("text_emb must have one row", losses.clip_loss, x, x[rank:], 1.0)
    _expect("logit_scale must be", losses.clip_loss, x, x, 1.0 - rank)
    proxies = torch.randn(6 + rank, 3)
    _expect("number of rows that all processes have", losses.proxy_anchor_loss, x, y, proxies)
    _expect("margin", losses.proxy_anchor_loss, x, y, proxies[:6], margin=0.1 + rank)
    _expect("gamma", losses.proxy_anchor_loss, x, y, proxies[:6], alpha=8.0 + rank)
    _expect("normalize", losses.proxy_anchor_loss, x, y, proxies[:6], normalize=rank == 0)
    dtype = (torch.float32, torch.float64)[rank]  # a process would die of it
    _expect("dtype", losses.proxy_anchor_loss, x.to(dtype), y, proxies[:6].to(dtype))
    _expect("columns", losses.proxy_anchor_loss, x[:, rank:], y, proxies[:6, rank:])
    unchecked = {"group": "world", "same_sizes": True}
    assert losses.proxy_anchor_loss(x, y, proxies[:6], **unchecked).isfinite()
    assert losses.proxy_anchor_loss(x, y, proxies[:6], margin=0.1 + rank, **unchecked).isnan()
    _expect(r"labels must be in \[0, 6\)", losses.proxy_anchor_loss, x, y + 6 * rank, proxies[:6])
    gamma = torch.tensor(3.0, requires_grad=True) if rank else 3.0  # a process would die of it
    _expect("whether gamma is learned", circle_loss, x, y, gamma=gamma)
    function = (losses.multi_similarity_loss, circle_loss)[rank]
    _expect("multi_similarity_loss|circle_loss", function, x, y)
    assert losses.multi_similarity_loss(x, y, group="world").isfinite()


def test_processes_that_disagree_raise_together() -> None:
    run_processes(2, _disagree)
