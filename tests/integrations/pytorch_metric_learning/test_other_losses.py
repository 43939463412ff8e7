"""The drop-ins of other losses give the library's values and gradients in float64."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("pytorch_metric_learning")

from pytorch_metric_learning import distances, losses, reducers, regularizers
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

from circle_kernels.integrations import pytorch_metric_learning as drop_ins
from tests.integrations.pytorch_metric_learning.of_losses import (
    CLASSES,
    DIM,
    LOSSES,
    MINERS,
    OVER_PAIRS,
    WITH_PROXIES,
    assert_same,
    batch,
    both,
    make,
)
from tests.support.regimes import REGIMES

pytestmark = pytest.mark.filterwarnings("ignore:circle_kernels. the tiled backend")

REDUCERS = {
    "mean": reducers.MeanReducer(),
    "non-zero": reducers.AvgNonZeroReducer(),
    "threshold": reducers.ThresholdReducer(low=0.1, high=4),
    "per-anchor": reducers.PerAnchorReducer(),
    "nothing": reducers.DoNothingReducer(),
    "sum": reducers.SumReducer(),
    "class-weighted": reducers.ClassWeightedReducer(torch.rand(CLASSES, dtype=torch.float64)),
}


@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients_are_the_librarys(name: str, regime: str, miner: str) -> None:
    embeddings, labels = batch(regime)
    mine = MINERS[miner]
    indices = None if mine is None else mine(embeddings, labels)
    weighs = name == "ProxyAnchorLoss" and indices is not None
    theirs, ours = both(name, reducer=reducers.DoNothingReducer())
    assert_same(theirs, ours, embeddings, labels, indices, fused=not weighs)


@pytest.mark.parametrize("miner", ["labels", "batch-hard"])
@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("name", LOSSES)
def test_reducers_get_what_they_expect(name: str, reducer: str, miner: str) -> None:
    embeddings, labels = batch("random")
    indices = None if miner == "labels" else MINERS[miner](embeddings, labels)
    theirs, ours = both(name, reducer=REDUCERS[reducer])
    if name == "ProxyAnchorLoss" and reducer == "class-weighted":
        pytest.skip("its losses are of proxies, whose labels the reducer does not know")
    if name == "ProxyAnchorLoss" and indices is not None:
        indices = tuple(each[:0] for each in indices)  # of which all weights are 1
    assert_same(theirs, ours, embeddings, labels, indices)


@pytest.mark.parametrize("name", LOSSES)
def test_regularizers_divisors_and_statistics(name: str) -> None:
    embeddings, labels = batch("random")
    settings = {"embedding_regularizer": regularizers.LpRegularizer(), "collect_stats": True}
    if name in WITH_PROXIES:
        settings |= {"weight_regularizer": regularizers.LpRegularizer(), "weight_reg_weight": 0.3}
    distance = type(make(losses, name).distance)
    more = {"power": 2} if distance is distances.LpDistance else {}
    theirs, ours = both(name, distance=distance(collect_stats=True, **more), **settings)
    assert_same(theirs, ours, embeddings, labels)
    found, wanted = (_statistics(loss) for loss in (ours, theirs))
    assert "initial_avg_query_norm" in " ".join(wanted)
    assert found == pytest.approx(wanted, rel=1e-12)


def _statistics(loss) -> dict[str, float]:
    parts = {"loss": loss, "distance": loss.distance}
    return {
        f"{part} {name}": getattr(module, name)
        for part, module in parts.items()
        for name in getattr(module, "_record_these_stats", ())
    }


@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("name", OVER_PAIRS)
def test_references(name: str, miner: str) -> None:
    embeddings, labels = batch("random", 20)
    others, other_labels = batch("clusters", 14, seed=1)
    mine = MINERS[miner]
    for references in (
        (others, other_labels),
        (embeddings, labels),
        (embeddings, labels.clone()),
        (embeddings.flip(1), labels),
    ):
        indices = None if mine is None else mine(embeddings, labels, *references)
        if indices is not None and references[1] is labels and references[0] is not embeddings:
            continue  # of which miners list pairs that are both
        for reducer in (None, reducers.DoNothingReducer()):
            theirs, ours = both(name, reducer=reducer)
            assert_same(theirs, ours, embeddings, labels, indices, references)


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("name", LOSSES)
def test_smallest_batches(name: str, rows: int) -> None:
    embeddings, _ = batch("random", 3)
    for labels in (torch.zeros(rows), torch.arange(rows), torch.tensor([1, 1, 0])[:rows]):
        theirs, ours = both(name)
        assert_same(theirs, ours, embeddings[:rows], labels.long())


@pytest.mark.parametrize("name", OVER_PAIRS)
def test_lists_of_positives_or_of_negatives_alone(name: str) -> None:
    embeddings, labels = batch("random")
    a1, p, a2, n = lmu.get_all_pairs_indices(labels)
    for indices in ((a1, p, a2[:0], n[:0]), (a1[:0], p[:0], a2, n), (a1[:1], p[:1], a2[:1], n[:1])):
        assert_same(*both(name), embeddings, labels, indices)


def test_what_a_list_holds_twice_counts_twice_in_ntxent_only() -> None:
    embeddings, labels = batch("random", 16)
    triplets = lmu.get_all_triplets_indices(labels)
    for indices in (triplets, tuple(each[::7] for each in triplets)):
        twice = tuple(torch.cat([each, each[::3]]) for each in indices)
        for name in OVER_PAIRS:
            for reducer in (None, reducers.DoNothingReducer()):
                assert_same(*both(name, reducer=reducer), embeddings, labels, twice)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("MultiSimilarityLoss", {"alpha": 5, "beta": 20.0, "base": -0.2}),
        ("SupConLoss", {"temperature": 1}),
        ("NTXentLoss", {"temperature": 0.5}),
        ("NPairsLoss", {"distance": distances.CosineSimilarity()}),
        ("ProxyAnchorLoss", {"margin": 0.3, "alpha": 10}),
        ("ProxyNCALoss", {"softmax_scale": 100}),
        ("ProxyNCALoss", {"softmax_scale": 9, "distance": distances.CosineSimilarity()}),
        ("ProxyNCALoss", {"distance": distances.DotProductSimilarity(normalize_embeddings=False)}),
        ("ArcFaceLoss", {"margin": 120, "scale": 7}),
        ("CosFaceLoss", {"margin": 0.1, "scale": 20}),
    ],
)
def test_other_settings(name: str, settings: dict) -> None:
    for regime in ("random", "clusters", "duplicates_and_antipodes"):
        embeddings, labels = batch(regime)
        assert_same(*both(name, **settings), embeddings, labels)


def test_rows_whose_probability_is_0_are_left_out_of_proxy_nca() -> None:
    embeddings, labels = batch("duplicates_and_antipodes")
    embeddings = embeddings.float()
    theirs, ours = (
        make(module, "ProxyNCALoss", softmax_scale=200, reducer=reducers.DoNothingReducer())
        for module in (losses, drop_ins)
    )
    wanted, found = (loss(embeddings, labels)["loss"] for loss in (theirs, ours))
    assert 0 < len(wanted["losses"]) < len(labels)
    assert torch.equal(found["indices"], wanted["indices"])
    torch.testing.assert_close(found["losses"], wanted["losses"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("name", OVER_PAIRS)
def test_memory_of_earlier_batches(name: str, miner: str) -> None:
    memories = [
        losses.CrossBatchMemory(loss, DIM, memory_size=30, miner=MINERS[miner])
        for loss in both(name)
    ]
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        embeddings = torch.randn(12, DIM, generator=generator, dtype=torch.float64)
        labels = torch.randint(0, 4, (12,), generator=generator)
        values = []
        for memory in memories:
            leaf = embeddings.clone().requires_grad_()
            loss = memory(leaf, labels)
            values.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
        torch.testing.assert_close(values[1], values[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", OVER_PAIRS)
def test_wrappers(name: str, symmetric: bool) -> None:
    embeddings, labels = batch("random")
    views = embeddings + 0.3 * embeddings.flip(1)
    values = [
        losses.SelfSupervisedLoss(loss, symmetric=symmetric)(embeddings, views)
        for loss in both(name)
    ]
    torch.testing.assert_close(values[1], values[0], rtol=1e-12, atol=0)
    loss = make(drop_ins, name)
    with pytest.warns(UserWarning, match="non-distributed"):
        value = DistributedLossWrapper(loss)(embeddings, labels)
    assert torch.equal(value, loss(embeddings, labels))


@pytest.mark.parametrize("name", WITH_PROXIES)
def test_parameters_are_the_librarys(name: str) -> None:
    embeddings, labels = batch("random")
    theirs, ours = both(name)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict({key: 2 * value for key, value in ours.state_dict().items()})
    ours.load_state_dict(theirs.state_dict())
    assert_same(theirs, ours, embeddings, labels)
    assert torch.equal(ours.get_logits(embeddings), theirs.get_logits(embeddings))


@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("name", LOSSES)
def test_under_autocast_nothing_is_cast_down(name: str, miner: str) -> None:
    embeddings, labels = batch("random", 40)
    embeddings = embeddings.float()
    mine = MINERS[miner]
    indices = None if mine is None else mine(embeddings, labels)
    if name == "ProxyAnchorLoss" and indices is not None:
        pytest.skip("is the library's")
    loss = make(drop_ins, name).float()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(embeddings, labels, indices)
    assert torch.equal(value, loss(embeddings, labels, indices))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_have_the_embeddings_dtype(name: str, dtype: torch.dtype) -> None:
    embeddings, labels = batch("random")
    leaf = embeddings.to(dtype).requires_grad_()
    for indices in (None, MINERS["batch-hard"](embeddings, labels)):
        if name == "ProxyAnchorLoss" and indices is not None:
            continue
        loss = make(drop_ins, name)(leaf, labels, indices)
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert loss.dtype == gradient.dtype == dtype
        assert loss.isfinite()
        assert gradient.isfinite().all()
