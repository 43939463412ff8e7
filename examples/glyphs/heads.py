"""The losses on class labels that are compared, each a module with the class weights in it."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from circle_kernels import ClassCircleLoss, ClassUnifiedLoss


class SoftmaxLoss(nn.Module):
    """Cross-entropy of a linear layer; neither its weights nor the embeddings are normalised."""

    def __init__(self, num_classes: int, embedding_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embedding_dim, num_classes)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.linear(embeddings), labels)


# By name: number of classes and size of the embeddings to the loss. Margin and scale are those of
# the circle loss paper's face experiments: 0.35 and 64 for AM-Softmax, 0.25 and 256 for circle.
LOSSES: dict[str, Callable[[int, int], nn.Module]] = {
    "softmax": SoftmaxLoss,
    "AM-Softmax": lambda classes, size: ClassUnifiedLoss(classes, size, m=0.35, gamma=64),
    "circle": lambda classes, size: ClassCircleLoss(classes, size, m=0.25, gamma=256),
}
