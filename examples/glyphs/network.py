"""A small convolutional network from a picture to an embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EMBEDDING_SIZE = 128


def _convolution(channels_in: int, channels_out: int) -> nn.Sequential:
    """3 x 3 convolution that halves the picture's side."""
    return nn.Sequential(
        # A stride instead of pooling: on a CPU the same layers with pooling take six times as long.
        nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


class GlyphNetwork(nn.Module):
    """(N, 1, 32, 32) float images to (N, 128) embeddings, not normalised: the loss does that.

    ``batch_norm`` puts a batch normalisation at the end, as networks for face recognition have it:
    the embeddings then start out around 0 instead of with cosines close to 1.
    """

    def __init__(self, batch_norm: bool = False) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _convolution(1, 32), _convolution(32, 64), _convolution(64, 128)
        )
        self.embed = nn.Linear(128 * 4 * 4, EMBEDDING_SIZE)
        self.center = nn.BatchNorm1d(EMBEDDING_SIZE) if batch_norm else nn.Identity()
        # The layout that CPU convolutions are fastest in; the numbers stay the same.
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        return self.center(self.embed(self.features(images).flatten(1)))


@torch.no_grad()
def embed(network: nn.Module, images: Tensor, chunk: int = 1024) -> Tensor:
    """Embeddings of (N, 1, 32, 32) images in evaluation mode, (N, D), a chunk at a time.

    Raises:
        ValueError: an embedding that is not finite; the training has diverged.
    """
    was_training = network.training
    network.eval()
    embeddings = torch.cat([network(part) for part in images.split(chunk)])
    network.train(was_training)
    if not embeddings.isfinite().all():
        raise ValueError("embeddings must be finite")
    return embeddings
