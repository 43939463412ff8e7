"""The class losses as modules of which each process holds some of the classes."""

from __future__ import annotations

import copy
import sys
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import Unpack

from circle_kernels.classes.arguments import ClassRows
from circle_kernels.classes.heads import INITIAL_STD, CircleHead, ClassHead, UnifiedHead
from circle_kernels.classes.prediction import TopClasses
from circle_kernels.classes.sampling import Sampling
from circle_kernels.classes.shard_loss import ShardedCall, sharded_class_loss
from circle_kernels.classes.shard_prediction import ShardedPrediction
from circle_kernels.distributed.groups import Group
from circle_kernels.distributed.headers import CALL, exchange_headers, failing_together
from circle_kernels.distributed.shards import check_shards, empty_shards, mesh_of, own_part
from circle_kernels.operation.batch import Operation
from circle_kernels.options import (
    GRAD_REDUCTIONS,
    GradReduction,
    changed_settings,
    check_choice,
    check_flag,
    explain_other_names,
    real_number,
)

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

    from circle_kernels.classes.options import ShardOptions

# Classes that are drawn from one seed, wherever they are.
_DRAWN_AT_ONCE = 1024


class _ShardedClassLoss(ClassHead):
    """What both class losses share whose weight is spread over processes."""

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        m: float,
        gamma: float,
        *,
        group: Group = "world",
        grad_reduction: GradReduction = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        mesh, place = mesh_of(group, None if device is None else torch.device(device))
        with failing_together(type(self).__name__, mesh.get_group()):
            real_number("gamma", gamma)  # one that is learned would silently be held constant
            super().__init__(num_classes, embedding_dim, m, gamma, **options)
            check_choice("grad_reduction", grad_reduction, GRAD_REDUCTIONS)
            self.grad_reduction: GradReduction = grad_reduction
            shape = self.num_classes, self.embedding_dim
            self.weight: nn.Parameter = nn.Parameter(
                empty_shards(shape, mesh, device=place, dtype=dtype)
            )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight anew from a normal distribution.

        A collective call. The numbers come from the state of PyTorch's generator for the CPU on
        rank 0, and are the same for any number of processes.
        """
        if self.weight.is_meta:
            return
        group = check_shards("weight", self.weight)
        own = own_part(self.weight)
        seed = int(torch.randint(2**62, (), device="cpu"))
        alike = {
            CALL: f"{type(self).__name__}.reset_parameters",
            "num_classes": self.num_classes,
            "embedding_dim": self.embedding_dim,
            "weight's dtype": own.dtype,
        }
        headers = exchange_headers([seed, len(own)], alike, group)
        first = sum(rows for _, rows in headers[: dist.get_rank(group)])
        _draw_rows(own, first, headers[0][0])

    def forward(
        self,
        embeddings: Tensor,  # (n, D)
        labels: Tensor,  # (n,)
    ) -> Tensor:
        """The loss of the rows of all processes, a collective call.

        Args:
            embeddings: (n, D) of this process's rows, float16, bfloat16, float32 or float64.
            labels: (n,) integers of any dtype in [0, C), or ``ignore_index``.

        Returns:
            A scalar, or with ``reduction="none"`` the losses (n,) of this process's rows.

        Raises:
            TypeError, ValueError, RuntimeError: as the class.
        """
        loss = sharded_class_loss
        # Also where a compiler looks at the frames that this one calls, though not at this one.
        if torch.compiler.is_compiling() or "torch._dynamo" in sys.modules:
            from circle_kernels.classes.untraced import sharded_class_loss_untraced

            loss = sharded_class_loss_untraced
        return loss(embeddings, labels, self.weight, self._call())

    def full_weight(self) -> Tensor:
        """The (C, D) weight of all processes in each of them, without autograd.

        A collective call.
        """
        check_shards("weight", self.weight)
        with torch.no_grad():
            return cast("DTensor", self.weight).full_tensor()

    def get_logits(
        self,
        embeddings: Tensor,  # (n, D)
        labels: Tensor | None = None,  # (n,)
    ) -> Tensor:  # (n, C)
        """The logits of this process's rows for all classes, for inference and evaluation.

        As those of the loss without shards, but no gradient reaches the weight. A collective call,
        which gathers the weight.
        """
        return super().get_logits(embeddings, labels)

    def predict(
        self,
        embeddings: Tensor,  # (n, D)
        k: int = 1,
    ) -> TopClasses:  # (n, k) each
        """The ``k`` most similar of all classes to each of this process's rows.

        As those of the loss without shards. A collective call, for which every process gathers the
        embeddings of all, not the weight.
        """
        return self._prediction("predict").top(embeddings, k)

    def accuracy(
        self,
        embeddings: Tensor,  # (n, D)
        labels: Tensor,  # (n,)
    ) -> Tensor:
        """That of the loss without shards for the rows of all processes, the same in each.

        A collective call, for which every process gathers the embeddings of all.
        """
        return self._prediction("accuracy").accuracy(embeddings, labels, self.ignore_index)

    def _prediction(self, method: str) -> ShardedPrediction:
        return ShardedPrediction(f"{type(self).__name__}.{method}", self.weight, self.normalize)

    def extra_repr(self) -> str:
        """The settings that are not the defaults, and the number of shards."""
        mesh = getattr(self.weight, "device_mesh", None)
        changed = changed_settings(self, _ShardedClassLoss.__init__)
        shards = [] if mesh is None else [f"shards={mesh.size()}"]
        return ", ".join([super().extra_repr(), *changed, *shards])

    def __getstate__(self) -> dict[str, Any]:
        """What is saved; no process has the whole."""
        raise TypeError(
            f"{type(self).__name__} cannot be saved as an object, since each process has a shard "
            "of it only: save its state_dict() with torch.distributed.checkpoint, which any number "
            "of processes can load, or its full_weight()"
        )

    def __copy__(self) -> _ShardedClassLoss:
        """A copy in the same processes."""
        copied = type(self).__new__(type(self))
        copied.__dict__ = self.__dict__.copy()
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> _ShardedClassLoss:
        """A copy with shards of its own on the same mesh, a handle that cannot be copied."""
        mesh: DeviceMesh | None = getattr(self.weight, "device_mesh", None)
        memo[id(mesh)] = mesh
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        return copied

    def _call(self) -> ShardedCall:
        """What the loss does. In evaluation mode nothing is sampled."""
        return ShardedCall(
            type(self).__name__,
            Operation(self._formula(), self.normalize, self.skip_below, self.backend),
            ClassRows(self.reduction, self.ignore_index, self.label_smoothing),
            Sampling(
                self.sample_rate if self.training else 1.0,
                self.sample_correction,
                self.sparse_grad and self.training,
            ),
            self.grad_reduction,
        )

    def _whole_weight(self) -> Tensor:
        return self.full_weight()


class ShardedClassCircleLoss(CircleHead, _ShardedClassLoss):
    """:class:`circle_kernels.ClassCircleLoss` of which each process holds some of the classes.

    Every process passes its rows and gets the loss of the rows of all, equal to that of one process
    with the whole batch and the whole weight; with ``reduction="none"`` the losses of its own rows.
    Nothing of size (N, C) is stored, and the (C, D) weight, its gradient and the optimizer's state
    are in each process only in part.

    The constructor, the call and its backward pass are collective: every process of the group
    makes them, also one without rows (embeddings of shape (0, D)) or without classes. Where one
    fails its checks, or they differ in what has to be alike, all of them raise.

    Gradients are those of one process with all rows, given the same upstream gradient in all
    processes (with ``reduction="none"`` those of all rows together). For a shard it is exactly
    that, which is never to be averaged; for the embeddings see ``grad_reduction``.

    Args:
        num_classes: C, of all processes together.
        embedding_dim: D.
        m, gamma: margin and scale; by default the paper's for face recognition.
        detach_weights: treat the weights ``[.]_+`` as constants in the gradient.
        group: the processes that hold the shards, each about C divided by their number of classes
            in the order of ranks: ``"world"`` for all, a ``torch.distributed.ProcessGroup`` or a
            ``DeviceMesh`` of one dimension. They exist when the head is made.
        grad_reduction: ``"mean"`` where the gradients of the network before the loss are averaged
            over processes after the backward pass, as DDP and ``fully_shard`` do: those of the
            embeddings are multiplied by the number of processes. ``"sum"`` where they are added.
        reduction, ignore_index, normalize, skip_below, backend: as for
            :class:`circle_kernels.ClassCircleLoss`.
        sample_rate: share of each shard to compare with: all of its classes that the rows of all
            processes have, and a random choice of others.
        sample_correction: make up for the classes that are left out of each shard.
        sparse_grad: sets a sparse ``weight.grad`` in the backward pass, beside autograd, for
            :class:`circle_kernels.SparseSGD`.
        device, dtype: of the shard; by default a device of the group.

    ``weight``, the parameter, is a ``torch.distributed.tensor.DTensor`` with the placement
    ``Shard(0)``, which ``torch.distributed.checkpoint`` saves and loads with any number of
    processes. Its first numbers do not depend on that number either: they come from the seed of
    rank 0. The head stays outside of DDP; ``fully_shard`` of a model that contains it takes
    ``ignored_params={head.weight}``.

    Raises:
        TypeError, ValueError: an argument of the wrong type or range, also at the call; or
            processes differ.
        RuntimeError: there is no such group yet; DDP has the head inside; the call is only traced;
            or a second derivative.

    Example:
        >>> head = ShardedClassCircleLoss(num_classes=10_000_000, embedding_dim=512)
        >>> head(embeddings, labels).backward()
    """

    @explain_other_names
    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        m: float = 0.25,
        gamma: float = 256.0,
        *,
        detach_weights: bool = True,
        **options: Unpack[ShardOptions],
    ) -> None:
        super().__init__(num_classes, embedding_dim, m, gamma, **options)
        self.detach_weights: bool = check_flag("detach_weights", detach_weights)


class ShardedClassUnifiedLoss(UnifiedHead, _ShardedClassLoss):
    """:class:`circle_kernels.ClassUnifiedLoss` of which each process holds some of the classes.

    Args:
        num_classes: C, of all processes together.
        embedding_dim: D.
        m, gamma: margin and scale; by default those of AM-Softmax in the paper.
        label_smoothing: see :func:`circle_kernels.class_unified_loss`.
        group: the processes that hold the shards, all with ``"world"``.
        grad_reduction: what is done to the processes' gradients of the network afterwards.
        reduction, ignore_index, normalize, skip_below, backend, sample_rate, sample_correction,
            sparse_grad, device, dtype: as for :class:`ShardedClassCircleLoss`.
    """

    @explain_other_names
    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        m: float = 0.35,
        gamma: float = 64.0,
        *,
        label_smoothing: float = 0.0,
        **options: Unpack[ShardOptions],
    ) -> None:
        super().__init__(num_classes, embedding_dim, m, gamma, **options)
        self._smooth(label_smoothing)


def _draw_rows(rows: Tensor, first: int, seed: int) -> None:
    """Draw rows of a matrix, of which ``rows`` begins at ``first``, each from the same seed
    wherever the matrix is divided."""
    generator = torch.Generator(rows.device)
    with torch.no_grad():
        for start in range(first - first % _DRAWN_AT_ONCE, first + len(rows), _DRAWN_AT_ONCE):
            generator.manual_seed(seed + start)
            drawn = rows.new_empty(_DRAWN_AT_ONCE, rows.shape[1])
            drawn.normal_(std=INITIAL_STD, generator=generator)
            own = rows[max(start - first, 0) : start - first + _DRAWN_AT_ONCE]
            own.copy_(drawn[max(first - start, 0) :][: len(own)])
