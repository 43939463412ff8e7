"""A small convolutional network from a name to an embedding.

A character is what Unicode calls it: its vector is the sum of those of the words of its name, such
as ARABIC LETTER BEH or GEORGIAN LETTER BAN, and of one of its own. So related letters are alike
before anything is learned, in scripts of which training has few names, too. The words are hashed,
so that the network knows no alphabet and takes any name.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from names.data import decomposed

EMBEDDING_SIZE = 128
WIDTH = 128
FURTHER_LAYERS = 2  # whose output is added to their input
BUCKETS = 8192  # vectors that the words share
MOST_CHARACTERS = 24  # of a name, with a space on both sides; others are cut
SHARPNESS = 4  # of the maximum over a name's characters


def code_points(names: Sequence[str]) -> Tensor:
    """(N, L) int64: the decomposed lower-case names, padded with 0; L is at most 24."""
    rows = []
    for name in names:
        letters = decomposed(name)[: MOST_CHARACTERS - 2]
        rows.append(torch.tensor([ord(letter) for letter in f" {letters} "]))
    return pad_sequence(rows, batch_first=True)


@cache
def hashed_words(code_point: int) -> Tensor:
    """(W,) int64 buckets of a character and the words of its name; 0 is that of code point 0."""
    if code_point == 0:
        return torch.tensor([0])
    words = [chr(code_point), *unicodedata.name(chr(code_point), "").split()]
    return torch.tensor([1 + crc32(word.encode()) % (BUCKETS - 1) for word in words])


def _convolution() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(WIDTH, WIDTH, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm1d(WIDTH),
        nn.ReLU(),
    )


class NameNetwork(nn.Module):
    """(N, L) code points to (N, 128) embeddings, not normalised: the loss does that."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(BUCKETS, WIDTH, mode="sum", padding_idx=0)
        self.first = _convolution()
        self.further = nn.ModuleList(_convolution() for _ in range(FURTHER_LAYERS))
        self.embed = nn.Linear(WIDTH, EMBEDDING_SIZE)

    def forward(self, codes: Tensor) -> Tensor:
        # Each character once, however often it occurs.
        different, places = codes.unique(return_inverse=True)
        words = pad_sequence([hashed_words(code) for code in different.tolist()], batch_first=True)
        features = F.embedding(places, self.words(words)).transpose(1, 2)  # (N, 128, L)
        inside = (codes != 0).unsqueeze(1)
        features = self.first(features) * inside
        for layer in self.further:
            features = (features + layer(features)) * inside
        # A smooth maximum over the characters, which gives gradients to more than one of each name.
        outside_lost = (SHARPNESS * features).masked_fill(~inside, -torch.inf)
        return self.embed(outside_lost.logsumexp(dim=2) / SHARPNESS)


def new_network(seed: int) -> NameNetwork:
    """An untrained network, always the same one for the same seed."""
    torch.manual_seed(seed)
    return NameNetwork()


@torch.no_grad()
def embed(network: nn.Module, names: Sequence[str], chunk: int = 1024) -> Tensor:
    """Embeddings of N names in evaluation mode, (N, 128), a chunk at a time.

    Raises:
        ValueError: an embedding that is not finite; the training has diverged.
    """
    was_training = network.training
    network.eval()
    embeddings = torch.cat([network(part) for part in code_points(names).split(chunk)])
    network.train(was_training)
    if not embeddings.isfinite().all():
        raise ValueError("embeddings must be finite")
    return embeddings
