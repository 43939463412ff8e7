"""The fused operation as registered ops, which compilers, exporters and tracers see whole."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _python_dispatch

from circle_kernels.backends.addressable import all_addressable, is_legacy_batch, under_transforms
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
from circle_kernels.backends.problem import Needs, PairProblem, Passed, result_dtype
from circle_kernels.backends.saved_bytes import HOOKS
from circle_kernels.formula import formula_from_parameters
from circle_kernels.operation.batch import Batch, Operation, check_layout
from circle_kernels.operation.reductions import SCALARS, row_losses
from circle_kernels.options import check_choice
from circle_kernels.precision import PRECISIONS, float32_precision

# Raised when a backend saves something of another shape, and when an op returns more. torch keeps
# compiled graphs on disk by the arguments of their ops: with this among them, none is found that an
# earlier version compiled. (Not as a default, which torch leaves out.)
SAVED_LAYOUT = 11

# The arguments of all ops, once: a Batch, and an Operation as ops can carry it. The formula's
# numbers are a tensor, since to ops every number is a constant, and a schedule of gamma would
# compile a graph for each of its values.
BATCH = (
    "Tensor embeddings, Tensor labels, Tensor? ref_emb, Tensor? ref_labels, Tensor? listed, "
    "Tensor? own_columns"
)
OPERATION = (
    "Tensor parameters, str formula, bool detach_weights, bool normalize, float skip_below, "
    "str backend, bool both_sides"
)
# Returned are both log-sum-exps, what was saved, and the precision.
FORWARD = (
    f"({BATCH}, {OPERATION}, bool keep_for_backward, int saved_layout) -> "
    "(Tensor, Tensor, Tensor, Tensor)"
)
LABELS, _OPTIONS = 6, 13  # where the operation and what follows it begin


def is_batch_of_gradients(*gradients: Tensor) -> bool:
    """Whether one of the upstream gradients stands for several."""
    return under_transforms() or any(map(is_legacy_batch, gradients))


def encode(batch: Batch, operation: Operation) -> tuple[Any, ...]:
    """Both as the ops take them."""
    formula = operation.formula
    if torch.compiler.is_compiling():
        parameters = variable_numbers(*formula.parameters())
        if operation.scale is not None:
            places = torch.arange(len(parameters), device="cpu")
            scale = operation.scale.detach().to("cpu", torch.float64)
            parameters = torch.where(places == formula.place_of_gamma, scale, parameters)
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
        operation.both_sides,
    )


def variable_numbers(first: float, *others: float) -> Tensor:
    """Numbers as a tensor in which compilers keep them variable, as they do in products with one.

    Not by ``torch.stack``, for which generated code has a loop and a view for each of them.
    """
    places = torch.arange(1 + len(others), dtype=torch.float64, device="cpu")
    ones = torch.ones_like(places)
    numbers = ones * first
    for place, number in enumerate(others, 1):
        numbers = torch.where(places < place, numbers, ones * number)
    return numbers


def decode(arguments: Sequence[Any], *, fake: bool = False) -> tuple[Batch, Operation, Any]:
    """What :func:`encode` was given, and the arguments that follow."""
    parameters = arguments[LABELS]
    # Of a fake tensor there are no numbers, and shapes do not depend on them.
    numbers = [0.5] * parameters.shape[0] if fake else parameters.tolist()
    operation = _decode_operation(tuple(numbers), *arguments[LABELS + 1 : _OPTIONS])
    return Batch(*arguments[:LABELS]), operation, arguments[_OPTIONS:]


@functools.lru_cache(maxsize=16)
def _decode_operation(
    numbers: tuple[float, ...], formula: str, detach_weights: bool, *options: Any
) -> Operation:
    return Operation(formula_from_parameters(formula, list(numbers), detach_weights), *options)


def _problem(
    batch: Batch, operation: Operation, precision: str = "", *, keep_for_backward: bool = True
) -> PairProblem:
    """The problem of a batch that nobody has checked; in the precision of now, if in no other."""
    check_layout(batch)
    precision = precision or float32_precision(batch.embeddings.device.type)
    return operation.problem(batch, precision=precision, keep_for_backward=keep_for_backward)


def encode_precision(precision: str) -> Tensor:
    """What the forward pass read of the settings when it ran, as it reaches the backward pass: (1,)
    uint8 on the CPU, where reading it waits for no device."""
    return torch.tensor([PRECISIONS.index(precision)], dtype=torch.uint8, device="cpu")


def _number(of_one: Tensor) -> int:
    # Of item(), tracers say that it waits for a device, and fake tensors are no company for others.
    if type(of_one) is not Tensor or not _python_dispatch.is_in_torch_dispatch_mode():
        return of_one.tolist()[0]
    with _python_dispatch._disable_current_modes():
        return of_one.tolist()[0]


def decode_precision(precision: Tensor) -> str:
    """What :func:`encode_precision` was given.

    Raises:
        RuntimeError: a tensor that it did not return.
    """
    if precision.dtype == torch.uint8 and precision.shape == (1,):
        place = _number(precision)
        if place < len(PRECISIONS):
            return PRECISIONS[place]
    raise RuntimeError(
        "circle_kernels: precision is not what the forward pass left, but "
        f"{precision.dtype} of shape {tuple(precision.shape)}; {HOOKS}"
    )


def _serving_any(problem: PairProblem, backend: str) -> Any:
    """The module that serves a problem, whatever its tensors are."""
    module = serving(problem, backend)
    if problem.is_empty or all_addressable(*problem.tensors):
        return module
    return behind_the_gate(module, backend, problem.named_tensors)


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, operation, (keep_for_backward, _) = decode(arguments)
    problem = _problem(batch, operation, keep_for_backward=keep_for_backward)
    results = run_forward(_serving_any(problem, operation.backend), problem)
    return *results, encode_precision(problem.precision)


def _backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Gradients for both sides; an empty tensor stands for one that is not needed."""
    batch, operation, (precision, *tensors, needs_embeddings, needs_references) = decode(arguments)
    problem = _problem(batch, operation, decode_precision(precision))
    passed = Passed(*tensors)
    module = which_saved(passed.saved, problem, operation.backend)
    needs = Needs(needs_embeddings, needs_references)
    if all_addressable(*problem.tensors, *passed[:3]) and not is_of_another(
        passed.saved, module, problem
    ):
        gradients = run_backward(module, problem, passed, needs)
    else:
        gradients = run_backward_of_any(module, problem, passed, needs, operation.backend)
    return without_none(batch, gradients)


def _loss_and_gradients(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and its gradients for both sides, as :func:`_backward` has them."""
    batch, operation, (reduction, *needed) = decode(arguments)
    check_choice("reduction", reduction, SCALARS)  # kernels write more than one number with others
    problem, needs = _problem(batch, operation), Needs(*needed)
    module = _serving_any(problem, operation.backend)
    if hasattr(module, "loss_and_gradients") and not problem.is_empty:
        loss, gradients = module.loss_and_gradients(problem, reduction, needs)
        return loss, *without_none(batch, gradients)
    lse_pos, lse_neg, saved = run_forward(module, problem)
    loss, slopes = row_losses(module, lse_pos, lse_neg, reduction)
    gradients = run_backward(module, problem, Passed(saved, slopes, slopes), needs)
    return loss, *without_none(batch, gradients)


def without_none(
    batch: Batch, gradients: tuple[Tensor | None, Tensor | None]
) -> tuple[Tensor, Tensor]:
    grad_embeddings, grad_references = gradients
    return (
        batch.embeddings.new_empty(0) if grad_embeddings is None else grad_embeddings,
        batch.embeddings.new_empty(0) if grad_references is None else grad_references,
    )


def define(
    name: str,
    schema: str,
    implementation: Callable[..., Any],
    *,
    whole: bool,
    collective: bool = False,
) -> Any:
    """An op that graphs hold ``whole``, or of which they hold what it is made of.

    One that is ``collective`` has to run where nobody needs its results, as those of no rows: the
    other processes wait for this one.

    Not by ``torch.library.custom_op``, which checks at every call that results are no views of
    arguments, in more time than a small batch takes.
    """

    def without_gradients(*arguments: Any) -> Any:
        # As it is wherever a graph runs; who calls an op by its name may not know that it has none.
        if not torch.is_grad_enabled():
            return implementation(*arguments)
        with torch.no_grad():
            return implementation(*arguments)

    torch.library.define(f"circle_kernels::{name}", schema, tags=torch.Tag.pt2_compliant_tag)
    if whole:
        kind, kernel = "CompositeExplicitAutograd", without_gradients
    else:
        kind, kernel = "CompositeImplicitAutograd", implementation
    torch.library.impl(f"circle_kernels::{name}", kind, kernel)
    op = getattr(torch.ops.circle_kernels, name).default
    return torch.fx.node.has_side_effect(op) if collective else op


# What graphs hold. Where a gradient is wanted, the op is called inside of a function that has it,
# and when a graph runs nobody asks for one; the forward op has its own for those that do.
forward_op: Any = define("pair_logsumexp_forward", FORWARD, _forward, whole=True)
backward_op: Any = define(
    "pair_logsumexp_backward",
    f"({BATCH}, {OPERATION}, Tensor precision, Tensor saved, Tensor grad_lse_pos, "
    "Tensor grad_lse_neg, bool needs_embeddings, bool needs_references) -> (Tensor, Tensor)",
    _backward,
    whole=True,
)
at_once_op: Any = define(
    "pair_loss_and_gradients",
    f"({BATCH}, {OPERATION}, str reduction, bool needs_embeddings, bool needs_references) "
    "-> (Tensor, Tensor, Tensor)",
    _loss_and_gradients,
    whole=True,
)


@torch.library.register_fake("circle_kernels::pair_logsumexp_forward")
def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, operation, (keep_for_backward, _) = decode(arguments, fake=True)
    problem = operation.problem(batch, keep_for_backward=keep_for_backward)
    lse_pos, lse_neg = (
        batch.embeddings.new_empty(problem.num_anchors, dtype=problem.result_dtype)
        for _ in range(2)
    )
    saved = new_saved(serving(problem, operation.backend), problem)
    return lse_pos, lse_neg, saved, torch.empty(1, dtype=torch.uint8, device="cpu")


@torch.library.register_fake("circle_kernels::pair_loss_and_gradients")
def _at_once_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, (_, *needs) = decode(arguments, fake=True)
    loss = batch.embeddings.new_empty((), dtype=result_dtype(batch.embeddings.dtype))
    return loss, *fake_gradients(batch, *needs)


@torch.library.register_fake("circle_kernels::pair_logsumexp_backward")
def _backward_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    batch, _, (*_, needs_embeddings, needs_references) = decode(arguments, fake=True)
    return fake_gradients(batch, needs_embeddings, needs_references)


def fake_gradients(
    batch: Batch, needs_embeddings: bool, needs_references: bool
) -> tuple[Tensor, Tensor]:
    embeddings, ref_emb = batch.embeddings, batch.ref_emb
    return (
        embeddings.new_empty(embeddings.shape if needs_embeddings else 0),
        ref_emb.new_empty(ref_emb.shape)
        if needs_references and ref_emb is not None
        else embeddings.new_empty(0),
    )
