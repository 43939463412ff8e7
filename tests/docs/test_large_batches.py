"""The Python of docs/large-batches.md, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from circle_kernels import CircleLoss, EmbeddingMemory, circle_loss
from circle_kernels.losses import supcon_loss
from tests.distributed.processes import run_processes
from tests.support.places import ROOT

PAGE = (ROOT / "docs" / "large-batches.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
ROWS, DIM = 1100, 128


def block(marker: str) -> str:
    """The one block with these words."""
    (found,) = [code for code in BLOCKS if marker in code]
    return found


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, DIM))


def batch(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 6, generator=generator), torch.arange(rows) % 30


def test_loop_trains_as_with_all_activations() -> None:
    ours, theirs = network(), network()
    loader = [batch(ROWS, seed) for seed in range(2)]
    namespace: dict[str, Any] = {"network": ours, "loader": loader}
    exec(block("# was: network(images)"), namespace)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-3)
    for images, labels in loader:
        embeddings = torch.cat([theirs(chunk) for chunk in images.tensor_split(3)])
        loss = circle_loss(embeddings, labels, m=0.25, gamma=128)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(namespace["loss"], loss)
    for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(found, expected)


class Encoder(nn.Module):
    """Called, and answering, as those of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.table(input_ids))


def test_text_encoder_is_pooled() -> None:
    torch.manual_seed(0)
    tokens = {"input_ids": torch.randint(9, (130, 4)), "attention_mask": torch.ones(130, 4).long()}
    encoder = Encoder()
    namespace: dict[str, Any] = {
        "encoder": encoder,
        "tokenizer": lambda texts, **_: tokens,
        "texts": ["text"] * 130,
    }
    exec(block("class Pooled"), namespace)
    expected = encoder.table(tokens["input_ids"]).mean(1)
    torch.testing.assert_close(namespace["embeddings"], expected)


def _train_with_ddp(rank: int) -> None:
    sizes = (700, 1300)
    namespace: dict[str, Any] = {"network": network()}
    exec(block("wrapped = DistributedDataParallel(network)"), namespace)
    images, labels = batch(sum(sizes))
    optimizer = torch.optim.SGD(namespace["network"].parameters(), lr=0.01)
    own = images.split(sizes)[rank], labels.split(sizes)[rank]
    loss = namespace["step"](*own, optimizer)
    alone = network()
    chunks = [
        chunk
        for part, count in zip(images.split(sizes), (2, 3), strict=True)
        for chunk in part.tensor_split(count)
    ]
    expected = circle_loss(torch.cat([alone(each) for each in chunks]), labels, m=0.25, gamma=128)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for found, wanted in zip(namespace["network"].parameters(), alone.parameters(), strict=True):
        assert (found.grad - wanted.grad).norm() <= 1e-4 * max(wanted.grad.norm(), 1.0)


def test_processes_train_as_one_does() -> None:
    run_processes(2, _train_with_ddp)


def test_losses_of_sentences_are_those_of_the_whole_batch() -> None:
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    from tests.integrations.sentence_transformers.models import columns, corpus, word_model

    model = word_model()
    namespace: dict[str, Any] = {"model": model}
    exec(block("ranking = CachedMultipleNegativesRankingLoss"), namespace)
    features = [dict(model.preprocess(each)) for each in columns(3, 40)]
    found = namespace["ranking"]([dict(each) for each in features])
    expected = MultipleNegativesRankingLoss(model)([dict(each) for each in features], None)
    torch.testing.assert_close(found, expected)
    sentences, labels = corpus()
    features, labels = [dict(model.preprocess(sentences))], torch.tensor(labels)
    embeddings = model(dict(features[0]))["sentence_embedding"]
    found = namespace["circle"]([dict(features[0])], labels)
    torch.testing.assert_close(found, circle_loss(embeddings, labels, m=0.25, gamma=128))
    found = namespace["contrastive"]([dict(features[0])], labels)
    torch.testing.assert_close(found, supcon_loss(embeddings, labels, temperature=0.1))


def test_memory_is_compared_with() -> None:
    loader = [batch(40, seed) for seed in range(3)]
    model = network()
    namespace: dict[str, Any] = {
        "network": model,
        "loader": loader,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.0),
    }
    exec(block("memory = EmbeddingMemory(size=8192, dim=128)"), namespace)
    memory, loss_function = namespace["memory"], namespace["loss_function"]
    assert (memory.filled, memory.is_full) == (120, False)
    embeddings = torch.cat([model(images) for images, _ in loader])
    labels = torch.cat([labels for _, labels in loader])
    torch.testing.assert_close(memory.references()[0], embeddings)
    losses = circle_loss(embeddings, labels, m=0.25, gamma=128, reduction="none")
    torch.testing.assert_close(namespace["loss"], losses[80:].mean(), rtol=1e-5, atol=0)

    exec(block("def loss_at"), namespace)
    new, numbers = model(batch(40, 9)[0]), loader[0][1]
    early = namespace["loss_at"](999, new, numbers)
    assert torch.equal(early, loss_function(new, numbers))
    assert memory.filled == 120
    assert not torch.equal(namespace["loss_at"](1000, new, numbers), early)
    assert memory.filled == 160

    exec(block("def momentum_loss"), namespace)
    memory.clear()
    keys = new.detach() + 0.1
    loss = namespace["momentum_loss"](new, keys, numbers)
    expected = circle_loss(new, numbers, keys, numbers, m=0.25, gamma=128)
    torch.testing.assert_close(loss, expected)


def _share_a_memory(rank: int) -> None:
    namespace: dict[str, Any] = {}
    exec(block("def shared_loss"), namespace)
    alone = EmbeddingMemory(8192, DIM)
    loss_function = CircleLoss(m=0.25, gamma=128, reduction="mean_all")
    sizes = (12, 30)
    for seed in range(3):
        whole, labels = network()(batch(42, seed)[0]).detach().requires_grad_(), batch(42)[1]
        expected = loss_function(whole, labels, **alone(whole, labels))
        expected.backward()
        own = whole.detach().split(sizes)[rank].requires_grad_()
        loss = namespace["shared_loss"](own, labels.split(sizes)[rank])
        loss.backward()
        average = loss.detach().clone()
        dist.all_reduce(average)
        torch.testing.assert_close(average / 2, expected.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            own.grad / 2, whole.grad.split(sizes)[rank], rtol=1e-4, atol=1e-6
        )


def test_shared_memory_gives_the_loss_of_one_process() -> None:
    run_processes(2, _share_a_memory)


def test_every_block_is_run_here() -> None:
    here = Path(__file__).read_text("utf-8")
    markers = re.findall(r"exec\(block\(['\"](.*?)['\"]\), namespace", here)
    assert sorted(map(block, markers)) == sorted(BLOCKS)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+?\.md)(?:#[^)]*)?\)", PAGE):
        assert (ROOT / "docs" / target).is_file(), target
