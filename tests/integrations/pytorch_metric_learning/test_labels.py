"""Labels as the library compares them: of any dtype, and which object they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("pytorch_metric_learning")
from circle_kernels.arguments import FLOATING_DTYPES, INTEGER_DTYPES
from tests.integrations.pytorch_metric_learning.comparison import assert_same, batch


def test_self_pairs_are_left_out_only_where_labels_are_the_same_object() -> None:
    embeddings, labels = batch("random", 40)
    references, _ = batch("clusters", 40)
    for ref_emb, ref_labels in (
        (embeddings, labels),
        (embeddings, labels.clone()),
        (references, labels),
        (references, labels.clone()),
        (references, None),
        (embeddings, None),
        (references[:25], labels[:25]),
    ):
        assert_same(embeddings, labels, None, ref_emb, ref_labels)


@pytest.mark.parametrize("dtype", [*FLOATING_DTYPES, *INTEGER_DTYPES], ids=str)
def test_labels_of_any_dtype(dtype: torch.dtype) -> None:
    embeddings, labels = batch("random", 40)
    labels = labels.to(dtype)
    assert_same(embeddings, labels)
    assert_same(embeddings, labels, None, embeddings[:20].flip(1), labels[:20])


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor([2**64 - 1, 2**63, 2**63, 2**64 - 1, 0, 2**63 - 1] * 5, dtype=torch.uint64),
        torch.tensor([0.0, -0.0, 1.5, 1.25, 1.5, float("inf")] * 5),
        torch.tensor([0.0, float("nan"), 0.0, 1.0, float("nan"), 1.0] * 5),
        torch.tensor([float("nan")] * 30, dtype=torch.float64),
        torch.tensor([1e-300, 2e-300, 1e-300] * 10, dtype=torch.float64),
    ],
    ids=["above 2^63", "zeros of both signs", "some nan", "all nan", "near"],
)
def test_labels_are_the_same_class_where_they_are_equal(labels: Tensor) -> None:
    embeddings, _ = batch("random", 30)
    references, _ = batch("clusters", 30)
    assert_same(embeddings, labels)
    assert_same(embeddings, labels, None, references[:20], labels[:20].clone())
    assert_same(embeddings, labels, None, references, labels)


def test_labels_beside_reference_labels_of_another_dtype() -> None:
    embeddings, labels = batch("random", 30)
    for dtypes in (
        (torch.int64, torch.float32),
        (torch.float64, torch.float16),
        (torch.bool, torch.int8),
        (torch.uint16, torch.float32),
    ):
        mine, others = (labels.to(dtype) for dtype in dtypes)
        assert_same(embeddings, mine, None, embeddings.flip(1), others)
