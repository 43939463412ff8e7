"""Other papers' losses on every backend: as near to the float64 truth as plain torch, and rounding.

The truth is of the same rounded inputs; plain torch has them in the dtype that the loss computes
in, which for half types is float32.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from circle_kernels import losses
from tests.losses.others.naive import (
    OTHER_PAIR_LOSSES,
    PAIR_LOSSES,
    SIDE_LOSSES,
    for_every_other_pair_loss,
    for_every_side_loss,
    masks,
    n_pairs,
    naive_pair_loss,
    side_batch,
)
from tests.support.batches import value_and_gradients
from tests.support.regimes import REGIMES
from tests.support.targets import INTERPRETED, Target, for_every_backend
from tests.support.yardstick import Yardstick

pytestmark = pytest.mark.backends

HARD = ("random",) if INTERPRETED else ("random", "clusters", "collapsed", "mixed_empty_rows")


def wide(value: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A leaf on the CPU of this dtype, or labels."""
    if value is None or not value.is_floating_point():
        return value if value is None else value.detach().cpu()
    return value.detach().cpu().to(dtype).requires_grad_()


def leaves_of(tensors: list[Tensor | None]) -> list[Tensor]:
    return [each for each in tensors if each is not None and each.requires_grad]


def hold(ours: list[Tensor], truth: list[Tensor], eager: list[Tensor], gamma: float) -> None:
    """A value of the loss and gradients, each as near to the truth as twice eager's distance.

    Terms of a gradient that cancel are of the size of gamma over the number of rows.
    """
    computed = torch.float64 if ours[0].dtype == torch.float64 else torch.float32
    for place, results in enumerate(zip(ours, truth, eager, strict=True)):
        value, exact, naive = results
        eps = torch.finfo(value.dtype if place else computed).eps
        Yardstick(exact.detach(), naive.detach().to(exact.dtype)).assert_close(
            value, eps, gamma, scale=1.0 if place == 0 else gamma / len(value)
        )


def _pair_tensors(
    regime: str, references: int | None, dtype: torch.dtype, device: str
) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(5)
    rows = 67
    x, y = REGIMES[regime](rows + (references or 0), 24, generator)
    order = torch.randperm(len(y), generator=generator)
    x, y = x[order].to(device, dtype), y[order].to(device)
    if references is None:
        return [x.requires_grad_(), y, None, None]
    own, others = (each.clone().requires_grad_() for each in x.split([rows, references]))
    return [own, y[:rows], others, y[rows:]]


@for_every_backend
@for_every_other_pair_loss
@pytest.mark.parametrize("regime", HARD)
def test_pair_loss_is_as_near_to_the_truth_as_plain_torch(
    target: Target, name: str, regime: str
) -> None:
    loss = PAIR_LOSSES[name]
    for dtype in target.few_dtypes:
        computed = torch.float64 if dtype == torch.float64 else torch.float32
        for references in (None, 41):
            tensors = _pair_tensors(regime, references, dtype, target.device)
            results = []
            for precision in (torch.float64, computed):
                x, y, refs, ref_labels = (wide(each, precision) for each in tensors)
                value = naive_pair_loss(name, x, refs, masks(y, ref_labels))
                results.append(value_and_gradients(value, leaves_of([x, refs])))
            ours = loss.function(*tensors, backend=target.backend)
            assert ours.dtype == computed
            ours = value_and_gradients(ours, leaves_of(tensors))
            hold(ours, *results, gamma=loss.gamma)


@for_every_backend
@for_every_side_loss
def test_loss_with_another_side_is_as_near_to_the_truth_as_plain_torch(
    target: Target, name: str
) -> None:
    loss = SIDE_LOSSES[name]
    for dtype in target.few_dtypes:
        computed = torch.float64 if dtype == torch.float64 else torch.float32
        for rows in (67, 130):
            tensors = side_batch(name, rows, 24, dtype=dtype, device=target.device)
            results = []
            for precision in (torch.float64, computed):
                given = [wide(each, precision) for each in tensors]
                results.append(value_and_gradients(loss.naive(*given), leaves_of(given)))
            ours = loss.function(*tensors, backend=target.backend)
            assert ours.dtype == computed
            ours = value_and_gradients(ours, leaves_of(tensors))
            hold(ours, *results, gamma=loss.gamma)


@for_every_backend
def test_n_pairs_loss_is_as_near_to_the_truth_as_plain_torch(target: Target) -> None:
    for dtype in target.few_dtypes:
        x, y, *_ = _pair_tensors("random", None, dtype, target.device)
        results = []
        for precision in (torch.float64, torch.promote_types(dtype, torch.float32)):
            given = [wide(each, precision) for each in (x, y)]
            results.append(value_and_gradients(n_pairs(*given), given[:1]))
        ours = value_and_gradients(losses.n_pairs_loss(x, y, backend=target.backend), [x])
        hold(ours, *results, gamma=1.0)


@for_every_backend
def test_learned_scale_of_clip_has_its_gradient(target: Target) -> None:
    for dtype in target.few_dtypes:
        images, _, texts = side_batch("clip", 67, 24, dtype=dtype, device=target.device)
        results = []
        for precision in (torch.float64, torch.promote_types(dtype, torch.float32)):
            x, t = (wide(each, precision) for each in (images, texts))
            scale = torch.tensor(20.0, dtype=precision, requires_grad=True)
            logits = scale * torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(t).T
            order = torch.arange(67)
            both = [torch.nn.functional.cross_entropy(each, order) for each in (logits, logits.T)]
            results.append(value_and_gradients(sum(both) / 2, [x, t, scale]))
        scale = torch.tensor(20.0, device=target.device, requires_grad=True)
        loss = losses.clip_loss(images, texts, scale, backend=target.backend)
        ours = value_and_gradients(loss, [images, texts, scale])
        hold(ours[:3], *(each[:3] for each in results), gamma=20.0)
        truth, eager = (each[3].double() for each in results)
        eps = torch.finfo(torch.float32).eps
        assert abs(ours[3].cpu() - truth) <= 2 * abs(eager - truth) + 16 * eps


@for_every_backend
@pytest.mark.parametrize("name", [*OTHER_PAIR_LOSSES, *SIDE_LOSSES])
def test_rows_of_a_loss_add_up_to_it(target: Target, name: str) -> None:
    """What backends do for ``reduction="none"`` is no other loss."""
    if name in SIDE_LOSSES:
        function, tensors = SIDE_LOSSES[name].function, side_batch(name, device=target.device)
    else:
        function = PAIR_LOSSES[name].function
        tensors = _pair_tensors("random", None, torch.float64, target.device)
    for dtype in target.few_dtypes:
        given = [
            each.detach().to(dtype) if each is not None and each.is_floating_point() else each
            for each in tensors
        ]
        rows, total = (
            function(*given, reduction=reduction, backend=target.backend)
            for reduction in ("none", "sum")
        )
        eps = torch.finfo(rows.dtype).eps
        torch.testing.assert_close(rows.sum(), total, rtol=64 * eps, atol=0)
