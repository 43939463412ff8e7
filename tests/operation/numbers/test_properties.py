"""Properties that hold for every batch, searched for counterexamples with hypothesis."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("hypothesis")

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from circle_kernels import CircleFormula, circle_loss, pair_logsumexp
from circle_kernels.reference import pair_masks, similarity_matrix
from tests.support.targets import INTERPRETED, Target, for_every_backend

pytestmark = pytest.mark.backends
checked = settings(
    max_examples=3 if INTERPRETED else 40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, dict]:
    """Embeddings, labels and hyper-parameters; float64 where properties are exact."""
    n = draw(st.integers(2, 40))
    d = draw(st.integers(2, 40))
    spread = draw(st.sampled_from([0.0, 0.05, 0.5, 2.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    labels = torch.randint(0, draw(st.integers(1, n)), (n,), generator=generator)
    centres = torch.randn(n, d, generator=generator)
    embeddings = centres[labels] + spread * torch.randn(n, d, generator=generator)
    options = {
        "gamma": draw(st.sampled_from([1.0, 32.0, 80.0, 256.0])),
        "m": draw(st.sampled_from([-0.1, 0.0, 0.25, 0.4, 0.5])),
    }
    return embeddings, labels, options


def losses(target: Target, embeddings: Tensor, labels: Tensor, options: dict) -> Tensor:
    return circle_loss(
        embeddings.to(target.device),
        labels.to(target.device),
        reduction="none",
        backend=target.backend,
        **options,
    ).cpu()


def assert_same(ours: Tensor, expected: Tensor, gamma: float) -> None:
    """Equal up to what rounding similarities to float32 makes of logits at this gamma."""
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(ours, expected, rtol=0, atol=eps * (64 + 32 * gamma))


@for_every_backend
@checked
@given(data=st.data(), batch=batches())
def test_permuting_the_batch_permutes_the_rows(target: Target, data: st.DataObject, batch) -> None:
    embeddings, labels, options = batch
    order = torch.tensor(data.draw(st.permutations(range(len(labels)))))
    assert_same(
        losses(target, embeddings[order], labels[order], options),
        losses(target, embeddings, labels, options)[order],
        options["gamma"],
    )


@for_every_backend
@checked
@given(batch=batches(), seed=st.integers(0, 2**31))
def test_renaming_classes_changes_nothing(target: Target, batch, seed: int) -> None:
    embeddings, labels, options = batch
    names = torch.randint(
        torch.iinfo(torch.int64).min,
        torch.iinfo(torch.int64).max,
        (len(labels),),
        generator=torch.Generator().manual_seed(seed),
    )
    assert torch.equal(
        losses(target, embeddings, names[labels], options),
        losses(target, embeddings, labels, options),
    )


@for_every_backend
@checked
@given(batch=batches(), exponents=st.lists(st.integers(-12, 12), min_size=40, max_size=40))
def test_scaling_an_embedding_changes_nothing(target: Target, batch, exponents: list[int]) -> None:
    embeddings, labels, options = batch
    scales = 2.0 ** torch.tensor(exponents[: len(labels)])
    assert_same(
        losses(target, embeddings * scales[:, None], labels, options),
        losses(target, embeddings, labels, options),
        options["gamma"],
    )


@for_every_backend
@checked
@given(batch=batches())
def test_loss_equals_the_one_computed_from_the_full_matrix(target: Target, batch) -> None:
    embeddings, labels, options = batch
    similarity = similarity_matrix(embeddings.double(), embeddings.double())
    positive, negative = pair_masks(labels)
    formula = CircleFormula(**options)
    expected = torch.zeros(len(labels), dtype=torch.float64)
    for row in range(len(labels)):
        s_p, s_n = similarity[row][positive[row]], similarity[row][negative[row]]
        if len(s_p) and len(s_n):
            products = torch.exp(
                formula.positive_logits(s_p)[:, None] / 64 + formula.negative_logits(s_n)[None] / 64
            )
            # (sum of e^(z/64))^64 would be another function: scale only to find the largest term.
            largest = 64 * products.max().log()
            terms = formula.positive_logits(s_p)[:, None] + formula.negative_logits(s_n)[None]
            exponent = largest + torch.exp(terms - largest).sum().log()
            expected[row] = torch.logaddexp(exponent, torch.zeros(()).double())
    assert_same(losses(target, embeddings, labels, options).double(), expected, options["gamma"])


@for_every_backend
@checked
@given(batch=batches())
def test_self_mode_is_reference_mode_without_the_pairs_with_itself(target: Target, batch) -> None:
    """For negatives the two agree as they are, since an embedding is never its own negative."""
    embeddings, labels, options = batch
    embeddings, labels = embeddings.to(target.device), labels.to(target.device)
    formula = CircleFormula(**options)
    _, own = pair_logsumexp(embeddings, labels, formula=formula, backend=target.backend)
    _, other = pair_logsumexp(
        embeddings, labels, embeddings, labels, formula=formula, backend=target.backend
    )
    present = own.isfinite()
    assert torch.equal(present, other.isfinite())
    assert_same(own[present].cpu(), other[present].cpu(), options["gamma"])
