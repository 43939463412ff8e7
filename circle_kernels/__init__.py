"""Circle loss for PyTorch without the similarity matrix: fused forward and backward kernels."""

from typing import TYPE_CHECKING

# First, since it says what to do where torch is missing.
from circle_kernels import _requirements as _requirements
from circle_kernels._later import load_later
from circle_kernels._version import __version__
from circle_kernels.backends.choice import available_backends
from circle_kernels.classes.losses import class_circle_loss, class_unified_loss
from circle_kernels.classes.modules import ClassCircleLoss, ClassUnifiedLoss
from circle_kernels.classes.sparse_sgd import SparseSGD
from circle_kernels.distributed.gradients import average_gradients, clip_grad_norm_
from circle_kernels.formula import CircleFormula, PairFormula, UnifiedFormula
from circle_kernels.losses.batches import nonfinite_rows, valid_rows
from circle_kernels.losses.functional import circle_loss, circle_loss_from_similarity, unified_loss
from circle_kernels.losses.modules import CircleLoss
from circle_kernels.operation.eager import pair_logsumexp

_SUBPACKAGES = ("evaluation", "integrations", "losses")

if TYPE_CHECKING:
    from circle_kernels import evaluation as evaluation
    from circle_kernels import losses as losses
    from circle_kernels.classes.sharded import ShardedClassCircleLoss, ShardedClassUnifiedLoss
    from circle_kernels.training.chunks import in_chunks
    from circle_kernels.training.memory import EmbeddingMemory
else:
    # Few need these.
    __getattr__ = load_later(
        __name__,
        {
            "classes.sharded": ("ShardedClassCircleLoss", "ShardedClassUnifiedLoss"),
            "training.chunks": ("in_chunks",),
            "training.memory": ("EmbeddingMemory",),
        },
        _SUBPACKAGES,
    )

__all__ = [
    "CircleFormula",
    "CircleLoss",
    "ClassCircleLoss",
    "ClassUnifiedLoss",
    "EmbeddingMemory",
    "PairFormula",
    "ShardedClassCircleLoss",
    "ShardedClassUnifiedLoss",
    "SparseSGD",
    "UnifiedFormula",
    "__version__",
    "available_backends",
    "average_gradients",
    "circle_loss",
    "circle_loss_from_similarity",
    "class_circle_loss",
    "class_unified_loss",
    "clip_grad_norm_",
    "in_chunks",
    "nonfinite_rows",
    "pair_logsumexp",
    "unified_loss",
    "valid_rows",
]


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBPACKAGES])
