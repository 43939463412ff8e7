"""The fused operation as registered ops, which compilers, exporters and tracers see whole."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _python_dispatch

from circle_kernels.backends.addressable import all_addressable, is_legacy_batch
from circle_kernels.backends.choice import (
    behind_the_gate,
    is_of_another,
    new_saved,
    run_backward,
    run_backward_of_any,
    run_forward,
    serving,
    which_saved,
)
from circle_kernels.backends.problem import Needs, Passed, result_dtype
from circle_kernels.formula import formula_from_parameters
from circle_kernels.operation.batch import Batch, Operation, check_layout
from circle_kernels.operation.reductions import row_losses
from circle_kernels.precision import float32_precision

# Raised when a backend saves something of another shape. torch keeps compiled graphs on disk by the
# arguments of their ops: with this among them, none is found that an earlier version compiled. (Not
# as a default, which torch leaves out.)
SAVED_LAYOUT = 9

# The arguments of both ops, once: a Batch, and an Operation as ops can carry it. The formula's
# numbers are a tensor, since to ops every number is a constant, and a schedule of gamma would
# compile a graph for each of its values.
_BATCH = "Tensor embeddings, Tensor labels, Tensor? ref_emb, Tensor? ref_labels, Tensor? listed"
_OPERATION = (
    "Tensor parameters, str formula, bool detach_weights, bool normalize, float skip_below, "
    "str backend"
)
_LABELS, _OPTIONS = 5, 11  # where the operation and what follows it begin


def under_transforms() -> bool:
    """Whether ``torch.func`` is at work, whose tensors have no memory of their own."""
    return torch._C._are_functorch_transforms_active()


def is_batch_of_gradients(*gradients: Tensor) -> bool:
    """Whether one of the upstream gradients stands for several."""
    return under_transforms() or any(map(is_legacy_batch, gradients))


def encode(batch: Batch, operation: Operation) -> tuple[Any, ...]:
    """Both as the ops take them."""
    formula = operation.formula
    if torch.compiler.is_compiling():
        # Products with a tensor are what compilers keep a number variable in.
        one = torch.ones((), dtype=torch.float64, device="cpu")
        parameters = torch.stack([one * value for value in formula.parameters()])
    else:
        parameters = torch.tensor(formula.parameters(), dtype=torch.float64, device="cpu")
        if isinstance(batch.embeddings, FakeTensor) and not isinstance(parameters, FakeTensor):
            parameters = batch.embeddings.fake_mode.from_tensor(parameters)
    return (
        *batch.tensors,
        parameters,
        formula.name,
        formula.detach_weights,
        operation.normalize,
        operation.skip_below,
        operation.backend,
    )


def _decode(arguments: Sequence[Any], *, fake: bool = False) -> tuple[Batch, Operation, Any]:
    """What :func:`encode` was given, and the arguments that follow."""
    parameters, *others = arguments[_LABELS:_OPTIONS]
    # Of a fake tensor there are no numbers, and shapes do not depend on them.
    numbers = [0.5] * parameters.shape[0] if fake else parameters.tolist()
    operation = _decode_operation(tuple(numbers), *others)
    return Batch(*arguments[:_LABELS]), operation, arguments[_OPTIONS:]


@functools.lru_cache(maxsize=16)
def _decode_operation(
    numbers: tuple[float, ...], formula: str, detach_weights: bool, *options: Any
) -> Operation:
    return Operation(formula_from_parameters(formula, list(numbers), detach_weights), *options)


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, operation, (keep_for_backward, _) = _decode(arguments)
    check_layout(batch)
    precision = float32_precision(batch.embeddings.device.type)
    problem = operation.problem(batch, precision=precision, keep_for_backward=keep_for_backward)
    module = serving(problem, operation.backend)
    if not (problem.is_empty or all_addressable(*problem.tensors)):
        module = behind_the_gate(module, operation.backend, problem.named_tensors)
    return run_forward(module, problem)


def _backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Gradients for both sides; an empty tensor stands for one that is not needed."""
    batch, operation, (*tensors, needs_embeddings, needs_references) = _decode(arguments)
    check_layout(batch)
    precision = float32_precision(batch.embeddings.device.type)
    problem, passed = operation.problem(batch, precision=precision), Passed(*tensors)
    module = which_saved(passed.saved, problem, operation.backend)
    needs = Needs(needs_embeddings, needs_references)
    if all_addressable(*problem.tensors, *passed) and not is_of_another(
        passed.saved, module, problem
    ):
        gradients = run_backward(module, problem, passed, needs)
    else:
        gradients = run_backward_of_any(module, problem, passed, needs, operation.backend)
    return _without_none(batch, gradients)


def _loss_and_gradients(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and its gradients for both sides, as :func:`_backward` has them."""
    batch, operation, (reduction, *needed) = _decode(arguments)
    check_layout(batch)
    precision = float32_precision(batch.embeddings.device.type)
    problem, needs = operation.problem(batch, precision=precision), Needs(*needed)
    module = serving(problem, operation.backend)
    if not (problem.is_empty or all_addressable(*problem.tensors)):
        module = behind_the_gate(module, operation.backend, problem.named_tensors)
    if hasattr(module, "loss_and_gradients") and not problem.is_empty:
        loss, gradients = module.loss_and_gradients(problem, reduction, needs)
        return loss, *_without_none(batch, gradients)
    lse_pos, lse_neg, saved = run_forward(module, problem)
    loss, slopes = row_losses(module, lse_pos, lse_neg, reduction)
    gradients = run_backward(module, problem, Passed(saved, slopes, slopes), needs)
    return loss, *_without_none(batch, gradients)


def _without_none(
    batch: Batch, gradients: tuple[Tensor | None, Tensor | None]
) -> tuple[Tensor, Tensor]:
    grad_embeddings, grad_references = (
        batch.embeddings.new_empty(0) if gradient is None else gradient for gradient in gradients
    )
    return grad_embeddings, grad_references


def _define(name: str, schema: str, kind: str, implementation: Callable[..., Any]) -> Any:
    """An op. Not by ``torch.library.custom_op``, which checks at every call that results are no
    views of arguments, in more time than a small batch takes."""
    torch.library.define(f"circle_kernels::{name}", schema, tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(f"circle_kernels::{name}", kind, implementation)
    return getattr(torch.ops.circle_kernels, name).default


# What graphs hold. Gradients are not registered with them: where one is wanted, the op is called
# inside of a function that has it, and when a graph runs nobody asks for one.
_forward_op = _define(
    "pair_logsumexp_forward",
    f"({_BATCH}, {_OPERATION}, bool keep_for_backward, int saved_layout) "
    "-> (Tensor, Tensor, Tensor)",
    "CompositeExplicitAutograd",
    _forward,
)
_backward_op = _define(
    "pair_logsumexp_backward",
    f"({_BATCH}, {_OPERATION}, Tensor saved, Tensor grad_lse_pos, Tensor grad_lse_neg, "
    "bool needs_embeddings, bool needs_references) -> (Tensor, Tensor)",
    "CompositeExplicitAutograd",
    _backward,
)


_at_once_op = _define(
    "pair_loss_and_gradients",
    f"({_BATCH}, {_OPERATION}, str reduction, bool needs_embeddings, bool needs_references) "
    "-> (Tensor, Tensor, Tensor)",
    "CompositeExplicitAutograd",
    _loss_and_gradients,
)


@torch.library.register_fake("circle_kernels::pair_logsumexp_forward")
def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, operation, (keep_for_backward, _) = _decode(arguments, fake=True)
    problem = operation.problem(batch, keep_for_backward=keep_for_backward)
    rows = batch.embeddings.shape[0]
    lse_pos, lse_neg = (
        batch.embeddings.new_empty(rows, dtype=problem.result_dtype) for _ in range(2)
    )
    return lse_pos, lse_neg, new_saved(serving(problem, operation.backend), problem)


@torch.library.register_fake("circle_kernels::pair_loss_and_gradients")
def _at_once_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, (_, *needs) = _decode(arguments, fake=True)
    loss = batch.embeddings.new_empty((), dtype=result_dtype(batch.embeddings.dtype))
    return loss, *_fake_gradients(batch, *needs)


@torch.library.register_fake("circle_kernels::pair_logsumexp_backward")
def _backward_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    batch, _, (*_, needs_embeddings, needs_references) = _decode(arguments, fake=True)
    return _fake_gradients(batch, needs_embeddings, needs_references)


def _fake_gradients(
    batch: Batch, needs_embeddings: bool, needs_references: bool
) -> tuple[Tensor, Tensor]:
    embeddings, ref_emb = batch.embeddings, batch.ref_emb
    return (
        embeddings.new_empty(embeddings.shape if needs_embeddings else 0),
        ref_emb.new_empty(ref_emb.shape)
        if needs_references and ref_emb is not None
        else embeddings.new_empty(0),
    )


def _keep_for_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *arguments, keep_for_backward, _ = inputs
    ctx.save_for_backward(*arguments[: _LABELS + 1], output[2])
    ctx.settings = arguments[_LABELS + 1 :]
    ctx.kept = keep_for_backward
    ctx.mark_non_differentiable(output[2])


def _gradient(ctx: Any, grad_lse_pos: Tensor, grad_lse_neg: Tensor, _: Any) -> tuple[Any, ...]:
    *inputs, saved = ctx.saved_tensors
    if not ctx.kept:  # traced where no gradient was wanted, and run where one is
        saved = _forward_op(*inputs, *ctx.settings, True, SAVED_LAYOUT)[2]
    gradients = _traced_gradients(
        (*inputs, *ctx.settings),
        Passed(saved, grad_lse_pos, grad_lse_neg),
        Needs(ctx.needs_input_grad[0], ctx.needs_input_grad[2]),
    )
    return gradients[0], None, gradients[1], *(None,) * 10


def traced_gradients(
    batch: Batch,
    operation: Operation,
    passed: Passed,
    needs: Needs,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of :func:`traced_logsumexps` as one op."""
    return _traced_gradients(encode(batch, operation), passed, needs)


def _traced_gradients(
    encoded: tuple[Any, ...], passed: Passed, needs: Needs
) -> tuple[Tensor | None, Tensor | None]:
    grad_embeddings, grad_references = _Backward.apply(*encoded, *passed, *needs)
    return (
        grad_embeddings if needs.embeddings else None,
        grad_references if needs.references else None,
    )


NO_SECOND_DERIVATIVE = (
    "circle_kernels: the loss cannot be differentiated twice, as a gradient penalty does; "
    "backend='reference' can, and so can pytorch-metric-learning's own CircleLoss for its adapter"
)


def _no_second_derivative(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
    raise RuntimeError(NO_SECOND_DERIVATIVE)


def _one_by_one(op: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Any]:
    """The rule of ``torch.func.vmap`` for an op: one call for each member of the batch."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        members = [
            op(
                *(
                    value if dim is None else value.select(dim, index)
                    for value, dim in zip(arguments, in_dims, strict=True)
                )
            )
            for index in range(info.batch_size)
        ]
        results = tuple(torch.stack(values) for values in zip(*members, strict=True))
        return results, (0,) * len(results)

    return rule


torch.library.register_vmap(_forward_op, _one_by_one(_forward_op))
torch.library.register_vmap(_backward_op, _one_by_one(_backward_op))


class _Forward(torch.autograd.Function):
    """The forward op with its gradient."""

    generate_vmap_rule = True
    forward = staticmethod(_forward_op)
    setup_context = staticmethod(_keep_for_gradient)
    backward = staticmethod(_gradient)


class _Backward(torch.autograd.Function):
    """The backward op, which cannot be differentiated."""

    generate_vmap_rule = True
    forward = staticmethod(_backward_op)
    backward = staticmethod(_no_second_derivative)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing is kept, since nothing is differentiated again."""


# The forward op with its gradient, as compilers find it, which do not look into autograd functions
# that are called by other names than these.
_differentiable_op = _define(
    "pair_logsumexp",
    f"({_BATCH}, {_OPERATION}, bool keep_for_backward, int saved_layout) "
    "-> (Tensor, Tensor, Tensor)",
    "CompositeImplicitAutograd",
    lambda *arguments: _Forward.apply(*arguments),
)


class _AtOnce(torch.autograd.Function):
    """The loss, with gradients that are computed with it: a scalar multiplies them later."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        loss, *gradients = _at_once_op(*arguments)
        ctx.needs = Needs(*arguments[-2:])
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Any, ...]:
        of_embeddings, of_references = (
            gradient * grad_loss if needed else None
            for gradient, needed in zip(ctx.saved_tensors, ctx.needs, strict=True)
        )
        return of_embeddings, None, of_references, *(None,) * 11


_differentiable_loss = _define(
    "pair_loss",
    f"({_BATCH}, {_OPERATION}, str reduction, bool needs_embeddings, bool needs_references) "
    "-> Tensor",
    "CompositeImplicitAutograd",
    lambda *arguments: _AtOnce.apply(*arguments),
)


def computes_at_once(batch: Batch, reduction: str) -> bool:
    """Whether a compiled step computes gradients with the loss, as one op instead of two.

    A compiler's graphs come in pairs, so that what is computed is used, and at a small batch an op
    costs as much as its kernel. Half types would lose gradients that are to be scaled up first.
    """
    embeddings = batch.embeddings
    return (
        torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
        and not under_transforms()
        and batch.requires_grad
        and reduction != "none"
        and embeddings.device.type == "cpu"
        and embeddings.dtype in (torch.float32, torch.float64)
    )


def traced_loss(batch: Batch, operation: Operation, reduction: str) -> Tensor:
    """The reduced loss of a checked batch, for which :func:`computes_at_once` holds."""
    sides = (batch.embeddings, batch.ref_emb)
    needs = (side is not None and side.requires_grad for side in sides)
    return _differentiable_loss(*encode(batch, operation), reduction, *needs)


def traced_logsumexps(batch: Batch, operation: Operation) -> tuple[Tensor, Tensor]:
    """:func:`circle_kernels.pair_logsumexp` of a checked batch as one op, differentiable once."""
    _tell_flop_counters()
    op = _Forward.apply if under_transforms() else _differentiable_op
    lse_pos, lse_neg, _ = op(*encode(batch, operation), batch.requires_grad, SAVED_LAYOUT)
    return lse_pos, lse_neg


def _forward_flops(
    embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None, *_: Any, **__: Any
) -> int:
    """Of the product that the naive loss has, whatever part of it symmetry saves."""
    return 2 * embeddings.numel() * (embeddings if ref_emb is None else ref_emb).shape[0]


def _backward_flops(
    embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None, *arguments: Any, **_: Any
) -> int:
    """The same of one product for each side that needs its gradient; in self mode there are two."""
    needs_embeddings, needs_references = arguments[-2:]
    products = 2 * needs_embeddings if ref_emb is None else needs_embeddings + needs_references
    return products * _forward_flops(embeddings, labels, ref_emb)


def _tell_flop_counters() -> None:
    """Give both formulas to the counters at work: importing theirs for it would import Triton."""
    counting = sys.modules.get("torch.utils.flop_counter")
    if counting is None or torch.compiler.is_compiling():
        return
    counters = [
        mode.counter
        for mode in _python_dispatch._get_current_dispatch_mode_stack()
        if hasattr(mode, "counter")
    ]
    for each in (counting, *(c for c in counters if isinstance(c, counting.FlopCounterMode))):
        each.flop_registry.setdefault(_forward_op.overloadpacket, _forward_flops)
        each.flop_registry.setdefault(_backward_op.overloadpacket, _backward_flops)
