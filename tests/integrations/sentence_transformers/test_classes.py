"""Losses over (sentence, class) batches, training a small model made here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tests.support.targets import INTERPRETED

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

if INTERPRETED:
    pytest.skip(
        "nothing of Triton is tested, and the import takes seconds", allow_module_level=True
    )
library = pytest.importorskip("sentence_transformers")

from circle_kernels import circle_loss  # noqa: E402
from circle_kernels.arguments import FLOATING_DTYPES, INTEGER_DTYPES  # noqa: E402
from circle_kernels.integrations.sentence_transformers import CircleLoss, PairLoss  # noqa: E402
from circle_kernels.losses import ProxyAnchorLoss, SupConLoss, supcon_loss  # noqa: E402
from tests.integrations.sentence_transformers.models import corpus  # noqa: E402


def features_and_labels(model: SentenceTransformer) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    sentences, labels = corpus(4)
    return model.preprocess(sentences), torch.tensor(labels)


def test_loss_is_that_of_the_embedded_sentences(model: SentenceTransformer) -> None:
    features, labels = features_and_labels(model)
    expected = circle_loss(model(dict(features))["sentence_embedding"], labels, m=0.25, gamma=64)
    loss = CircleLoss(model, m=0.25, gamma=64)
    assert torch.equal(loss([features], labels), expected)
    assert torch.equal(loss(iter([features]), labels[:, None]), expected)


def test_labels_of_any_column_of_a_dataset_are_taken(model: SentenceTransformer) -> None:
    features, labels = features_and_labels(model)
    for dtype in (*FLOATING_DTYPES, *INTEGER_DTYPES):
        column = (labels / 4 if dtype in FLOATING_DTYPES else labels).to(dtype)
        expected = CircleLoss(model)([dict(features)], column.to(torch.float64).mul(4).long())
        for shape in (column, column[:, None]):
            assert torch.equal(CircleLoss(model)([dict(features)], shape), expected)


def test_sentence_whose_label_is_nan_has_no_positives(model: SentenceTransformer) -> None:
    features, labels = features_and_labels(model)
    column = labels.float()
    column[[0, 1, 4]] = float("nan")
    alone = labels.clone()
    alone[[0, 1, 4]] = torch.tensor([10, 11, 12])
    expected = CircleLoss(model)([dict(features)], alone)
    assert torch.equal(CircleLoss(model)([dict(features)], column), expected)


def test_few_steps_lower_the_loss(model: SentenceTransformer) -> None:
    features, labels = features_and_labels(model)
    loss = CircleLoss(model)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        value = loss([dict(features)], labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < losses[0] / 2


def test_trainer_of_the_library_separates_the_topics(
    model: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    sentences, labels = corpus()

    def own_topic_is_nearest() -> float:
        embeddings = torch.nn.functional.normalize(model.encode(sentences, convert_to_tensor=True))
        similarity = (embeddings @ embeddings.T).fill_diagonal_(-1)
        return (torch.tensor(labels)[similarity.argmax(1)] == torch.tensor(labels)).float().mean()

    before = own_topic_is_nearest()
    arguments = library.SentenceTransformerTrainingArguments(
        str(tmp_path),
        max_steps=80,
        lr_scheduler_type="constant",
        per_device_train_batch_size=16,
        learning_rate=2e-2,
        batch_sampler="group_by_label",
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    library.SentenceTransformerTrainer(
        model,
        arguments,
        train_dataset=datasets.Dataset.from_dict({"sentence": sentences, "label": labels}),
        loss=CircleLoss(model),
    ).train()
    assert before < 0.8
    assert own_topic_is_nearest() > 0.95


def test_losses_of_the_library_can_wrap_it(model: SentenceTransformer) -> None:
    features, labels = features_and_labels(model)
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    wrapped = losses.MatryoshkaLoss(model, CircleLoss(model), matryoshka_dims=[8, 4])
    embeddings = model(dict(features))["sentence_embedding"]
    expected = circle_loss(embeddings, labels) + circle_loss(embeddings[:, :4], labels)
    torch.testing.assert_close(wrapped([features], labels), expected)


def test_model_card_lists_the_hyper_parameters(model: SentenceTransformer) -> None:
    loss = CircleLoss(model, 0.25, 64, scope="batch")
    assert loss.get_config_dict() == {
        "m": 0.25,
        "gamma": 64,
        "scope": "batch",
        "reduction": "mean",
        "detach_weights": True,
    }
    assert loss.citation.strip().startswith("@inproceedings{sun2020circle")


def test_bad_input_is_named(model: SentenceTransformer) -> None:
    features, labels = features_and_labels(model)
    with pytest.raises(ValueError, match=r"one column of sentences.* got 2 columns"):
        CircleLoss(model)([dict(features), dict(features)], labels)
    with pytest.raises(TypeError, match=r"labels must be the sentences' classes.* got None$"):
        CircleLoss(model)([dict(features)], None)
    with pytest.raises(ValueError, match=r"one-hot labels need .argmax\(1\)"):
        CircleLoss(model)([dict(features)], torch.eye(16).long())
    with pytest.raises(TypeError, match=r"labels must be integers, got a torch\.complex64 tensor"):
        CircleLoss(model)([dict(features)], labels.to(torch.complex64))
    with pytest.raises(TypeError, match=r"CircleLoss\(\) takes no scale: it is called gamma here"):
        CircleLoss(model, scale=64)
    with pytest.raises(ValueError, match="one entry per row of embeddings: wanted 16, got 15"):
        CircleLoss(model)([dict(features)], labels[1:])
    with pytest.raises(ValueError, match="gamma must be greater than 0"):
        CircleLoss(model, gamma=0)
    with pytest.raises(ValueError, match=r"reduction must be .* to train; got 'none'"):
        CircleLoss(model, reduction="none")
    with pytest.raises(ValueError, match=r"mini_batch_size must be at least 1, got 0"):
        CircleLoss(model, mini_batch_size=0)
    with pytest.raises(TypeError, match=r"loss must be a module such as .*SupConLoss\(\)"):
        PairLoss(model, SupConLoss)
    with pytest.raises(ValueError, match=r"SupConLoss must have a reduction to one number"):
        PairLoss(model, SupConLoss(reduction="none"))


def test_any_pair_loss_is_computed_of_the_embeddings(model: SentenceTransformer) -> None:
    features, labels = features_and_labels(model)
    embeddings = model(dict(features))["sentence_embedding"]
    loss = PairLoss(model, SupConLoss(temperature=0.2))
    assert torch.equal(loss([features], labels), supcon_loss(embeddings, labels, temperature=0.2))
    assert torch.equal(
        PairLoss(model, circle_loss)([features], labels.float()[:, None]),
        circle_loss(embeddings, labels),
    )
    assert "SupConLoss(temperature=0.2" in loss.get_config_dict()["loss"]


def test_loss_with_parameters_has_them_trained_with_the_model(model: SentenceTransformer) -> None:
    features, labels = features_and_labels(model)
    torch.manual_seed(1)
    loss = PairLoss(model, ProxyAnchorLoss(num_classes=4, embedding_dim=8))
    assert any(each is loss.loss.proxies for each in loss.parameters())
    loss([features], labels).backward()
    assert loss.loss.proxies.grad.abs().sum() > 0
    assert all(each.grad is not None for each in model.parameters())
