"""The fused operation's arguments: a batch, and what is done with it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from circle_kernels.arguments import (
    check_embeddings,
    check_kinds,
    check_pair_inputs,
    describe,
)
from circle_kernels.backends.choice import check_backend, serving
from circle_kernels.backends.problem import PairProblem
from circle_kernels.distributed.headers import CALL
from circle_kernels.distributed.sharing import Sharing
from circle_kernels.formula import (
    FORMULAS,
    CircleFormula,
    PairFormula,
    UnifiedFormula,
    is_known,
)
from circle_kernels.options import check_flag, check_skip_below

# An attribute of tensors that nobody writes to while somebody has them: EmbeddingMemory's.
STAYS = "_circle_kernels_stays_as_it_is"


class Batch(NamedTuple):
    """Checked tensors: what is compared with what. As :class:`PairProblem` has them."""

    embeddings: Tensor  # (N, D)
    labels: Tensor  # (N,) int64
    ref_emb: Tensor | None = None  # (M, D)
    ref_labels: Tensor | None = None  # (M,) int64
    listed: Tensor | None = None  # (N, M) uint8, padded
    own_columns: Tensor | None = None  # (N,) int64
    readable: bool = False  # whether somebody has found out that all of them are addressable

    @property
    def tensors(
        self,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """The tensors alone."""
        return self[:6]

    @property
    def requires_grad(self) -> bool:
        """Whether a backward pass can follow, as things stand."""
        return torch.is_grad_enabled() and (
            self.embeddings.requires_grad
            or (self.ref_emb is not None and self.ref_emb.requires_grad)
        )


@dataclass(frozen=True)
class Operation:
    """What is done with a batch; arguments as for :func:`circle_kernels.circle_loss`.

    Raises:
        TypeError, ValueError: one of the wrong type or range.
    """

    formula: PairFormula
    normalize: bool = True
    skip_below: float = 0.0
    backend: str = "auto"
    both_sides: bool = False  # as PairProblem has it
    # (): the formula's gamma as a tensor, which may have a gradient.
    scale: Tensor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not is_known(self.formula):
            wanted = " or ".join(known.__name__ for known in FORMULAS.values())
            given = f"{type(self.formula).__name__} {self.formula!r}"
            raise TypeError(
                f"formula must be a {wanted}, or of PairFormula.from_functions, got {given}"
            )
        # NumPy's, too, become Python's.
        object.__setattr__(self, "normalize", check_flag("normalize", self.normalize))
        object.__setattr__(self, "skip_below", check_skip_below(self.skip_below))
        check_backend(self.backend)

    @property
    def scale_is_learned(self) -> bool:
        """Whether the gradient of the scale may be asked for."""
        return self.scale is not None and self.scale.requires_grad and torch.is_grad_enabled()

    def problem(
        self, batch: Batch, *, precision: str = "highest", keep_for_backward: bool = True
    ) -> PairProblem:
        """The operation on a batch, as backends take it."""
        return PairProblem(
            *batch[:4],
            formula=self.formula,
            normalize=self.normalize,
            skip_below=self.skip_below,
            keep_for_backward=keep_for_backward,
            listed=batch.listed,
            own_columns=batch.own_columns,
            both_sides=self.both_sides,
            precision=precision,
        )


def check_scale(name: str, scale: Tensor) -> Tensor:
    """Require a tensor with one real number; returns it without dimensions.

    Raises:
        TypeError: another tensor.
    """
    check_kinds(**{name: scale})
    if scale.numel() != 1 or not scale.is_floating_point():
        raise TypeError(
            f"{name} must be a number or a floating-point tensor with one, got {describe(scale)}"
        )
    return scale.reshape(())


def number_of(scale: Tensor) -> float:
    """What formulas are made with: to compilers, for which it stays variable, any number."""
    return 1.0 if torch.compiler.is_compiling() else float(scale.detach())


_Made = TypeVar("_Made")

# Types whose values stay what they are: a tensor may change, and a process group should be let go.
_LASTING = frozenset({float, int, bool, str, type(None), type})


def remembered(make: Callable[..., _Made]) -> Callable[..., _Made]:
    """A function that makes something of hyper-parameters, which nearly every step has from the one
    before. Not where compilers look inside."""
    # By type as well: 1 and True are not 1.0.
    remembering = functools.lru_cache(maxsize=16, typed=True)(make)

    @functools.wraps(make)
    def made(*parameters: Any, **named: Any) -> _Made:
        if (
            torch.compiler.is_compiling()
            or not _LASTING.issuperset(map(type, parameters))
            or not _LASTING.issuperset(map(type, named.values()))
        ):
            return make(*parameters, **named)
        return remembering(*parameters, **named)

    made.cache_clear = remembering.cache_clear  # type: ignore[attr-defined]
    return made


@remembered
def operation_of(
    formula_type: type[CircleFormula] | type[UnifiedFormula],
    *,
    m: float,
    gamma: float | Tensor,
    detach_weights: bool = True,
    **options: Any,
) -> Operation:
    """The operation of a formula with the paper's constants; ``options`` are what
    :class:`Operation` takes beside the formula."""
    if isinstance(gamma, Tensor):
        scale = check_scale("gamma", gamma)
        formula = formula_type(m=m, gamma=number_of(scale), detach_weights=detach_weights)
        return Operation(formula, scale=scale, **options)
    formula = formula_type(m=m, gamma=gamma, detach_weights=detach_weights)
    return Operation(formula, **options)


# Nearly every step has the one from the step before.
sharing_of: Callable[..., Sharing] = remembered(Sharing)


def check_batch(
    embeddings: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    ref_emb: Tensor | None,  # (M, D)
    ref_labels: Tensor | None,  # (M,)
) -> Batch:
    """The arguments of :func:`circle_kernels.pair_logsumexp` as the operation takes them.

    Raises:
        TypeError, ValueError: one of the wrong type, shape, dtype or device.
    """
    checked = check_pair_inputs(embeddings, labels, ref_emb, ref_labels)
    return Batch(*checked[:4], readable=checked[4])


def owned(tensor: Tensor | None, is_read: bool = True) -> Tensor | None:
    """What a backward pass can rely on: a copy of what may change before it, as labels and queues
    do, or be an inference tensor. Who changes what needs a gradient gets autograd's error, and who
    says by :data:`STAYS` that a tensor stays as it is keeps it so."""
    if tensor is None or tensor.requires_grad or getattr(tensor, STAYS, False):
        return tensor
    if is_read or tensor.is_inference():
        return tensor.clone()
    return tensor.data  # whose changes autograd does not count


def alike_of(
    call: str,
    rows: tuple[str, str],  # scope and reduction
    sharing: Sharing,
    operation: Operation,
    ignore_label: int | None = None,
) -> dict[str, str]:
    """What has to be the same in all processes that share a batch, beside the operation, in the
    order in which users are told."""
    return {
        CALL: call,
        "scope": rows[0],
        "reduction": rows[1],
        "grad_reduction": sharing.grad_reduction,
        "whether gamma is learned": str(operation.scale_is_learned),  # one is exchanged for, too
        "ignore_label": str(ignore_label),
    }


def check_shared(batch: Batch, operation: Operation, sharing: Sharing) -> None:
    """Require of a batch that processes share that this one can compute it, before others wait.

    Raises:
        RuntimeError: no backend serves it.
    """
    if sharing.group is not None and not torch.compiler.is_compiling():
        serving(operation.problem(batch), operation.backend)


def check_layout(batch: Batch) -> None:
    """Require of a batch that nobody has checked, a registered op's, what backends rely on.

    Raises:
        TypeError, ValueError: a tensor of the wrong dtype, shape or device.
    """
    embeddings, labels, ref_emb, ref_labels, listed, own_columns = batch.tensors
    check_embeddings("embeddings", embeddings)
    rows, depth = embeddings.shape
    columns = rows if ref_emb is None else ref_emb.shape[0]
    for name, tensor, dtype, shape in (
        ("labels", labels, torch.int64, (rows,)),
        ("ref_emb", ref_emb, embeddings.dtype, (columns, depth)),
        ("ref_labels", ref_labels, torch.int64, (columns,)),
        ("listed", listed, torch.uint8, (rows, columns)),
        ("own_columns", own_columns, torch.int64, (rows,)),
    ):
        if tensor is None:
            continue
        if (tensor.dtype, tensor.shape, tensor.device) != (dtype, shape, embeddings.device):
            raise ValueError(
                f"{name} must be {dtype} of shape {shape} on {embeddings.device}, got "
                f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"
            )
