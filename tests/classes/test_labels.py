"""Labels of class losses: every integer dtype, and numbers that are no class."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from circle_kernels import ClassUnifiedLoss, class_circle_loss
from circle_kernels.arguments import INTEGER_DTYPES
from tests.classes.problems import for_every_head, head_like, problem


@pytest.mark.parametrize("wrong", [21, -1, 2**40, -(2**63)])
def test_label_out_of_range_is_named(wrong: int) -> None:
    embeddings, labels, weight = problem()
    labels[6] = wrong
    message = re.escape(f"labels must be in [0, 21) or ignore_index=-100, got {wrong} in row 6")
    with pytest.raises(ValueError, match=message):
        class_circle_loss(embeddings, labels, weight)
    with pytest.raises(ValueError, match=message):
        head_like(ClassUnifiedLoss, weight).get_logits(embeddings, labels)


def test_label_out_of_range_is_nan_where_the_host_does_not_look() -> None:
    """Under a compiler as on a device: the row's loss is not finite, and so is no sum with it."""
    embeddings, labels, weight = problem()
    labels[6] = 21

    @torch.compile(fullgraph=True, backend="aot_eager")
    def losses() -> list[Tensor]:
        return [
            class_circle_loss(embeddings, labels, weight, reduction=reduction)
            for reduction in ("none", "mean", "sum", "mean_all")
        ]

    rows, *reduced = losses()
    assert rows.isnan().tolist() == [row == 6 for row in range(len(labels))]
    assert all(loss.isnan() for loss in reduced)
    for loss in (rows.sum(), *reduced):
        (gradient,) = torch.autograd.grad(loss, embeddings, retain_graph=True)
        assert gradient[6].isnan().all()


@for_every_head
@pytest.mark.parametrize("dtype", INTEGER_DTYPES, ids=str)
def test_labels_of_any_integer_dtype_are_indices(dtype: torch.dtype, head_type: type) -> None:
    head = head_type(7, 5, dtype=torch.float64, ignore_index=1)
    embeddings, labels, _ = problem(9, 7, 5)
    labels = (labels % 2 if dtype == torch.bool else labels).to(dtype)
    expected = head(embeddings, labels.long())
    assert torch.equal(head(embeddings, labels), expected)
    assert torch.equal(
        head.get_logits(embeddings, labels), head.get_logits(embeddings, labels.long())
    )


@pytest.mark.parametrize("number", [2**63, 2**64 - 100, 2**64 - 1, 7])
@pytest.mark.parametrize("ignore_index", [-100, -1, 2**63 - 1])
def test_label_beyond_int64_is_neither_a_class_nor_ignored(number: int, ignore_index: int) -> None:
    """As int64 the number -100 has the bits of the uint64 2^64 - 100."""
    embeddings, labels, weight = problem(9, 7, 5)
    labels = torch.tensor([*labels[:4].tolist(), number, *labels[5:].tolist()], dtype=torch.uint64)
    with pytest.raises(ValueError, match=f"got {number} in row 4"):
        class_circle_loss(embeddings, labels, weight, ignore_index=ignore_index)
    unseen = torch.compile(class_circle_loss, fullgraph=True, backend="aot_eager")
    rows = unseen(embeddings, labels, weight, ignore_index=ignore_index, reduction="none")
    assert rows.isnan().tolist() == [row == 4 for row in range(9)]
