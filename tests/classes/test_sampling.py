"""``sample_rate``: which classes are drawn, what they cost an optimizer, and what stays put."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from circle_kernels import (
    CircleFormula,
    ClassCircleLoss,
    ClassUnifiedLoss,
    SparseSGD,
    class_circle_loss,
    pair_logsumexp,
)
from circle_kernels.classes.sampling import sample_classes, sample_size
from tests.support import batches

NUM_CLASSES = 60


batch = functools.partial(
    batches.batch, classes=NUM_CLASSES, random_labels=True, dtype=torch.float64
)


def head(sample_rate: float, head_type: type = ClassCircleLoss, **options) -> ClassCircleLoss:
    torch.manual_seed(1)
    return head_type(NUM_CLASSES, 8, sample_rate=sample_rate, dtype=torch.float64, **options)


def sampled_rows(loss_function: ClassCircleLoss) -> Tensor:
    """Classes with a gradient, of the last backward pass."""
    gradient = loss_function.weight.grad
    if gradient.is_sparse:
        return gradient.coalesce().indices()[0]
    return (gradient != 0).any(1).nonzero()[:, 0]


def test_sample_has_every_class_of_the_batch_and_others_by_chance() -> None:
    labels = torch.tensor([5, 5, 59, -1, 0])
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(NUM_CLASSES)
    for _ in range(400):
        sampled = sample_classes(labels, NUM_CLASSES, 18, generator)
        assert sampled.shape == (18,)
        assert (sampled.diff() > 0).all()  # ascending, and so different
        counts[sampled] += 1
    present = torch.tensor([0, 5, 59])
    assert (counts[present] == 400).all()
    others = counts[~torch.isin(torch.arange(NUM_CLASSES), present)]
    # Binomial with 400 draws at 15 / 57: five standard deviations of 8.8.
    assert (others - 400 * 15 / 57).abs().max() < 5 * 8.8


@pytest.mark.parametrize(
    ("num_rows", "rate", "size"), [(4, 0.1, 6), (4, 0.11, 7), (20, 0.1, 20), (99, 0.1, 60)]
)
def test_size_of_the_sample(num_rows: int, rate: float, size: int) -> None:
    """The share asked for, rounded up, with room for every row's class."""
    assert sample_size(num_rows, NUM_CLASSES, rate) == size


def test_loss_is_that_of_the_sampled_classes_alone() -> None:
    embeddings, labels = batch()
    labels[2] = -100
    function = head(0.4)
    loss = function(embeddings, labels)
    loss.backward()
    rows = sampled_rows(function)
    assert len(rows) == 24
    assert torch.isin(labels[labels >= 0], rows).all()
    places = torch.searchsorted(rows, labels.clamp_min(0)).masked_fill(labels < 0, -100)
    weight = function.weight.detach()[rows].requires_grad_()
    alone = class_circle_loss(embeddings, places, weight)
    torch.testing.assert_close(loss, alone, rtol=1e-12, atol=0)
    gradients = torch.autograd.grad(alone, (embeddings, weight))
    torch.testing.assert_close(embeddings.grad, gradients[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(function.weight.grad[rows], gradients[1], rtol=1e-12, atol=1e-12)


def test_sparse_gradient_is_the_dense_one() -> None:
    embeddings, labels = batch()
    gradients = []
    for sparse_grad in (False, True):
        function = head(0.4, sparse_grad=sparse_grad)
        torch.manual_seed(3)
        loss = function(embeddings, labels)
        gradients += torch.autograd.grad(loss, function.weight)
    assert gradients[1].is_sparse
    assert gradients[1].is_coalesced()
    assert torch.equal(gradients[1].to_dense(), gradients[0])


def test_sparse_gradients_accumulate_and_may_cover_all_classes() -> None:
    embeddings, labels = batch()
    function = head(1.0, sparse_grad=True)
    function(embeddings, labels).backward()
    once = function.weight.grad.to_dense().clone()
    function(embeddings, labels).backward()
    assert torch.equal(function.weight.grad.to_dense(), 2 * once)
    plain = head(1.0)
    plain(embeddings, labels).backward()
    torch.testing.assert_close(once, plain.weight.grad, rtol=1e-12, atol=1e-12)


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "sgd-momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "sparse-sgd-momentum": lambda parameters: SparseSGD(parameters, lr=0.1, momentum=0.9),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.1),
    "sparse-adam": lambda parameters: torch.optim.SparseAdam(parameters, lr=0.1),
}


@pytest.mark.parametrize("head_type", [ClassCircleLoss, ClassUnifiedLoss])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_classes_never_sampled_do_not_move(name: str, head_type: type) -> None:
    function = head(0.25, head_type, sparse_grad=True)
    optimizer = OPTIMIZERS[name](function.parameters())
    before = function.weight.detach().clone()
    seen = torch.zeros(NUM_CLASSES, dtype=torch.bool)
    for step in range(3):
        optimizer.zero_grad()
        function(*batch(seed=step)).backward()
        seen[sampled_rows(function)] = True
        optimizer.step()
    moved = (function.weight.detach() != before).any(1)
    assert moved.any()
    assert not seen.all()
    assert not moved[~seen].any()


@pytest.mark.parametrize("name", ["sgd", "sparse-sgd-momentum", "sparse-adam", "adagrad"])
def test_classes_without_a_turn_keep_weight_and_momentum(name: str) -> None:
    """A class that was sampled before stands still in the steps that leave it out."""
    function = head(0.25, sparse_grad=True)
    optimizer = OPTIMIZERS[name](function.parameters())
    for step in range(6):
        optimizer.zero_grad()
        function(*batch(seed=step)).backward()
        left_out = torch.ones(NUM_CLASSES, dtype=torch.bool)
        left_out[sampled_rows(function)] = False
        state = {
            key: value.clone()
            for key, value in optimizer.state[function.weight].items()
            if torch.is_tensor(value) and value.shape == function.weight.shape
        }
        weight = function.weight.detach().clone()
        optimizer.step()
        assert torch.equal(function.weight[left_out], weight[left_out])
        assert not torch.equal(function.weight, weight)
        for key, value in state.items():
            assert torch.equal(optimizer.state[function.weight][key][left_out], value[left_out])


def test_correction_adds_the_log_of_what_was_left_out() -> None:
    embeddings, labels = batch()
    labels[0] = -100
    losses = []
    for correction in (False, True):
        function = head(0.4, sample_correction=correction, reduction="none", gamma=8.0)
        torch.manual_seed(3)
        losses.append(function(embeddings, labels))
    losses[1].sum().backward()
    rows = sampled_rows(function)
    places = torch.searchsorted(rows, labels.clamp_min(0)).masked_fill(labels < 0, -1)
    formula = CircleFormula(m=0.25, gamma=8.0)
    lse_pos, lse_neg = pair_logsumexp(
        embeddings, places, function.weight[rows], torch.arange(len(rows)), formula=formula
    )
    torch.testing.assert_close(losses[0], F.softplus(lse_pos + lse_neg, threshold=50))
    corrected = F.softplus(lse_pos + lse_neg + math.log(60 / 24), threshold=50)
    torch.testing.assert_close(losses[1], corrected)
    assert losses[1][0] == 0
    function = head(0.4, sample_correction=True, gamma=8.0)
    torch.manual_seed(3)
    torch.testing.assert_close(function(embeddings, labels), corrected[1:].mean())


def test_correction_brings_the_sampled_loss_to_that_of_all_classes() -> None:
    """On average over samples, where the classes left out are like the others."""
    generator = torch.Generator().manual_seed(4)
    embeddings = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(4000, 8, generator=generator, dtype=torch.float64)
    labels = torch.arange(6)
    options = {"gamma": 8.0, "generator": torch.Generator().manual_seed(5)}
    everything = class_circle_loss(embeddings, labels, weight, gamma=8.0)
    sampled, corrected = (
        torch.stack(
            [
                class_circle_loss(
                    embeddings,
                    labels,
                    weight,
                    sample_rate=0.1,
                    sample_correction=correction,
                    **options,
                )
                for _ in range(40)
            ]
        ).mean()
        for correction in (False, True)
    )
    assert (everything - sampled) > 2
    torch.testing.assert_close(corrected, everything, rtol=0, atol=0.1)


def test_generator_makes_samples_repeatable() -> None:
    embeddings, labels = batch()
    weight = head(1.0).weight
    first, second, other = (
        class_circle_loss(
            embeddings,
            labels,
            weight,
            sample_rate=0.3,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (1, 1, 2)
    )
    assert first == second
    assert first != other


def test_evaluation_samples_nothing() -> None:
    embeddings, labels = batch()
    function = head(0.2, sparse_grad=True, sample_correction=True)
    assert function.training
    evaluated = function.eval()(embeddings, labels)
    assert torch.equal(evaluated, class_circle_loss(embeddings, labels, function.weight))


def test_sampling_compiles_in_one_graph() -> None:
    embeddings, labels = batch()
    weight = head(1.0).weight

    def loss_of(embeddings: Tensor, weight: Tensor) -> Tensor:
        return class_circle_loss(embeddings, labels, weight, sample_rate=0.5)

    compiled = torch.compile(loss_of, fullgraph=True, backend="aot_eager")
    results = []
    for function in (loss_of, compiled):
        torch.manual_seed(3)
        loss = function(embeddings, weight)
        results.append((loss, *torch.autograd.grad(loss, (embeddings, weight))))
    for ours, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sample_rate", [1.0, 0.3])
def test_nothing_waits_for_a_device(sample_rate: float) -> None:
    """A traced graph runs as on a device: no label may be looked at, and nothing counted."""
    embeddings, labels = batch()
    weight = head(1.0).weight.detach()

    def step(embeddings: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        leaves = embeddings.requires_grad_(), weight.requires_grad_()
        loss = class_circle_loss(leaves[0], labels, leaves[1], sample_rate=sample_rate)
        return torch.autograd.grad(loss, leaves)

    graph = make_fx(step)(embeddings.detach(), weight).graph
    names = [str(node.target) for node in graph.nodes]
    assert any("pair_logsumexp_backward" in name for name in names)  # the path was traced
    assert ("aten.topk.default" in names) == (sample_rate < 1)
    waiting = ("nonzero", "_local_scalar_dense", "item", "masked_select", "unique", "equal")
    assert not [name for name in names if name.startswith(tuple(f"aten.{op}" for op in waiting))]
