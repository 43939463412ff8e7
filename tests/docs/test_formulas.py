"""The Python of docs/formulas.md, as it stands there."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from circle_kernels import pair_logsumexp
from circle_kernels.losses import multi_similarity_loss
from circle_kernels.operation.reductions import softplus
from tests.support.batches import batch, class_batch
from tests.support.places import ROOT

PAGE = (ROOT / "docs" / "formulas.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def page() -> dict[str, Any]:
    """What the blocks define, run one after the other."""
    embeddings, labels = batch(60, 16)
    norms = torch.linspace(5, 120, 60)[:, None]
    namespace: dict[str, Any] = {
        "embeddings": (F.normalize(embeddings.detach()) * norms).requires_grad_(),
        "labels": labels,
    }
    _, namespace["classes"], namespace["weight"] = class_batch(60, 16, classes=11)
    for code in BLOCKS:
        exec(code, namespace)
    return namespace


def test_lifted_structure_is_that_of_the_matrix(page: dict[str, Any]) -> None:
    embeddings, labels = page["embeddings"].detach(), page["labels"]
    similarity = F.normalize(embeddings) @ F.normalize(embeddings).T
    same, itself = labels[:, None] == labels, torch.eye(60, dtype=torch.bool)
    sums: list[Tensor] = [
        (8 * logits).masked_fill(~mask, -torch.inf).logsumexp(1)
        for logits, mask in ((1 - similarity, same & ~itself), (similarity - 0.5, ~same))
    ]
    exponents = sums[0] + sums[1]
    expected = torch.relu(exponents[exponents > -torch.inf]).mean()
    torch.testing.assert_close(page["lifted_structure_loss"](embeddings, labels), expected)


def test_circle_by_functions_is_the_built_in_formula(page: dict[str, Any]) -> None:
    results = []
    for name in ("by_functions", "built_in"):
        embeddings = page["embeddings"].detach().requires_grad_()
        sums = pair_logsumexp(embeddings, page["labels"], formula=page[name])
        results.append((*sums, *torch.autograd.grad(sum(each.sum() for each in sums), embeddings)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_two_scales_are_multi_similarity(page: dict[str, Any]) -> None:
    tensors = page["embeddings"].detach(), page["labels"]
    lse_pos, lse_neg = pair_logsumexp(*tensors, formula=page["multi_similarity"])
    loss = (softplus(lse_pos) / 2 + softplus(lse_neg) / 50).mean()
    torch.testing.assert_close(loss, multi_similarity_loss(*tensors))


def test_margins_grow_with_norms(page: dict[str, Any]) -> None:
    embeddings, classes = page["embeddings"].detach(), page["classes"]
    cosines = F.normalize(embeddings) @ F.normalize(page["weight"].detach()).T
    own = cosines.gather(1, classes[:, None])
    turned = torch.cos(torch.acos(own) + page["margins"].detach()[:, None])
    logits = 64 * cosines.scatter(1, classes[:, None], turned)
    norms = page["norms"].detach()
    expected = F.cross_entropy(logits, classes) + 35 * (norms / 110**2 + 1 / norms).mean()
    torch.testing.assert_close(page["loss"].detach(), expected, rtol=1e-4, atol=1e-4)
