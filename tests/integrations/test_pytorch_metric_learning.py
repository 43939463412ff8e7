"""The adapter beside the library's own CircleLoss: values, gradients, special cases, wrappers."""

from __future__ import annotations

import collections
import copy
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable

import numpy
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.places import EXAMPLES
from tests.support.regimes import REGIMES
from tests.support.yardstick import Yardstick

pytest.importorskip("pytorch_metric_learning")

from pytorch_metric_learning import distances, losses, miners, reducers, regularizers, samplers
from pytorch_metric_learning.trainers import MetricLossOnly
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

from circle_kernels.arguments import (
    FLOATING_DTYPES,
    INTEGER_DTYPES,
)
from circle_kernels.backends import choice, tiled
from circle_kernels.integrations.pytorch_metric_learning import CircleLoss

MINERS: dict[str, Callable[[], miners.BaseMiner]] = {
    "labels": lambda: None,
    "multi-similarity": miners.MultiSimilarityMiner,
    "batch-hard": miners.BatchHardMiner,
    "triplet-margin": miners.TripletMarginMiner,
    "pair-margin": lambda: miners.PairMarginMiner(pos_margin=0.2, neg_margin=1.5),
}


def batch(regime: str, rows: int = 96, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    embeddings, labels = REGIMES[regime](rows, 32, torch.Generator().manual_seed(rows))
    return embeddings.to(dtype), labels


def rows_and_gradient(
    loss_class: type, embeddings: Tensor, labels: Tensor | None, *arguments, **settings
) -> tuple[Tensor, Tensor]:
    """Every row's loss, and the gradient of the default reduction."""
    rows = loss_class(reducer=reducers.DoNothingReducer(), **settings)(
        embeddings, labels, *arguments
    )["loss"]["losses"]
    leaf = embeddings.detach().requires_grad_()
    loss_class(**settings)(leaf, labels, *arguments).backward()
    rows = torch.as_tensor(rows, dtype=embeddings.dtype).detach()
    return rows, leaf.grad


def assert_same(embeddings: Tensor, labels: Tensor | None, *arguments, **settings) -> None:
    """Rows to 1e-5; gradients as near to the float64 truth as twice the library's own error.

    A row's loss far below 1 is exp of a difference of logits, and those logits' rounding alone is
    more than 1e-5 of it, in the library as well.
    """
    ours, our_gradient = rows_and_gradient(CircleLoss, embeddings, labels, *arguments, **settings)
    rows, gradient = rows_and_gradient(
        losses.CircleLoss, embeddings, labels, *arguments, **settings
    )
    wide = [each.double() if torch.is_tensor(each) else each for each in arguments[1:2]]
    _, truth = rows_and_gradient(
        losses.CircleLoss,
        embeddings.double(),
        labels,
        *arguments[:1],
        *wide,
        *arguments[2:],
        **settings,
    )
    torch.testing.assert_close(ours, rows, rtol=1e-5, atol=1e-8)
    eps = torch.finfo(embeddings.dtype).eps
    gamma = settings.get("gamma", 80)
    # Where embeddings are equal, terms of this size cancel to 0; and in float64, where the truth is
    # no better than we are, what is left of them is rounding.
    cancels = bool((embeddings == embeddings[0]).all()) or embeddings.dtype == torch.float64
    scale = cancels * 4 * gamma / embeddings.norm(dim=1).min().item()
    Yardstick(truth, gradient).assert_close(our_gradient, eps, gamma, scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("regime", REGIMES)
def test_rows_and_gradient_are_the_librarys(regime: str, miner: str, dtype: torch.dtype) -> None:
    embeddings, labels = batch(regime, dtype=dtype)
    mine = MINERS[miner]()
    assert_same(embeddings, labels, None if mine is None else mine(embeddings, labels))


@pytest.mark.parametrize("rows", [3, 96, 300])
@pytest.mark.parametrize(("m", "gamma"), [(0.25, 256), (0.25, 32)])
def test_rows_and_gradient_at_other_settings_and_sizes(rows: int, m: float, gamma: float) -> None:
    embeddings, labels = batch("random", rows)
    for mine in (None, miners.BatchHardMiner(), miners.MultiSimilarityMiner()):
        indices = None if mine is None else mine(embeddings, labels)
        assert_same(embeddings, labels, indices, m=m, gamma=gamma)


@pytest.mark.parametrize("miner", MINERS)
def test_memory(miner: str) -> None:
    mine = MINERS[miner]()
    memories = [
        losses.CrossBatchMemory(kind(), 16, memory_size=100, miner=mine)
        for kind in (losses.CircleLoss, CircleLoss)
    ]
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        embeddings = torch.randn(32, 16, generator=generator)
        labels = torch.randint(0, 8, (32,), generator=generator)
        results = []
        for memory in memories:
            leaf = embeddings.clone().requires_grad_()
            loss = memory(leaf, labels)
            loss.backward()
            results.append((loss.detach(), leaf.grad))
        torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=0)
        torch.testing.assert_close(
            results[1][1], results[0][1], rtol=0, atol=2e-5 * results[0][1].abs().max().item()
        )


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


def test_gradient_of_references() -> None:
    embeddings, labels = batch("random", 40)
    for indices in (None, lmu.get_all_pairs_indices(labels, labels[:30]), batch_hard(embeddings)):
        gradients = []
        for loss in (losses.CircleLoss(), CircleLoss()):
            references = embeddings[:30].flip(1).requires_grad_()
            loss(embeddings, labels, indices, references, labels[:30]).backward()
            gradients.append(references.grad)
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def batch_hard(embeddings: Tensor) -> tuple[Tensor, ...]:
    """A few triplets among 30 references, one of them twice."""
    anchors = torch.tensor([0, 1, 1, 7])
    return anchors, torch.tensor([3, 4, 4, 29]), torch.tensor([9, 8, 8, 11])


@pytest.mark.parametrize("way", ["short", "long"])
def test_triplets_become_pairs_and_what_is_listed_twice_counts_once(way: str) -> None:
    embeddings, labels = batch("random", 40)
    triplets = lmu.get_all_triplets_indices(labels)
    if way == "short":
        triplets = tuple(each[::97] for each in triplets)
    twice = tuple(torch.cat([each, each.flip(0)]) for each in triplets)
    once, again = (
        rows_and_gradient(CircleLoss, embeddings, None, each)[0] for each in (triplets, twice)
    )
    assert torch.equal(once, again)
    assert_same(embeddings, None, twice)


def test_labels_or_indices_of_the_same_pairs_give_the_same_bits() -> None:
    embeddings, labels = batch("random", 120)
    references, _ = batch("clusters", 120)
    for ref_emb, ref_labels in (
        (None, None),
        (embeddings, labels.clone()),
        (references, labels.clone()),
        (references, labels),
        (references[:70], labels[10:80]),
    ):
        pairs = lmu.get_all_pairs_indices(labels, ref_labels)
        results = [
            rows_and_gradient(CircleLoss, embeddings, *arguments)
            for arguments in (
                (labels, None, ref_emb, ref_labels),
                (labels, pairs, ref_emb, ref_labels),
                (None, pairs, ref_emb, None),
            )
        ]
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_one_positive_and_one_negative_pair_have_loss_0() -> None:
    embeddings, labels = batch("random", 4)
    one = torch.tensor([0])
    pairs = (one, one + 1, one, one + 2)
    assert_same(embeddings, labels, pairs)
    assert CircleLoss()(embeddings, indices_tuple=pairs) == 0
    assert_same(
        embeddings[:1], labels[:1], None, embeddings[1:3], torch.stack([labels[0], labels[0] + 1])
    )
    assert_same(embeddings[:1], labels[:1])
    assert_same(embeddings[:2], torch.tensor([5, 5]))


def test_rows_without_positives_or_without_negatives_have_loss_0() -> None:
    embeddings, labels = batch("random", 64)
    a1, p, a2, n = lmu.get_all_pairs_indices(labels)
    keep = (a1 % 3 != 0, a2 % 4 != 0)
    pairs = (a1[keep[0]], p[keep[0]], a2[keep[1]], n[keep[1]])
    assert_same(embeddings, labels, pairs)
    rows, _ = rows_and_gradient(CircleLoss, embeddings, labels, pairs)
    assert (rows[::12] == 0).all()
    assert rows.shape == (64, 1)
    nobody = (a1[:0], p[:0], a2, n)
    leaf = embeddings.clone().requires_grad_()
    loss = CircleLoss()(leaf, labels, nobody)
    loss.backward()
    assert loss == 0
    assert not leaf.grad.any()


def test_wrong_arguments_are_errors_as_in_the_library() -> None:
    embeddings, labels = batch("random", 8)
    for arguments in (
        (embeddings,),
        (embeddings, None, None, embeddings),
        (embeddings, labels[:, None]),
        (embeddings, labels[:5]),
        (embeddings[0], labels),
    ):
        for loss in (losses.CircleLoss(), CircleLoss()):
            with pytest.raises(ValueError, match=r"labels|embeddings"):
                loss(*arguments)
    with pytest.raises(AssertionError, match="CosineSimilarity"):
        CircleLoss(distance=distances.LpDistance())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_loss_and_rows_have_the_embeddings_dtype(dtype: torch.dtype) -> None:
    embeddings, labels = batch("random", 32, dtype)
    for indices in (None, lmu.get_all_pairs_indices(labels), lmu.get_all_triplets_indices(labels)):
        leaf = embeddings.clone().requires_grad_()
        loss = CircleLoss()(leaf, labels, indices)
        loss.backward()
        assert loss.dtype == leaf.grad.dtype == dtype
        assert loss.isfinite()
        assert leaf.grad.isfinite().all()


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


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"distance": lambda: distances.CosineSimilarity(p=1)}, "p=1"),
        ({"distance": lambda: distances.CosineSimilarity(power=2)}, "power=2"),
        ({"gamma": lambda: torch.tensor(80.0)}, "gamma"),
    ],
)
def test_what_cannot_be_fused_is_the_librarys_with_one_warning(settings, reason: str) -> None:
    embeddings, labels = batch("random", 40)
    ours = CircleLoss(**{name: make() for name, make in settings.items()})
    theirs = losses.CircleLoss(**{name: make() for name, make in settings.items()})
    with pytest.warns(UserWarning, match=reason) as caught:
        first, second = ours(embeddings, labels), ours(embeddings, labels)
    assert len(caught) == 1
    assert first == second == theirs(embeddings, labels)


def test_reason_that_holds_a_value_is_told_once() -> None:
    embeddings, labels = batch("random", 40)
    gamma = torch.nn.Parameter(torch.tensor(80.0))
    loss = CircleLoss(gamma=gamma)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(5):
            loss(embeddings, labels).backward()
            with torch.no_grad():
                gamma -= 0.1
        for power in (2, 3):  # of another kind, and so told
            loss.distance.power = power
            loss(embeddings, labels)
    words = [str(each.message) for each in caught]
    assert len(words) == 2
    assert "gamma must be a real number, got Parameter" in words[0]
    assert "power=2" in words[1]
    assert len(loss._warned) == 2
    assert gamma.grad != 0


@pytest.mark.parametrize("m", [1.5, -3])
def test_any_margin_is_fused(m: float) -> None:
    embeddings, labels = batch("random", 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(embeddings, labels, None, m=m)


def test_another_class_of_distance_is_the_librarys() -> None:
    class Doubled(distances.CosineSimilarity):
        def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
            return 2 * super().compute_mat(query_emb, ref_emb)

    embeddings, labels = batch("random", 40)
    with pytest.warns(UserWarning, match="Doubled"):
        loss = CircleLoss(distance=Doubled())(embeddings, labels)
    assert loss == losses.CircleLoss(distance=Doubled())(embeddings, labels)


def test_plain_inner_products_are_fused() -> None:
    embeddings, labels = batch("clusters", 40)
    results = []
    for kind in (losses.CircleLoss, CircleLoss):
        loss = kind()
        loss.distance.normalize_embeddings = False
        results.append(loss(embeddings / 4, labels))
    torch.testing.assert_close(*results, rtol=1e-5, atol=0)


@pytest.mark.parametrize("rows", [6, 200])
def test_pair_that_is_positive_and_negative_is_what_the_library_makes_of_it(rows: int) -> None:
    embeddings, _ = batch("random", rows)
    pairs = tuple(torch.tensor(each) for each in ([0, 1, 2], [1, 2, 3], [0, 1, 4], [1, 3, 5]))
    results = []
    for loss in (losses.CircleLoss(), CircleLoss()):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                results.append(loss(embeddings, indices_tuple=pairs).item())
            except AssertionError as error:  # since 2.9
                results.append(str(error))
        if isinstance(loss, CircleLoss):
            assert "both as positive and as negative" in str(caught[0].message)
    assert results[0] == results[1]


def random_tuple(generator: torch.Generator, rows: int, columns: int) -> list[Tensor]:
    """Triplets or lists of pairs: of random pairs, or of all; now and then with faults."""

    def draw(*choices: object) -> object:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    if draw(True, False):
        kinds = torch.randint(0, draw(2, 3), (rows, columns), generator=generator)
        indices = [*torch.where(kinds == 0), *torch.where(kinds == 1)]
        if draw(True, False) and len(indices[0]):  # a pair that is both
            indices[2] = torch.cat([indices[2], indices[0][:1]])
            indices[3] = torch.cat([indices[3], indices[1][:1] - draw(0, columns)])
    else:
        lowest, beyond = draw(0, 0, 1), draw(*[0] * 10, 1)
        sizes = [draw(0, 1, 2, 5, 20, 60) for _ in range(2)]
        indices = [
            torch.randint(-lowest * bound, bound + beyond, (size,), generator=generator)
            for size in sizes
            for bound in (rows, columns)
        ]
    if draw(*[False] * 5, True):
        dtype = draw(torch.bool, torch.uint8, torch.int16, torch.int32, torch.float32)
        which = draw(0, 1, 2, 3, None)
        indices = [each.to(dtype) if which in (i, None) else each for i, each in enumerate(indices)]
    if draw(*[False] * 19, True):
        which = draw(0, 1, 2, 3)
        indices[which] = indices[which][: draw(1, 2)]
    return indices[: draw(*[4] * 15, 3)]


@pytest.mark.filterwarnings("ignore")
def test_random_tuples_give_the_librarys_value_or_error() -> None:
    generator = torch.Generator().manual_seed(14)
    outcomes = collections.Counter()
    for _ in range(1500):
        rows, columns = (int(torch.randint(1, 9, (), generator=generator)) for _ in range(2))
        embeddings = torch.randn(rows, 4, generator=generator)
        references = torch.randn(columns, 4, generator=generator)
        ref_emb = references if torch.rand((), generator=generator) < 0.7 else None
        indices = random_tuple(generator, rows, rows if ref_emb is None else columns)
        results = []
        for kind in (losses.CircleLoss, CircleLoss):
            try:
                results.append(rows_and_gradient(kind, embeddings, None, indices, ref_emb))
            except (AssertionError, IndexError) as error:
                results.append(error)
        outcomes[type(results[0])] += 1
        assert type(results[0]) is type(results[1]), f"{indices}: {results}"
        if isinstance(results[0], tuple):
            torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)
    assert min(outcomes.values()) > 50
    assert outcomes[tuple] > 500


def test_second_derivative_is_refused_with_what_has_one() -> None:
    embeddings, labels = batch("random", 24)
    few = lmu.get_all_pairs_indices(labels)
    for indices in (None, few, tuple(each[:4] for each in few)):
        leaf = embeddings.clone().requires_grad_()
        loss = CircleLoss()(leaf, labels, indices)
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="pytorch-metric-learning's own CircleLoss"):
            gradient.square().sum().backward()


def test_reducers_regularizers_and_statistics() -> None:
    embeddings, labels = batch("random", 48)
    for settings in (
        {"reducer": reducers.MeanReducer()},
        {"reducer": reducers.SumReducer()},
        {"reducer": reducers.ThresholdReducer(low=50, high=80)},
        {"reducer": reducers.PerAnchorReducer()},
        {"reducer": reducers.ClassWeightedReducer(torch.rand(48))},
        {"embedding_regularizer": regularizers.LpRegularizer(), "embedding_reg_weight": 0.3},
    ):
        results = []
        for kind in (losses.CircleLoss, CircleLoss):
            loss = kind(
                collect_stats=True,
                distance=distances.CosineSimilarity(collect_stats=True),
                **copy.deepcopy(settings),
            )
            value = loss(embeddings, labels)
            statistics = {
                name: value
                for part in (loss, loss.reducer, loss.distance)
                for name, value in vars(part).items()
                if name in (*getattr(part, "_record_these_stats", ()), "m", "op", "on")
            }
            results.append((value, statistics))
        torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=0)
        assert "initial_avg_query_norm" in results[0][1]


def test_module_is_what_the_librarys_is() -> None:
    embeddings, labels = batch("random", 48)
    loss = CircleLoss(m=0.25, gamma=64)
    assert type(loss).__name__ == "CircleLoss"
    assert isinstance(loss, losses.BaseMetricLossFunction)
    assert repr(loss) == repr(losses.CircleLoss(m=0.25, gamma=64))
    for other in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
        assert torch.equal(other(embeddings, labels), loss(embeddings, labels))
    loss.load_state_dict(losses.CircleLoss().state_dict())


@pytest.mark.parametrize("symmetric", [True, False])
def test_self_supervised_loss(symmetric: bool) -> None:
    embeddings, _ = batch("random", 30)
    views = embeddings + 0.3 * batch("clusters", 30)[0]
    ours, theirs = (
        losses.SelfSupervisedLoss(kind(), symmetric=symmetric)(embeddings, views)
        for kind in (CircleLoss, losses.CircleLoss)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)


def test_distributed_wrapper_takes_it() -> None:
    embeddings, labels = batch("random", 30)
    with pytest.warns(UserWarning, match="non-distributed"):
        loss = DistributedLossWrapper(CircleLoss())(embeddings, labels)
    assert torch.equal(loss, CircleLoss()(embeddings, labels))


def test_under_autocast_nothing_is_cast_down() -> None:
    embeddings, labels = batch("random", 60)
    for mine in MINERS.values():
        indices = None if mine() is None else mine()(embeddings, labels)
        with torch.autocast("cpu", torch.bfloat16):
            loss = CircleLoss()(embeddings, labels, indices)
        assert torch.equal(loss, CircleLoss()(embeddings, labels, indices))


class LargestFloatTensor(TorchDispatchMode):
    """Numbers in the largest floating-point tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple) else (result,):
            if isinstance(each, Tensor) and each.is_floating_point():
                self.numbers = max(self.numbers, each.numel())
        return result


@pytest.mark.parametrize("miner", MINERS)
def test_no_matrix_of_floats(miner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_BEST_BACKEND", {})
    monkeypatch.setattr(tiled, "_CPU_TILE", 64)
    embeddings, labels = batch("random", 256)
    mine = MINERS[miner]()
    indices = None if mine is None else mine(embeddings, labels)
    leaf = embeddings.clone().requires_grad_()
    with LargestFloatTensor() as largest:
        CircleLoss()(leaf, labels, indices).backward()
    assert 0 < largest.numbers < 256 * 256


class Both(torch.nn.Module):
    """The adapter's loss, which drives the training, beside the library's at the same step."""

    def __init__(self, **settings: float) -> None:
        super().__init__()
        self.ours, self.theirs = CircleLoss(**settings), losses.CircleLoss(**settings)
        self.values: list[tuple[float, float]] = []

    def forward(self, embeddings: Tensor, labels: Tensor, indices) -> Tensor:
        loss = self.ours(embeddings, labels, indices)
        with torch.no_grad():
            self.values.append((loss.item(), self.theirs(embeddings, labels, indices).item()))
        return loss


# Two runs of their own drift apart with either loss: rounding errors grow tenfold every few steps.
@pytest.mark.parametrize("miner", ["labels", "multi-similarity"])
def test_trainer_sees_the_same_losses_for_50_steps(
    miner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("fontTools", "matplotlib", "PIL"):
        pytest.importorskip(package)
    sys.path.insert(0, str(EXAMPLES))
    from glyphs import data
    from glyphs.training import new_network

    letters = data.split_classes(data.render_glyphs()).train.select(torch.arange(100))
    images, labels = letters.images_and_labels()
    monkeypatch.setattr(c_f, "NUMPY_RANDOM", numpy.random.default_rng(0))  # of the sampler
    network, both, mine = new_network(0), Both(m=0.25, gamma=32), MINERS[miner]()
    trainer = MetricLossOnly(
        models={"trunk": network},
        optimizers={"trunk_optimizer": torch.optim.Adam(network.parameters(), 1e-3)},
        batch_size=64,
        loss_funcs={"metric_loss": both},
        dataset=torch.utils.data.TensorDataset(images, labels),
        mining_funcs={} if mine is None else {"tuple_miner": mine},
        sampler=samplers.MPerClassSampler(labels, m=4, length_before_new_iter=64 * 50),
        iterations_per_epoch=50,
        data_device=torch.device("cpu"),
        dataloader_num_workers=0,
    )
    trainer.train()
    ours, theirs = torch.tensor(both.values).T
    assert len(ours) == 50
    assert (theirs > 1).all()
    if mine is None:  # what a miner leaves out is what has become easy
        assert theirs[-10:].mean() < 0.9 * theirs[:10].mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)


def test_without_the_library_the_import_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['pytorch_metric_learning'] = None\n"
        "import circle_kernels.integrations\n"
        "import circle_kernels.integrations.pytorch_metric_learning"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode != 0
    assert "pip install 'pytorch-metric-learning>=2.8'" in result.stderr.splitlines()[-1]
