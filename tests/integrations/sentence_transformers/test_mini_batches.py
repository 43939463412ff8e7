"""Losses of large batches whose sentences go through the model by mini-batches."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from tests.support.targets import INTERPRETED

if INTERPRETED:
    pytest.skip(
        "nothing of Triton is tested, and the import takes seconds", allow_module_level=True
    )
pytest.importorskip("sentence_transformers")

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from circle_kernels.integrations.sentence_transformers import (
    CachedMultipleNegativesRankingLoss,
    CircleLoss,
    MultipleNegativesRankingLoss,
    MultipleNegativesSymmetricRankingLoss,
    PairLoss,
)
from circle_kernels.losses import ProxyAnchorLoss, SupConLoss
from tests.integrations.sentence_transformers.models import (
    bert_model,
    columns,
    corpus,
)

ROWS, CHUNK = 12, 5  # chunks of four, of 15 labelled sentences of five


def features_of(model: SentenceTransformer, count: int) -> list[dict[str, Any]]:
    return [dict(model.preprocess(each)) for each in columns(count, ROWS)]


def labelled(model: SentenceTransformer) -> tuple[list[dict[str, Any]], Tensor]:
    sentences, labels = corpus(4)
    return [dict(model.preprocess(sentences[:15]))], torch.tensor(labels[:15])


def in_parts(model: nn.Module, features: dict[str, Any]) -> Tensor:
    """What plain training in mini-batches computes, all activations kept."""
    rows = len(features["input_ids"])
    parts = [
        {
            name: value.tensor_split(-(-rows // CHUNK))[part]
            if isinstance(value, Tensor)
            else value
            for name, value in features.items()
        }
        for part in range(-(-rows // CHUNK))
    ]
    return torch.cat([model(part)["sentence_embedding"] for part in parts])


def copies(features: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [dict(each) for each in features]


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    found = torch.autograd.grad(loss, [*model.parameters()], allow_unused=True)
    return [each for each in found if each is not None]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_ranking_is_bitwise_plain_training_in_parts(tmp_path: Path, dropout: float) -> None:
    model = bert_model(tmp_path, dropout)
    features = features_of(model, 3)
    loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=CHUNK)
    torch.manual_seed(3)
    found = loss(copies(features), None)
    of_found = gradients(found, model)
    torch.manual_seed(3)
    parts = [in_parts(model, each) for each in features]
    expected = MultipleNegativesRankingLoss(model).compute_loss_from_embeddings(parts)
    assert torch.equal(found, expected)
    of_expected = gradients(expected, model)
    assert len(of_found) == len(of_expected) > 20
    assert all(map(torch.equal, of_found, of_expected))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", [CircleLoss, PairLoss])
def test_classes_are_bitwise_plain_training_in_parts(
    tmp_path: Path, kind: type, dropout: float
) -> None:
    model = bert_model(tmp_path, dropout)
    features, labels = labelled(model)
    given = (SupConLoss(),) if kind is PairLoss else ()
    loss = kind(model, *given, mini_batch_size=CHUNK)
    torch.manual_seed(3)
    found = loss(copies(features), labels)
    of_found = gradients(found, model)
    torch.manual_seed(3)
    expected = loss.loss(in_parts(model, features[0]), labels)
    assert torch.equal(found, expected)
    assert all(map(torch.equal, of_found, gradients(expected, model)))


def test_value_and_gradient_are_those_of_the_whole_batch_and_the_librarys(tmp_path: Path) -> None:
    model = bert_model(tmp_path)
    features = features_of(model, 3)
    kinds = {
        "ours": CachedMultipleNegativesRankingLoss(model, mini_batch_size=CHUNK),
        "whole": MultipleNegativesRankingLoss(model),
    }
    theirs = losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=CHUNK)
    expected = theirs(copies(features), None)
    expected.backward()
    wanted = [each.grad for each in model.parameters() if each.grad is not None]
    for loss in kinds.values():
        found = loss(copies(features), None)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
        for ours, their in zip(gradients(found, model), wanted, strict=True):
            assert (ours - their).norm() <= 1e-4 * their.norm() + 1e-6


def test_activations_of_no_mini_batch_are_kept(tmp_path: Path) -> None:
    model = bert_model(tmp_path)
    (dense,) = (
        each for name, each in model.named_modules() if name.endswith("0.intermediate.dense")
    )
    seen: list[tuple[int, StorageWeakRef]] = []

    def look(_: nn.Module, __: Any, output: Tensor) -> None:
        seen.append((len(output), StorageWeakRef(output.untyped_storage())))

    def look_at_tokens(_: nn.Module, arguments: tuple[dict[str, Tensor]]) -> None:
        look(_, None, arguments[0]["token_embeddings"])

    dense.register_forward_hook(look)
    model[1].register_forward_pre_hook(look_at_tokens)
    for size, alive in ((None, 3), (CHUNK, 0)):
        seen.clear()
        value = MultipleNegativesRankingLoss(model, mini_batch_size=size)(features_of(model, 3))
        gc.collect()
        assert sum(not each.expired() for _, each in seen) == alive
        assert len(seen) == (6 if size is None else 18)
        assert all(rows <= (size or ROWS) for rows, _ in seen)
        value.backward()


@pytest.mark.parametrize(
    "make",
    [
        lambda model, size: MultipleNegativesRankingLoss(model, mini_batch_size=size),
        lambda model, size: MultipleNegativesSymmetricRankingLoss(model, mini_batch_size=size),
    ],
    ids=["ranking", "symmetric"],
)
def test_matryoshka_loss_can_wrap_columns(tmp_path: Path, make: Any) -> None:
    model = bert_model(tmp_path)
    assert_wrapped_alike(model, make, features_of(model, 3), None)


@pytest.mark.parametrize(
    "make",
    [
        lambda model, size: CircleLoss(model, mini_batch_size=size),
        lambda model, size: PairLoss(model, SupConLoss(), mini_batch_size=size),
    ],
    ids=["circle", "supcon"],
)
def test_matryoshka_loss_can_wrap_classes(tmp_path: Path, make: Any) -> None:
    model = bert_model(tmp_path)
    assert_wrapped_alike(model, make, *labelled(model))


def assert_wrapped_alike(
    model: SentenceTransformer, make: Any, features: list[dict[str, Any]], labels: Tensor | None
) -> None:
    """With mini-batches as without."""
    values, of_values = [], []
    for size in (CHUNK, None):
        wrapped = losses.MatryoshkaLoss(
            model, make(model, size), [16, 4], matryoshka_weights=[1.0, 0.25]
        )
        with torch.no_grad():
            evaluated = wrapped(copies(features), labels)
        values.append(wrapped(copies(features), labels))
        torch.testing.assert_close(evaluated, values[-1].detach(), rtol=1e-6, atol=0)
        of_values.append(gradients(values[-1] * 3, model))
    torch.testing.assert_close(*values, rtol=1e-6, atol=0)
    for ours, theirs in zip(*of_values, strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + 1e-6


def test_wrapped_loss_with_parameters_is_refused(tmp_path: Path) -> None:
    model = bert_model(tmp_path)
    features, labels = labelled(model)
    loss = PairLoss(model, ProxyAnchorLoss(4, 16), mini_batch_size=CHUNK)
    loss(copies(features), labels).backward()
    assert loss.loss.proxies.grad.abs().sum() > 0
    wrapped = losses.MatryoshkaLoss(model, loss, [16, 4])
    with pytest.raises(ValueError, match=r"MatryoshkaLoss, .* trained; got loss\.proxies$"):
        wrapped(copies(features), labels)


def test_model_without_rows_is_refused() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=4)], device="cpu")
    features = [model.preprocess(["a b", "b b a"]) for _ in range(2)]
    assert MultipleNegativesRankingLoss(model)(copies(features)).isfinite()
    loss = CachedMultipleNegativesRankingLoss(model)
    with pytest.raises(
        ValueError,
        match=r"^mini_batch_size takes .* got input_ids of shape \(5,\), offsets of shape \(2,\);",
    ):
        loss(features)


def test_options_that_there_are_not_are_named(model: SentenceTransformer) -> None:
    for options, message in (
        ({"mini_batch_num_tokens": 512}, "no mini_batch_num_tokens: mini_batch_size counts"),
        ({"show_progress_bar": True}, "no show_progress_bar: the trainer"),
    ):
        with pytest.raises(TypeError, match=message):
            CachedMultipleNegativesRankingLoss(model, **options)
    with pytest.raises(TypeError, match="mini_batch_size must be an integer, got NoneType"):
        CachedMultipleNegativesRankingLoss(model, mini_batch_size=None)
    loss = CachedMultipleNegativesRankingLoss(
        model, mini_batch_num_tokens=None, show_progress_bar=False
    )
    assert loss.mini_batch_size == 32
    assert loss.get_config_dict()["mini_batch_size"] == 32
    assert "gao2021scaling" in loss.citation
