"""``pair_logsumexp`` of a batch that several processes share, as ops that compilers see whole.

A collective in a graph would run on fake tensors, in one process and perhaps not in the others, and
how many rows these have nobody knows before it runs. So all of it is one op, whose results have
sizes that are found out when it has run, and one for its gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from circle_kernels.backends.problem import Needs, result_dtype
from circle_kernels.backends.saved_bytes import as_bytes, from_bytes
from circle_kernels.distributed.groups import group_name, group_of_name
from circle_kernels.distributed.headers import CALL
from circle_kernels.distributed.sharing import Sharing
from circle_kernels.distributed.traced import refuse_to_be_traced
from circle_kernels.operation.batch import Batch, Operation, check_layout, owned
from circle_kernels.operation.differentiable import no_second_derivative
from circle_kernels.operation.registered import (
    BATCH,
    LABELS,
    OPERATION,
    decode_precision,
    define,
    encode,
    encode_precision,
    fake_gradients,
    without_none,
)
from circle_kernels.operation.shared.band import KEPT_BLOCKS, Sums
from circle_kernels.operation.shared.call import OF_SHARING, SHARING, decode_shared
from circle_kernels.precision import float32_precision

_RESULTS = 8 + KEPT_BLOCKS  # tensors that the forward op returns
# torch keeps compiled graphs on disk by their ops' arguments; with this among them, none is found
# that an earlier version compiled. Raised when an op returns something else.
_LAYOUT = 2


def shared_logsumexps(
    batch: Batch,
    operation: Operation,
    sharing: Sharing,
    *,
    averaged: bool = False,
    alike: Mapping[str, str] = {CALL: "pair_logsumexp"},
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`circle_kernels.pair_logsumexp` of this process's rows of a checked batch.

    Args:
        batch: this process's rows and references.
        operation: what is computed.
        sharing: with whom; its group is not None.
        averaged: whether the processes' gradients will be averaged, and not added.
        alike: what has to be the same in all processes beside the operation.

    Returns:
        Both log-sum-exps, and a small tensor that an exchange which is to follow takes.
    """
    if not torch.compiler.is_compiling() and not _has_sizes(batch.embeddings, sharing.same_sizes):
        refuse_to_be_traced("group", batch.embeddings)
    assert sharing.group is not None
    grad = torch.is_grad_enabled()
    if (
        grad
        and not torch.compiler.is_compiling()
        and batch.embeddings.shape[0] == 0
        and not batch.embeddings.requires_grad
    ):
        # The others wait for this process in their backward pass.
        batch = batch._replace(embeddings=batch.embeddings.detach().requires_grad_())
    sides = (batch.embeddings, batch.ref_emb)
    needs = [grad and side is not None and side.requires_grad for side in sides]
    shared = (
        group_name(sharing.group),
        sharing.exchange == "ring",
        sharing.same_sizes,
        "\n".join(f"{name}={value}" for name, value in alike.items()),
        *needs,
    )
    results = _differentiable_op(*encode(batch, operation), *shared, averaged)
    lse_pos, lse_neg, *_, told, _, _, _, _ = results
    return lse_pos, lse_neg, told


def _has_sizes(embeddings: Tensor, same_sizes: bool) -> bool:
    """Whether embeddings without numbers can be computed with: how many rows there are all together
    is known, or may be left open."""
    return isinstance(embeddings, FakeTensor) and (
        same_sizes or embeddings.fake_mode.shape_env is not None
    )


def _forward(*arguments: Any) -> tuple[Tensor, ...]:
    call, _ = decode_shared(arguments)
    check_layout(call.batch)
    device = call.batch.embeddings.device
    *sizes, wanting = call.sizes()
    precision = float32_precision(device.type)
    band = call.band(sizes, None, precision)
    sums = band.forward(keep=call.blocks_kept > 0)
    lse_pos, lse_neg = sums.lse_pos, sums.lse_neg
    if call.same_sizes:
        lse_pos, lse_neg = (each + call.agreement(each) for each in (lse_pos, lse_neg))
    # No result may share memory with an argument, or with another result.
    held = band.columns.held
    if call.ring:
        held = (held[0].new_empty(0, held[0].shape[1]), held[1].clone())
    saved = [each.flatten() for each in sums.saved]
    saved += [held[0].new_empty(0, dtype=torch.uint8) for _ in range(KEPT_BLOCKS - len(saved))]
    return (
        lse_pos.clone(),
        lse_neg.clone(),
        *held,
        call.batch.labels.clone(),
        as_bytes(torch.stack([torch.stack([lse_pos, lse_neg]), *sums.partial])),
        torch.tensor([*sizes, wanting], device="cpu"),
        encode_precision(precision),
        *saved,
    )


def _backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Gradients for both sides; an empty tensor stands for one that is not needed."""
    call, (columns, column_labels, sums, sizes, precision, *rest) = decode_shared(arguments)
    *saved, grad_lse_pos, grad_lse_neg = rest
    if call.ring:
        columns = call.batch.embeddings if call.self_mode else call.batch.ref_emb
    *told, wanting = map(tuple, sizes.tolist())
    # A process without rows may want what the others do not, and would wait for them.
    needs = Needs(call.needs.embeddings and 1 in wanting, call.needs.references)
    gradients: tuple[Tensor | None, Tensor | None] = (None, None)
    if any(needs):
        band = call.band(told, (columns, column_labels), decode_precision(precision))
        total, *partial = from_bytes(sums, grad_lse_pos.dtype)
        known = Sums(total[0], total[1], saved[: call.blocks_kept], partial)
        gradients = band.backward(known, (grad_lse_pos, grad_lse_neg), needs)
    if call.needs.embeddings and not needs.embeddings:
        gradients = torch.zeros_like(call.batch.embeddings), gradients[1]
    return without_none(call.batch, gradients)


_forward_op = define(
    "shared_logsumexp_forward",
    f"({BATCH}, {OPERATION}, {SHARING}, int layout) -> ({', '.join(['Tensor'] * _RESULTS)})",
    _forward,
    whole=True,
    collective=True,
)
_backward_op = define(
    "shared_logsumexp_backward",
    f"({BATCH}, {OPERATION}, {SHARING}, Tensor columns, Tensor column_labels, Tensor sums, "
    "Tensor sizes, Tensor precision, Tensor saved_own, Tensor saved_before, Tensor saved_after, "
    "Tensor grad_lse_pos, Tensor grad_lse_neg) -> (Tensor, Tensor)",
    _backward,
    whole=True,
    collective=True,
)


@torch.library.register_fake("circle_kernels::shared_logsumexp_forward")
def _forward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    call, _ = decode_shared(arguments, fake=True)
    embeddings, labels, ref_emb, *_ = call.batch.tensors
    side = embeddings if ref_emb is None else ref_emb
    context = torch.library.get_ctx()
    processes = dist.get_world_size(call.group)
    columns: Any = processes * side.shape[0]
    if not call.same_sizes and not call.ring:
        columns = context.new_dynamic_size()
    dtype = result_dtype(embeddings.dtype)
    rows = embeddings.shape[0]
    saved = [
        context.new_dynamic_size() if place < call.blocks_kept else 0
        for place in range(KEPT_BLOCKS)
    ]
    return (
        embeddings.new_empty(rows, dtype=dtype),
        embeddings.new_empty(rows, dtype=dtype),
        side.new_empty(0 if call.ring else columns, side.shape[1]),
        labels.new_empty(side.shape[0] if call.ring else columns),
        labels.new_empty(rows),
        side.new_empty((1 + call.blocks_kept, 2, rows * dtype.itemsize), dtype=torch.uint8),
        torch.empty(3, processes, dtype=torch.int64, device="cpu"),
        torch.empty(1, dtype=torch.uint8, device="cpu"),
        *(side.new_empty(size, dtype=torch.uint8) for size in saved),
    )


@torch.library.register_fake("circle_kernels::shared_logsumexp_backward")
def _backward_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    call, _ = decode_shared(arguments, fake=True)
    return fake_gradients(call.batch, *call.needs)


class _Forward(torch.autograd.Function):
    """The forward op with its gradient."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        *inputs, averaged = arguments
        results = _forward_op(*inputs, _LAYOUT)
        columns, column_labels, row_labels, *kept = results[2:]
        embeddings, _, ref_emb, *_ = inputs[:LABELS]
        sides = (owned(embeddings), row_labels, owned(ref_emb))
        ctx.save_for_backward(*sides, columns, column_labels, *kept)
        ctx.settings = inputs[LABELS:]
        group = group_of_name(ctx.settings[-OF_SHARING])
        ctx.factor = dist.get_world_size(group) if averaged else 1
        ctx.mark_non_differentiable(*results[2:])
        ctx.set_materialize_grads(False)  # zeros, for all that was kept
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        embeddings, row_labels, ref_emb, columns, column_labels, *kept = ctx.saved_tensors
        upstream = [
            embeddings.new_zeros(len(embeddings), dtype=result_dtype(embeddings.dtype))
            if gradient is None
            else gradient * ctx.factor
            for gradient in gradients[:2]
        ]
        # Of references that are not gathered, their labels are among what was kept.
        ref_labels = None if ref_emb is None else column_labels.new_empty(ref_emb.shape[0])
        of_rows, of_references = _Backward.apply(
            *(embeddings, row_labels, ref_emb, ref_labels, None, None),
            *ctx.settings,
            *(columns, column_labels, *kept),
            *upstream,
        )
        needs = Needs(*ctx.settings[-2:])
        return (
            of_rows if needs.embeddings else None,
            None,
            of_references if needs.references else None,
            *(None,) * (len(ctx.settings) + LABELS - 2),
        )


class _Backward(torch.autograd.Function):
    """The backward op, which cannot be differentiated."""

    backward = staticmethod(no_second_derivative)

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        return _backward_op(*arguments)


# As compilers find it: they do not look into autograd functions that are called by other names.
_differentiable_op = define(
    "shared_logsumexp",
    f"({BATCH}, {OPERATION}, {SHARING}, bool averaged) -> ({', '.join(['Tensor'] * _RESULTS)})",
    lambda *arguments: _Forward.apply(*arguments),
    whole=False,
)
