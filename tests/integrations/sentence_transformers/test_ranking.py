"""Multiple negatives ranking is the library's, value and gradient."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.targets import INTERPRETED

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

if INTERPRETED:
    pytest.skip(
        "nothing of Triton is tested, and the import takes seconds", allow_module_level=True
    )
library = pytest.importorskip("sentence_transformers")

from sentence_transformers import util  # noqa: E402
from sentence_transformers.sentence_transformer import losses  # noqa: E402

from circle_kernels.integrations.sentence_transformers import (  # noqa: E402
    MultipleNegativesRankingLoss,
    MultipleNegativesSymmetricRankingLoss,
)
from tests.integrations.sentence_transformers.models import columns, corpus  # noqa: E402

DIRECTIONS = [
    ("query_to_doc", *others)
    for count in range(4)
    for others in itertools.combinations(("query_to_query", "doc_to_query", "doc_to_doc"), count)
]
BOTH_WAYS = ("query_to_doc", "doc_to_query")
PARTITIONS = [
    *((directions, "joint") for directions in DIRECTIONS),
    (("query_to_doc",), "per_direction"),
    (BOTH_WAYS, "per_direction"),
]
MODES = ("in_batch_negatives", "hard_negatives", "all_negatives")


def embedded(
    count: int, rows: int = 13, kind: str = "random", dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Columns of embeddings; those of one place are similar, as in training."""
    generator = torch.Generator().manual_seed(7)

    def normal() -> Tensor:
        return torch.randn(rows, 10, generator=generator, dtype=torch.float64)

    base = normal()
    noise = {"random": 3.0, "near": 1e-3, "collapsed": 1.0}[kind]
    if kind == "collapsed":  # all alike: every negative is as good as the positive
        base = base[:1] + 1e-4 * base
        noise = 1e-4
    return [(base + noise * normal()).to(dtype).requires_grad_() for _ in range(count)]


def value_and_gradients(loss: nn.Module, given: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    leaves = [each.detach().clone().requires_grad_() for each in given]
    value = loss.compute_loss_from_embeddings(leaves, None)
    value.backward()
    return value.detach(), [each.grad for each in leaves]


def assert_is_the_librarys(given: list[Tensor], tolerance: float = 1e-12, **options: Any) -> None:
    ours = value_and_gradients(MultipleNegativesRankingLoss(nn.Identity(), **options), given)
    theirs = value_and_gradients(
        losses.MultipleNegativesRankingLoss(nn.Identity(), **options), given
    )
    torch.testing.assert_close(ours[0], theirs[0], rtol=tolerance, atol=tolerance)
    largest = max(each.abs().max().item() for each in theirs[1])
    for found, wanted in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * max(largest, 1))


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize(("directions", "partition"), PARTITIONS)
def test_directions_and_partitions_are_the_librarys(
    directions: tuple[str, ...], partition: str, count: int
) -> None:
    for kind in ("random", "near", "collapsed"):
        given = embedded(count, kind=kind)
        assert_is_the_librarys(given, directions=directions, partition_mode=partition)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("directions", "partition"), [PARTITIONS[0], PARTITIONS[7], PARTITIONS[-1]]
)
def test_harder_negatives_are_the_librarys(
    directions: tuple[str, ...], partition: str, mode: str, count: int
) -> None:
    for kind in ("random", "collapsed"):
        assert_is_the_librarys(
            embedded(count, kind=kind),
            directions=directions,
            partition_mode=partition,
            hardness_mode=mode,
            hardness_strength=9.0,
        )


@pytest.mark.parametrize("count", [2, 4])
def test_inner_products_and_scales_are_the_librarys(count: int) -> None:
    for scale in (0.5, 100.0):
        assert_is_the_librarys(embedded(count), scale=scale)
        assert_is_the_librarys(
            embedded(count),
            scale=scale / 50,
            similarity_fct=util.dot_score,
            hardness_mode="hard_negatives",
            hardness_strength=0.3,
        )


@pytest.mark.parametrize(("directions", "partition"), PARTITIONS)
def test_one_anchor_alone_is_the_librarys(directions: tuple[str, ...], partition: str) -> None:
    for count in (2, 3):
        given = embedded(count, rows=1)
        assert_is_the_librarys(given, directions=directions, partition_mode=partition)


@pytest.mark.parametrize("backend", ["cpu", "tiled", "reference"])
def test_backends_agree_in_float32(backend: str) -> None:
    given = embedded(3, rows=70, dtype=torch.float32)
    exact = [each.detach().double() for each in given]
    for options in ({}, {"directions": BOTH_WAYS, "partition_mode": "per_direction"}):
        loss = MultipleNegativesRankingLoss(nn.Identity(), backend=backend, **options)
        theirs = losses.MultipleNegativesRankingLoss(nn.Identity(), **options)
        value, gradients = value_and_gradients(loss, given)
        expected, wanted = value_and_gradients(theirs, exact)
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
        for found, gradient in zip(gradients, wanted, strict=True):
            assert (found - gradient).norm() <= 1e-5 * gradient.norm()


def test_symmetric_loss_is_the_librarys() -> None:
    with pytest.warns(DeprecationWarning, match="SymmetricRankingLoss"):
        theirs = losses.MultipleNegativesSymmetricRankingLoss(nn.Identity(), scale=30.0)
    for count in (2, 3):
        ours = MultipleNegativesSymmetricRankingLoss(nn.Identity(), scale=30.0)
        found = value_and_gradients(ours, embedded(count))
        expected = value_and_gradients(theirs, embedded(count))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_sentences_are_embedded_as_by_the_library(model: SentenceTransformer) -> None:
    features = [model.preprocess(each) for each in columns(3)]
    found = MultipleNegativesRankingLoss(model)([dict(each) for each in features], None)
    expected = losses.MultipleNegativesRankingLoss(model)([dict(each) for each in features], None)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    of_model = [torch.autograd.grad(each, [*model.parameters()]) for each in (found, expected)]
    for ours, theirs in zip(*of_model, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_losses_of_the_library_can_wrap_it(model: SentenceTransformer) -> None:
    features = [model.preprocess(each) for each in columns(3)]
    values = []
    for kind in (MultipleNegativesRankingLoss, losses.MultipleNegativesRankingLoss):
        wrapped = losses.MatryoshkaLoss(model, kind(model), [8, 4], matryoshka_weights=[1.0, 0.5])
        values.append(wrapped([dict(each) for each in features], None))
    torch.testing.assert_close(*values, rtol=1e-6, atol=0)


@pytest.mark.parametrize("mini_batch_size", [None, 5])
def test_trainer_of_the_library_separates_the_topics(
    model: SentenceTransformer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mini_batch_size: int | None,
) -> None:
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    sentences, labels = corpus(32)
    names = ("anchor", "positive", "negative")
    # Batches of four in order hold one sentence of each topic, and hard negatives of the next.
    order = [topic * 32 + place for place in range(0, 32, 2) for topic in range(4)]
    data = {
        "anchor": [sentences[i] for i in order],
        "positive": [sentences[i + 1] for i in order],
        "negative": [sentences[(i + 32) % 128] for i in order],
    }

    def own_topic_is_nearest() -> float:
        embeddings = torch.nn.functional.normalize(model.encode(sentences, convert_to_tensor=True))
        similarity = (embeddings @ embeddings.T).fill_diagonal_(-1)
        return (torch.tensor(labels)[similarity.argmax(1)] == torch.tensor(labels)).float().mean()

    before = own_topic_is_nearest()
    loss = MultipleNegativesRankingLoss(model, mini_batch_size=mini_batch_size)
    dataset = datasets.Dataset.from_dict({name: data[name] for name in names})
    trainer = library.SentenceTransformerTrainer(
        model,
        library.SentenceTransformerTrainingArguments(
            str(tmp_path),
            max_steps=60,
            lr_scheduler_type="constant",
            per_device_train_batch_size=16,
            learning_rate=2e-2,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=dataset,
        eval_dataset=dataset,
        loss=loss,
    )
    at_first = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < at_first / 1.5
    assert before < 0.8
    assert own_topic_is_nearest() > 0.9
    model.save(str(tmp_path / "model"))
    card = (tmp_path / "model" / "README.md").read_text("utf-8")
    assert "MultipleNegativesRankingLoss" in card
    assert '"similarity_fct": "cos_sim"' in card
    assert "oord2019representation" in card
    assert ("gao2021scaling" in card) == (mini_batch_size is not None)


def test_model_card_lists_what_the_librarys_does() -> None:
    options: dict[str, Any] = {
        "scale": 30.0,
        "similarity_fct": util.dot_score,
        "directions": BOTH_WAYS,
        "hardness_mode": "all_negatives",
        "hardness_strength": 5.0,
    }
    loss = MultipleNegativesRankingLoss(nn.Identity(), **options)
    theirs = losses.MultipleNegativesRankingLoss(nn.Identity(), **options)
    assert loss.get_config_dict() == theirs.get_config_dict()
    assert loss.temperature == theirs.temperature
    loss = MultipleNegativesRankingLoss(nn.Identity(), mini_batch_size=8)
    assert loss.get_config_dict()["mini_batch_size"] == 8


def test_numbers_may_be_changed_later() -> None:
    loss = MultipleNegativesRankingLoss(nn.Identity())
    loss.scale = 5.0
    found = loss.compute_loss_from_embeddings(embedded(2))
    theirs = losses.MultipleNegativesRankingLoss(nn.Identity(), scale=5.0)
    torch.testing.assert_close(found, theirs.compute_loss_from_embeddings(embedded(2), None))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scale": 0}, ValueError, "scale must be greater than 0"),
        ({"scale": "20"}, TypeError, "scale must be a real number, got str"),
        (
            {"similarity_fct": util.euclidean_sim},
            ValueError,
            r"similarity_fct must be .*cos_sim or \.dot_score.* got function.*library's own Mult",
        ),
        ({"directions": "query_to_doc"}, TypeError, "directions must be a tuple of names, got the"),
        ({"directions": ("doc_to_query",)}, ValueError, "directions must have 'query_to_doc'"),
        ({"directions": ("query_to_doc", "x")}, ValueError, "each of directions must be one of"),
        ({"partition_mode": "each"}, ValueError, "partition_mode must be one of 'joint'"),
        (
            {"directions": DIRECTIONS[1], "partition_mode": "per_direction"},
            ValueError,
            "partition_mode='per_direction' must have .* use 'joint'",
        ),
        ({"hardness_mode": "some"}, ValueError, "hardness_mode must be one of 'in_batch_neg"),
        ({"hardness_strength": -1.0}, ValueError, "hardness_strength must be at least 0"),
        ({"gather_across_devices": "no"}, TypeError, "gather_across_devices must be True or False"),
        ({"mini_batch_size": 0}, ValueError, "mini_batch_size must be at least 1, got 0"),
        ({"backend": "cuda"}, ValueError, "backend must be one of"),
    ],
)
def test_wrong_option_is_named(options: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        MultipleNegativesRankingLoss(nn.Identity(), **options)


def test_wrong_columns_are_named() -> None:
    loss = MultipleNegativesRankingLoss(nn.Identity())
    with pytest.raises(ValueError, match=r"columns of anchors, of positives .* got 1 column"):
        loss.compute_loss_from_embeddings(embedded(1))
    with pytest.raises(ValueError, match=r"as many sentences as there are anchors; got \[13, 9\]"):
        loss.compute_loss_from_embeddings([*embedded(1), *embedded(1, rows=9)])
