"""The adapter inside what the library has around a loss: memories, reducers, trainers."""

from __future__ import annotations

import copy
import pickle
import sys

import numpy
import pytest
import torch
from torch import Tensor

from tests.support.places import EXAMPLES

pytest.importorskip("pytorch_metric_learning")

from pytorch_metric_learning import distances, losses, reducers, regularizers, samplers
from pytorch_metric_learning.trainers import MetricLossOnly
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

from circle_kernels.integrations.pytorch_metric_learning import CircleLoss
from tests.integrations.pytorch_metric_learning.comparison import MINERS, batch


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
def test_trainer_sees_the_same_losses_for_30_steps(
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
        sampler=samplers.MPerClassSampler(labels, m=4, length_before_new_iter=64 * 30),
        iterations_per_epoch=30,
        data_device=torch.device("cpu"),
        dataloader_num_workers=0,
    )
    trainer.train()
    ours, theirs = torch.tensor(both.values).T
    assert len(ours) == 30
    assert (theirs > 1).all()
    if mine is None:  # what a miner leaves out is what has become easy
        assert theirs[-10:].mean() < 0.9 * theirs[:10].mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
