"""Sentences of a few topics, and small models made here."""

from __future__ import annotations

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from transformers import BertConfig, BertModel, BertTokenizerFast

TOPICS = [
    "goal match team player score league",
    "stock market bank price trade profit",
    "rain cloud storm wind sun snow",
    "bread cheese soup apple rice spice",
]
FILLERS = "the a of and in on was is with about"


def corpus(per_topic: int = 16) -> tuple[list[str], list[int]]:
    """Sentences of mostly common words, with two of their topic's."""
    generator = torch.Generator().manual_seed(0)

    def words(text: str, count: int) -> list[str]:
        choices = text.split()
        return [choices[i] for i in torch.randint(len(choices), (count,), generator=generator)]

    labels = [topic for topic in range(len(TOPICS)) for _ in range(per_topic)]
    return [" ".join(words(FILLERS, 4) + words(TOPICS[label], 2)) for label in labels], labels


def vocabulary() -> list[str]:
    return " ".join([*TOPICS, FILLERS]).split()


def columns(count: int, rows: int = 12) -> list[list[str]]:
    """Columns of sentences of different lengths, those in one place of one topic."""
    sentences, labels = corpus(rows * count)
    of_topic = [
        [sentence for sentence, label in zip(sentences, labels, strict=True) if label == topic]
        for topic in range(len(TOPICS))
    ]
    picked = [[of_topic[row % 4][row * count + k] for row in range(rows)] for k in range(count)]
    return [[" ".join(s.split()[: 3 + i % 4]) for i, s in enumerate(each)] for each in picked]


def word_model() -> SentenceTransformer:
    """One vector per word, their mean, and a layer."""
    torch.manual_seed(0)
    words = modules.WordEmbeddings(
        modules.tokenizer.WhitespaceTokenizer(vocabulary(), stop_words=[], do_lower_case=True),
        torch.randn(len(vocabulary()), 12),
        update_embeddings=True,
    )
    return SentenceTransformer(
        modules=[words, modules.Pooling(12), modules.Dense(12, 8)], device="cpu"
    )


def bert_model(folder: Path, dropout: float = 0.0) -> SentenceTransformer:
    """Two layers of BERT, saved and loaded as models are."""
    torch.manual_seed(0)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *vocabulary()]
    (folder / "vocab.txt").write_text("\n".join(tokens), "utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    BertModel(config).save_pretrained(folder)
    transformer = modules.Transformer(str(folder))
    model = SentenceTransformer(modules=[transformer, modules.Pooling(16)], device="cpu")
    return model.train()
