"""Faults that use brought to light: what each case is worth, from float64 or from eager PyTorch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.functional import jacobian
from torch.func import grad, vmap
from torch.utils.flop_counter import FlopCounterMode

from circle_kernels import (
    CircleFormula,
    CircleLoss,
    ClassCircleLoss,
    circle_loss,
    class_circle_loss,
    class_unified_loss,
    pair_logsumexp,
    unified_loss,
)
from circle_kernels.backends import choice, cpu
from circle_kernels.operation.listed_pairs import (
    PairIndices,
    gathered_logsumexp,
    matrix_logsumexp,
    pair_matrix,
    unique_pairs,
)
from tests.support.apart import apart
from tests.support.raw_ops import call_op
from tests.support.targets import INTERPRETED, Target, for_every_backend
from tests.support.wrapper import Wrapper
from tests.support.yardstick import gradients

ROWS, REFERENCES, DEPTH = 12, 9, 6
on_cpu = pytest.mark.skipif(INTERPRETED, reason="the interpreter lane is for kernels")
REFUSALS = (TypeError, ValueError, RuntimeError, NotImplementedError)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def problem(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Embeddings, labels, references and their labels; both matrices require gradients."""
    return [
        draw(ROWS, DEPTH, dtype=dtype).requires_grad_(),
        torch.arange(ROWS) % 3,
        draw(REFERENCES, DEPTH, seed=1, dtype=dtype).requires_grad_(),
        torch.arange(REFERENCES) % 3,
    ]


LOSSES: dict[str, Callable[..., Tensor]] = {
    "circle": lambda *tensors, **options: circle_loss(*tensors, gamma=16, **options),
    "unified": lambda *tensors, **options: unified_loss(*tensors, m=0.2, gamma=16, **options),
    "batch": lambda *tensors, **options: circle_loss(*tensors, scope="batch", gamma=16, **options),
    "module": lambda *tensors, **options: CircleLoss(gamma=16, **options)(*tensors),
    "logsumexp": lambda *tensors, **options: torch.stack(
        pair_logsumexp(*tensors, formula=CircleFormula(gamma=16), **options)
    ).sum(),
    "class circle": lambda x, y, weight, _, **options: class_circle_loss(
        x, y, weight, gamma=16, **options
    ),
    "class unified": lambda x, y, weight, _, **options: class_unified_loss(
        x, y, weight, m=0.2, gamma=16, **options
    ),
}
for_every_loss = pytest.mark.parametrize("loss", LOSSES)


def value_and_gradients(output: Tensor, *leaves: Tensor) -> list[Tensor]:
    return [output.detach(), *torch.autograd.grad(output.sum(), leaves)]


def assert_close(
    ours: list[Tensor] | tuple[Tensor, ...], expected: list[Tensor], digits: float = 1e-4
) -> None:
    """Equal beside the largest entry of each."""
    for value, truth in zip(ours, expected, strict=True):
        scale = truth.detach().abs().max().item()
        torch.testing.assert_close(value.double(), truth.double(), rtol=0, atol=digits * scale)


def truth(loss: str, tensors: list[Tensor]) -> list[Tensor]:
    """The loss and both gradients in float64, naively."""
    wide = [
        value.detach().double().requires_grad_() if value.is_floating_point() else value.long()
        for value in tensors
    ]
    return value_and_gradients(LOSSES[loss](*wide, backend="reference"), wide[0], wide[2])


# Only the type of the embeddings was looked at before addresses were taken.


def fake(value: Tensor) -> Tensor:
    return FakeTensorMode().from_tensor(value.detach())


def zeros(value: Tensor) -> Tensor:
    return torch._efficientzerotensor(value.shape, dtype=value.dtype)


def wrap(value: Tensor) -> Tensor:
    return Wrapper(value.detach())


MEMORYLESS = {"fake": fake, "zero": zeros, "wrapper": wrap}
ARGUMENTS = ("embeddings", "labels", "ref_emb", "ref_labels")


def result_or_refusal(compute: Callable[[], list[Tensor]]) -> tuple[list[Tensor], str | None]:
    try:
        return compute(), None
    except REFUSALS as error:
        return [], str(error)


def expect_truth_or_refusal(name: str, compute: Callable[[], list[Tensor]], expected) -> None:
    """The right numbers, or an error that names the argument."""
    results, refusal = result_or_refusal(compute)
    if refusal is not None:
        assert name in refusal
    else:
        assert expected is not None, "numbers from a tensor that has none"
        assert_close([getattr(each, "wrapped", each) for each in results], expected)


@on_cpu
@pytest.mark.parametrize("kind", MEMORYLESS)
@pytest.mark.parametrize("position", range(4), ids=ARGUMENTS)
@apart
def test_tensor_without_memory_gives_the_truth_or_an_error_that_names_it(
    position: int, kind: str
) -> None:
    for loss, function in LOSSES.items():
        tensors = [value.detach() for value in problem()]
        name = ARGUMENTS[position]
        if loss.startswith("class"):
            if name == "ref_labels":
                continue
            name = {"ref_emb": "weight"}.get(name, name)
        plain = list(tensors)
        if kind == "zero":
            plain[position] = torch.zeros_like(tensors[position])
        expected = None if kind == "fake" else truth(loss, plain)[:1]
        tensors[position] = MEMORYLESS[kind](tensors[position])
        compute = partial(lambda function, tensors: [function(*tensors)], function, tensors)
        expect_truth_or_refusal(name, compute, expected)


@on_cpu
@pytest.mark.parametrize("kind", MEMORYLESS)
@apart
def test_upstream_gradient_without_memory_gives_the_truth_or_an_error_that_names_it(
    kind: str,
) -> None:
    scale = {"fake": None, "zero": 0.0, "wrapper": 0.7}[kind]

    def compute(loss: str) -> list[Tensor]:
        tensors, upstream = problem(), MEMORYLESS[kind](torch.tensor(0.7))
        return list(torch.autograd.grad(LOSSES[loss](*tensors), tensors[::2], upstream))

    for loss in LOSSES:
        if loss in ("batch", "logsumexp"):
            continue  # operations of torch get the upstream gradient first
        gradients = truth(loss, problem())[1:]
        expected = None if scale is None else [scale * each for each in gradients]
        expect_truth_or_refusal("grad", partial(compute, loss), expected)


@on_cpu
@apart
def test_sharded_class_weight_gives_the_truth_or_an_error_that_names_it() -> None:
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    x, y, *_ = problem()
    head = ClassCircleLoss(REFERENCES, DEPTH, gamma=16)
    expected = [class_circle_loss(x, y, head.weight.detach().clone(), gamma=16).detach()]
    fully_shard(head, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (1,)))
    expect_truth_or_refusal(
        "weight", lambda: [class_circle_loss(x, y, head.weight, gamma=16).detach()], expected
    )


def listed_logsumexps(
    x: Tensor, references: Tensor | None, short: bool, indices: PairIndices | None = None
) -> tuple[Tensor, Tensor]:
    """Over listed pairs, worked off one by one or as a matrix."""
    columns = ROWS if references is None else len(references)
    same = torch.arange(ROWS)[:, None] % 3 == torch.arange(columns) % 3
    if references is None:
        same.fill_diagonal_(False)
    rows_pos, columns_pos = same.nonzero().T
    rows_neg, columns_neg = (~same).fill_diagonal_(False).nonzero().T
    indices = indices or PairIndices(rows_pos, columns_pos, rows_neg, columns_neg)
    options = {"formula": CircleFormula(gamma=16)}
    if short:
        return gathered_logsumexp(x, references, unique_pairs(indices, ROWS, columns), **options)
    return matrix_logsumexp(x, references, pair_matrix(indices, ROWS, columns), **options)


@on_cpu
@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("kind", MEMORYLESS)
@apart
def test_listed_pairs_of_tensors_without_memory_are_right_or_named(kind: str, short: bool) -> None:
    x, _, references, _ = (value.detach() for value in problem())
    plain = zeros(references).clone() if kind == "zero" else references
    expected = None
    if kind != "fake":
        expected = list(listed_logsumexps(x.double(), plain.double(), short))
    unlike = MEMORYLESS[kind](references)
    # What the two functions are given has names only where the drop-in calls them.
    names = ("", "") if kind == "fake" else ("ref_emb", "grad")
    expect_truth_or_refusal(names[0], lambda: list(listed_logsumexps(x, unlike, short)), expected)
    leaf = x.clone().requires_grad_()
    upstream = torch.rand(ROWS)
    scale = {"fake": None, "zero": 0.0, "wrapper": 1.0}[kind]

    def compute(values: Tensor, scaled: Tensor) -> list[Tensor]:
        lse_pos, _ = listed_logsumexps(values, None, short)
        return list(torch.autograd.grad(lse_pos, values, scaled))

    if scale is not None:
        wide = x.double().requires_grad_()
        expected = compute(wide, scale * upstream.double())
    expect_truth_or_refusal(names[1], lambda: compute(leaf, MEMORYLESS[kind](upstream)), expected)


# Lazily negated and conjugated views.


def lazily_negated(value: Tensor) -> Tensor:
    """What ``complex(a, b).conj().imag`` is for b = -value: its memory holds the negative."""
    value = torch.complex(torch.zeros_like(value), -value).conj().imag
    assert value.is_neg()
    return value


@pytest.mark.backends
@for_every_backend
@pytest.mark.parametrize("position", [0, 2], ids=["embeddings", "references"])
@for_every_loss
def test_lazily_negated_views_are_the_numbers_that_they_stand_for(
    target: Target, loss: str, position: int
) -> None:
    if torch.float32 not in target.dtypes:
        pytest.skip("complex parts are float32")
    tensors = [value.detach().to(target.device) for value in problem()]
    expected = truth(loss, [value.cpu() for value in tensors])
    tensors[position] = lazily_negated(tensors[position])
    leaves = [tensors[0].requires_grad_(), tensors[2].requires_grad_()]
    output = LOSSES[loss](*tensors, backend=target.backend)
    assert_close([each.cpu() for each in value_and_gradients(output, *leaves)], expected)


@pytest.mark.backends
@for_every_backend
def test_lazily_negated_upstream_gradient_is_the_numbers_that_it_stands_for(target: Target) -> None:
    for dtype in set(target.dtypes) & {torch.float32, torch.float64}:
        tensors = [value.to(target.device) for value in problem()[:2]]
        x, labels = tensors[0].detach().to(dtype).requires_grad_(), tensors[1]
        statistics = pair_logsumexp(x, labels, formula=CircleFormula(), backend=target.backend)
        upstream = tuple(draw(ROWS, seed=seed).to(x) for seed in (3, 4))
        expected = torch.autograd.grad(statistics, x, upstream, retain_graph=True)
        negated = tuple(map(lazily_negated, upstream))
        assert torch.equal(torch.autograd.grad(statistics, x, negated)[0], expected[0])


@on_cpu
@pytest.mark.parametrize("short", [True, False])
def test_lazily_negated_references_of_listed_pairs(short: bool) -> None:
    x, _, references, _ = (value.detach() for value in problem())
    negated = lazily_negated(references)
    expected = list(listed_logsumexps(x.double(), references.double(), short))
    assert_close(listed_logsumexps(x, negated, short), expected)


# The second derivative.


def expect_no_second_derivative(output: Tensor, *leaves: Tensor) -> None:
    """Where the upstream gradient is constant, too, a penalty on the gradient raises."""
    gradient = torch.autograd.grad(output, leaves, create_graph=True)
    penalty = sum(each.square().sum() for each in gradient)
    with pytest.raises(RuntimeError, match="twice"):
        (output + penalty).backward()


@pytest.mark.backends
@for_every_backend
@for_every_loss
def test_penalty_on_the_gradient_raises(target: Target, loss: str) -> None:
    tensors = [value.detach().to(target.device) for value in problem()]
    leaves = [tensors[0].requires_grad_(), tensors[2].requires_grad_()]
    expect_no_second_derivative(LOSSES[loss](*tensors, backend=target.backend), *leaves)
    expect_no_second_derivative(LOSSES[loss](*tensors, backend=target.backend), leaves[0])


@pytest.mark.backends
@for_every_backend
def test_penalty_on_the_gradient_of_either_logsumexp_raises(target: Target) -> None:
    x, labels = (value.detach().to(target.device) for value in problem()[:2])
    for index in (0, 1):
        leaf = x.clone().requires_grad_()
        statistics = pair_logsumexp(leaf, labels, formula=CircleFormula(), backend=target.backend)
        expect_no_second_derivative(statistics[index].sum(), leaf)


@on_cpu
@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("references", [True, False])
def test_penalty_on_the_gradient_over_listed_pairs_raises(references: bool, short: bool) -> None:
    x, _, other, _ = problem()
    for index in (0, 1):
        statistics = listed_logsumexps(x, other if references else None, short)
        expect_no_second_derivative(statistics[index].sum(), x)


# ``auto`` that resolves differently in the two passes.


@on_cpu
@pytest.mark.parametrize("order", [("cpu", "tiled"), ("tiled", "cpu")], ids=str)
@for_every_loss
@apart
def test_backward_takes_the_backend_that_the_forward_chose(
    loss: str, order: tuple[str, str]
) -> None:
    tensors = problem()
    choice._BEST_BACKEND["cpu"] = order[0]
    output = LOSSES[loss](*tensors)
    choice._BEST_BACKEND["cpu"] = order[1]
    assert_close(value_and_gradients(output, *tensors[::2]), truth(loss, tensors))


@on_cpu
@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("order", [("cpu", "tiled"), ("tiled", "cpu")], ids=str)
@apart
def test_backward_over_listed_pairs_takes_the_backend_that_the_forward_chose(
    order: tuple[str, str], short: bool
) -> None:
    x, _, references, _ = problem()
    wide = [each.detach().double().requires_grad_() for each in (x, references)]
    expected = value_and_gradients(torch.stack(listed_logsumexps(*wide, short)), *wide)
    choice._BEST_BACKEND["cpu"] = order[0]
    output = torch.stack(listed_logsumexps(x, references, short))
    choice._BEST_BACKEND["cpu"] = order[1]
    assert_close(value_and_gradients(output, x, references), expected)


def in_two_levels(tensors: list[Tensor], first: str, second: str) -> list[Tensor]:
    """Loss and gradients, the forward pass with one instruction set and the backward with one."""
    os.environ[cpu.LEVEL_VARIABLE] = first
    output = LOSSES["circle"](*tensors)
    os.environ[cpu.LEVEL_VARIABLE] = second
    return value_and_gradients(output, *tensors[::2])


@on_cpu
@pytest.mark.parametrize("order", [("", "none such"), ("none such", "")], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@apart
def test_level_that_changes_between_the_passes_is_right_or_named(
    dtype: torch.dtype, order: tuple[str, str]
) -> None:
    """Also from each level that the machine has to each other one."""
    levels = cpu.supported_levels()
    for first, second in [order, *((a, b) for a in levels for b in levels if a != b)]:
        tensors = problem(dtype)
        results, refusal = result_or_refusal(partial(in_two_levels, tensors, first, second))
        if refusal is not None:
            assert "none such" in (first, second)
            assert cpu.LEVEL_VARIABLE in refusal
        else:
            digits = 8 * torch.finfo(dtype).eps if dtype == torch.bfloat16 else 1e-4
            assert_close(results, truth("circle", tensors), digits)


@on_cpu
@pytest.mark.parametrize("order", [("cpu", "tiled"), ("tiled", "cpu")], ids=str)
@apart
def test_compiled_step_is_right_where_auto_resolves_differently_later(
    order: tuple[str, str],
) -> None:
    compiled = torch.compile(LOSSES["circle"], fullgraph=True, backend="aot_eager")
    expected = truth("circle", problem())
    choice._BEST_BACKEND["cpu"] = order[0]
    tensors = problem()
    output = compiled(*tensors)
    assert_close(value_and_gradients(output, *tensors[::2]), expected)
    output = compiled(*tensors)
    choice._BEST_BACKEND["cpu"] = order[1]
    assert_close(value_and_gradients(output, *tensors[::2]), expected)
    output = compiled(*tensors)
    assert_close(value_and_gradients(output, *tensors[::2]), expected)


# Sizes that overflow.

WIDE, LONG = (2, 2**58), (2**58, 2)
HUGE = {
    "wide": lambda like: (like.new_zeros(1).expand(WIDE), torch.arange(2)),
    "wide references": lambda like: (
        *(like.new_zeros(1).expand(WIDE), torch.arange(2)),
        *(like.new_zeros(1).expand(WIDE), torch.arange(2)),
    ),
    "long": lambda like: (like.new_zeros(1).expand(LONG), torch.zeros(1).long().expand(2**58)),
    "long references": lambda like: (
        *(like.new_zeros(2, 2), torch.arange(2)),
        *(like.new_zeros(1).expand(LONG), torch.zeros(1).long().expand(2**58)),
    ),
}


@on_cpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("backend", ["auto", "cpu", "tiled"])
@pytest.mark.parametrize("size", HUGE)
@apart
def test_sizes_that_overflow_raise(size: str, backend: str, dtype: torch.dtype) -> None:
    tensors = HUGE[size](torch.zeros((), dtype=dtype))
    losses = [circle_loss, *([] if len(tensors) == 2 else [class_circle_loss])]
    for loss in losses:
        inputs = tensors if loss is circle_loss else tensors[:3]
        name = "weight" if loss is class_circle_loss else "ref_emb" if tensors[2:] else "embeddings"
        for leaf in (False, True):
            first = tensors[0].detach().requires_grad_(leaf)
            with pytest.raises((*REFUSALS, MemoryError)) as caught:
                loss(first, *inputs[1:], backend=backend).backward()
            text = str(caught.value)
            assert name in text or "embeddings" in text or "allocate" in text, text


@on_cpu
@pytest.mark.parametrize("unlike", ["int32", "short", "float"])
@pytest.mark.parametrize("name", ["labels", "ref_labels"])
@apart
def test_registered_op_refuses_labels_that_it_would_misread(name: str, unlike: str) -> None:
    labels = torch.arange(40_000) % 1000
    wrong = {"int32": labels.int(), "short": labels[:3], "float": labels.double()}[unlike]
    x = draw(len(labels), 2)
    given = {"embeddings": x, "labels": labels, "ref_emb": x, "ref_labels": labels}
    given[name] = wrong
    with pytest.raises(REFUSALS, match=rf"^{name}\b"):
        call_op(
            "pair_logsumexp_forward",
            CircleFormula(),
            backend="cpu",
            keep_for_backward=False,
            **given,
        )


# Tensors of inference mode, and labels and queues that change between the passes.


def in_inference_mode(values: list[Tensor]) -> list[Tensor]:
    with torch.inference_mode():
        return [value.clone() for value in values]


@on_cpu
@pytest.mark.parametrize("backend", ["auto", "tiled"])
@for_every_loss
def test_references_and_labels_made_in_inference_mode_serve(loss: str, backend: str) -> None:
    tensors = problem()
    expected = truth(loss, tensors)[:2]
    x, others = tensors[0], in_inference_mode([each.detach() for each in tensors[1:]])
    for chosen in ([True] * 3, [True, False, False], [False, True, True]):
        mixed = [
            made if use else plain.detach()
            for use, made, plain in zip(chosen, others, tensors[1:], strict=True)
        ]
        output = LOSSES[loss](x, *mixed, backend=backend)
        assert_close(value_and_gradients(output, x), expected)


@on_cpu
@pytest.mark.parametrize("backend", ["auto", "tiled"])
@for_every_loss
def test_labels_may_change_between_the_passes(loss: str, backend: str) -> None:
    tensors = problem()
    expected = truth(loss, tensors)
    labels = [tensors[1].clone(), tensors[3].clone()]
    output = LOSSES[loss](tensors[0], labels[0], tensors[2], labels[1], backend=backend)
    labels[0][:4] = 77
    labels[1][:4] = labels[0][:4]
    assert_close(value_and_gradients(output, *tensors[::2]), expected)


@on_cpu
@pytest.mark.parametrize("backend", ["auto", "tiled"])
@for_every_loss
def test_queue_may_change_between_the_passes(loss: str, backend: str) -> None:
    tensors = problem()
    expected = truth(loss, tensors)[:2]
    queue = tensors[2].detach().clone()
    output = LOSSES[loss](tensors[0], tensors[1], queue, tensors[3], backend=backend)
    queue[:4] = tensors[0].detach()[:4]
    assert_close(value_and_gradients(output, tensors[0]), expected)


# Batched gradients.


@pytest.mark.backends
@for_every_backend
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_batched_gradients_are_those_taken_one_by_one(target: Target) -> None:
    if torch.float32 not in target.dtypes:
        pytest.skip("this level adds bfloat16 products only")
    tensors = [value.detach().to(target.device) for value in problem()]
    leaves = [tensors[0].requires_grad_(), tensors[2].requires_grad_()]
    eye = torch.eye(ROWS, device=target.device)
    for inputs in (tensors, tensors[:2]):
        wanted = leaves if len(inputs) == 4 else leaves[:1]
        rows = circle_loss(*inputs, gamma=16, reduction="none", backend=target.backend)
        batched = torch.autograd.grad(rows, wanted, eye, is_grads_batched=True, retain_graph=True)
        single = [torch.autograd.grad(row, wanted, retain_graph=True) for row in rows]
        assert_close(batched, [torch.stack(each) for each in zip(*single, strict=True)])
        statistics = pair_logsumexp(*inputs, formula=CircleFormula(), backend=target.backend)
        batched = torch.autograd.grad(
            statistics, wanted, (eye, 2 * eye), is_grads_batched=True, retain_graph=True
        )
        single = [
            torch.autograd.grad(statistics, wanted, (row, 2 * row), retain_graph=True)
            for row in eye
        ]
        assert_close(batched, [torch.stack(each) for each in zip(*single, strict=True)])


@pytest.mark.backends
@for_every_backend
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vectorized_jacobian_is_the_jacobian(target: Target) -> None:
    if torch.float32 not in target.dtypes:
        pytest.skip("this level adds bfloat16 products only")
    x, labels = (value.detach().to(target.device) for value in problem()[:2])

    def rows(values: Tensor) -> Tensor:
        return circle_loss(values, labels, gamma=16, reduction="none", backend=target.backend)

    assert_close([jacobian(rows, x, vectorize=True)], [jacobian(rows, x)])


SAMPLED = [{}, {"sample_rate": 0.5}, {"sparse_grad": True}]


def head_rows(
    x: Tensor, weight: Tensor, labels: Tensor, backend: str = "auto", **options
) -> Tensor:
    """Rows of a class loss; a sample is always the same."""
    generator = torch.Generator().manual_seed(2)
    return class_circle_loss(
        x, labels, weight, gamma=16, reduction="none", backend=backend, generator=generator,
        **options,
    )  # fmt: skip


CLASSES = 40


def head_problem() -> tuple[Tensor, Tensor, Tensor]:
    labels = torch.randint(0, CLASSES, (ROWS,), generator=torch.Generator().manual_seed(5))
    return draw(ROWS, DEPTH).requires_grad_(), draw(CLASSES, DEPTH, seed=6).requires_grad_(), labels


@on_cpu
@pytest.mark.parametrize("backend", ["auto", "tiled"])
@pytest.mark.parametrize("options", SAMPLED, ids=str)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_batched_gradients_of_a_head_are_those_taken_one_by_one(
    options: dict, backend: str
) -> None:
    x, weight, labels = head_problem()
    rows = head_rows(x, weight, labels, backend, **options)
    # A batch of sparse gradients is nothing that torch has.
    leaves = [x] if "sparse_grad" in options else [x, weight]
    eye = torch.eye(ROWS)
    batched = torch.autograd.grad(rows, leaves, eye, is_grads_batched=True, retain_graph=True)
    single = [torch.autograd.grad(row, leaves, retain_graph=True) for row in rows]
    assert_close(batched, [torch.stack(each) for each in zip(*single, strict=True)])


@on_cpu
@pytest.mark.parametrize("options", SAMPLED, ids=str)
def test_functional_gradient_of_a_head_is_the_gradient(options: dict) -> None:
    x, weight, labels = head_problem()
    expected = torch.autograd.grad(head_rows(x, weight, labels, **options).mean(), (x, weight))
    transformed = grad(
        lambda *leaves: head_rows(*leaves, labels, **options).mean(), argnums=(0, 1)
    )(x.detach(), weight.detach())
    assert_close([each.to_dense() for each in transformed], [each.to_dense() for each in expected])


@on_cpu
@pytest.mark.parametrize("options", SAMPLED, ids=str)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_batch_of_problems_of_a_head_gives_each_its_gradient(options: dict) -> None:
    _, weight, labels = head_problem()
    problems = torch.stack([draw(ROWS, DEPTH, seed=seed) for seed in range(3)])

    def gradient(x: Tensor) -> Tensor:
        return grad(lambda x: head_rows(x, weight.detach(), labels, **options).mean())(x)

    batched = vmap(gradient, randomness="same")(problems)
    assert_close([batched], [torch.stack([gradient(each) for each in problems])])


def miners_tuple(short: bool) -> tuple[Tensor, ...]:
    """Positive and negative pairs as a miner lists them: all, or six of each."""
    labels = torch.arange(ROWS) % 3
    same = labels[:, None] == labels
    negative = (~same).nonzero().T
    positive = same.fill_diagonal_(False).nonzero().T
    pairs = [*positive, *negative]
    return tuple(each[::40] for each in pairs) if short else tuple(each[:-1] for each in pairs)


def drop_in(rows: bool = False, **options):
    pml = pytest.importorskip("pytorch_metric_learning")
    from circle_kernels.integrations.pytorch_metric_learning import CircleLoss as DropIn

    reducer = pml.reducers.DoNothingReducer() if rows else None
    loss = DropIn(gamma=16, reducer=reducer, **options)
    return (lambda *tensors: loss(*tensors)["loss"]["losses"][:, 0]) if rows else loss


for_every_list = pytest.mark.parametrize("short", [True, False], ids=["short", "long"])


@on_cpu
@for_every_list
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_batched_gradients_of_listed_pairs_are_those_taken_one_by_one(short: bool) -> None:
    x, labels, *_ = problem()
    rows = drop_in(rows=True)(x, labels, miners_tuple(short))
    batched = torch.autograd.grad(
        rows, x, torch.eye(ROWS), is_grads_batched=True, retain_graph=True
    )
    single = [torch.autograd.grad(row, x, retain_graph=True)[0] for row in rows]
    assert_close(batched, [torch.stack(single)])


@on_cpu
@for_every_list
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_functional_transforms_go_through_the_drop_in_with_a_tuple(short: bool) -> None:
    """But for the library's reducer, whose boolean mask vmap does not support."""
    _, labels, *_ = problem()
    rows, indices = drop_in(rows=True), miners_tuple(short)

    def loss(*tensors: Tensor | tuple[Tensor, ...]) -> Tensor:
        return rows(*tensors).sum()

    problems = torch.stack([draw(ROWS, DEPTH, seed=seed) for seed in range(3)])
    expected = []
    for each in problems:
        leaf = each.clone().requires_grad_()
        expected += torch.autograd.grad(loss(leaf, labels, indices), leaf)
    transformed = grad(lambda values: loss(values, labels, indices))
    assert_close([transformed(problems[0])], expected[:1])
    assert_close([vmap(transformed)(problems)], [torch.stack(expected)])


# Devices without memory, and default devices.


@on_cpu
@pytest.mark.parametrize("backend", ["auto", "tiled", "reference"])
@for_every_loss
def test_meta_tensors_give_the_shape_of_the_loss_and_of_the_gradients(
    loss: str, backend: str
) -> None:
    tensors = [value.detach().to("meta") for value in problem()]
    leaves = [tensors[0].requires_grad_(), tensors[2].requires_grad_()]
    results = value_and_gradients(LOSSES[loss](*tensors, backend=backend), *leaves)
    assert [each.shape for each in results] == [(), *(leaf.shape for leaf in leaves)]
    assert {(each.device.type, each.dtype) for each in results} == {("meta", torch.float32)}


@on_cpu
def test_meta_tensors_give_the_shape_of_every_reduction() -> None:
    x, labels, references, ref_labels = (value.detach().to("meta") for value in problem())
    for shape, options in (((ROWS,), {"reduction": "none"}), ((), {"reduction": "sum"})):
        assert circle_loss(x, labels, **options).shape == shape
        assert circle_loss(x, labels, references, ref_labels, **options).shape == shape
        for sampling in SAMPLED:
            assert class_circle_loss(x, labels, references, **sampling, **options).shape == shape


@on_cpu
@for_every_list
def test_default_device_changes_no_listed_pairs(short: bool) -> None:
    x, labels, *_ = problem()
    for arguments in ((x, labels, miners_tuple(short)), (x, labels)):
        for options in (arguments, (x, labels, miners_tuple(False)[:2] + miners_tuple(True)[2:])):
            expected = value_and_gradients(drop_in()(*options), x)
            with torch.device("meta"):
                ours = value_and_gradients(drop_in()(*options), x)
            assert all(map(torch.equal, ours, expected))


@on_cpu
def test_default_device_changes_no_listed_pairs_that_are_those_of_labels() -> None:
    x, labels, *_ = problem()
    same = labels[:, None] == labels
    pairs = [*same.clone().fill_diagonal_(False).nonzero().T, *(~same).nonzero().T]
    expected = value_and_gradients(drop_in()(x, labels, tuple(pairs)), x)
    with torch.device("meta"):
        ours = value_and_gradients(drop_in()(x, labels, tuple(pairs)), x)
    assert all(map(torch.equal, ours, expected))


@on_cpu
@pytest.mark.parametrize("backend", ["auto", "tiled", "reference"])
@for_every_loss
def test_default_device_changes_no_loss(loss: str, backend: str) -> None:
    tensors = problem()
    options: dict = {"backend": backend}
    for more in SAMPLED if loss.startswith("class") else [{}]:
        torch.manual_seed(0)
        expected = value_and_gradients(LOSSES[loss](*tensors, **options, **more), *tensors[::2])
        torch.manual_seed(0)
        with torch.device("meta"):
            ours = value_and_gradients(LOSSES[loss](*tensors, **options, **more), *tensors[::2])
        for value, other in zip(ours, expected, strict=True):
            assert torch.equal(value.to_dense(), other.to_dense())


# Compiled steps.


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


class Naive(nn.Module):
    """As the field writes it."""

    def __init__(self, gamma: float = 80.0, m: float = 0.4) -> None:
        super().__init__()
        self.gamma, self.m = gamma, m

    def forward(self, x: Tensor, labels: Tensor, *_: Tensor) -> Tensor:
        x = nn.functional.normalize(x)
        similarity = x @ x.T
        same = labels[:, None] == labels
        s_p = -self.gamma * (1 + self.m - similarity.detach()).relu() * (similarity - 1 + self.m)
        s_n = self.gamma * (similarity.detach() + self.m).relu() * (similarity - self.m)
        lse = [
            each.masked_fill(~mask, -torch.inf).logsumexp(1)
            for each, mask in ((s_p, same), (s_n, ~same))
        ]
        return nn.functional.softplus(lse[0] + lse[1]).mean()


SCHEDULED = {
    "circle": lambda: CircleLoss(),
    "batch": lambda: CircleLoss(scope="batch"),
    "class": lambda: ClassCircleLoss(REFERENCES, DEPTH),
}


def graphs_of_schedule(module: nn.Module, name: str) -> int:
    """Graphs that twelve values of one hyper-parameter take; their results are checked."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(module, backend="aot_eager")
    x, labels, *_ = problem()
    first = getattr(module, name)
    for step in range(12):
        setattr(module, name, first * (1 + step / 8))
        assert_close(
            value_and_gradients(compiled(x, labels), x), value_and_gradients(module(x, labels), x)
        )
    setattr(module, name, first)
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@on_cpu
@pytest.mark.parametrize("name", ["gamma", "m"])
@pytest.mark.parametrize("loss", SCHEDULED)
def test_schedule_compiles_no_more_graphs_than_a_naive_module(
    loss: str, name: str, fresh_compiler: None
) -> None:
    naive = graphs_of_schedule(Naive(), name)
    assert graphs_of_schedule(SCHEDULED[loss](), name) <= naive


@on_cpu
def test_compiled_class_loss_is_float32_whatever_the_default_dtype(fresh_compiler: None) -> None:
    x, weight, labels = head_problem()
    compiled = torch.compile(head_rows, backend="aot_eager")
    expected = value_and_gradients(head_rows(x, weight, labels), x, weight)
    torch.set_default_dtype(torch.float64)
    try:
        ours = value_and_gradients(compiled(x, weight, labels), x, weight)
        eager = value_and_gradients(head_rows(x, weight, labels), x, weight)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {each.dtype for each in (*ours, *eager)} == {torch.float32}
    assert_close(ours, expected)
    assert_close(eager, expected)


# Dtypes of both sides, floating-point operations, and PyTorch's settings for precision.


@pytest.mark.backends
@for_every_backend
@pytest.mark.parametrize("side", [0, 2], ids=["embeddings", "references"])
@for_every_loss
def test_narrower_side_is_widened(target: Target, loss: str, side: int) -> None:
    wide = torch.float32
    for narrow in (torch.float16, torch.bfloat16):
        tensors = [value.detach().to(target.device) for value in problem(wide)]
        tensors[side] = tensors[side].to(narrow)
        leaves = [tensors[0].requires_grad_(), tensors[2].requires_grad_()]
        results = value_and_gradients(LOSSES[loss](*tensors, backend=target.backend), *leaves)
        assert [each.dtype for each in results] == [wide, *(leaf.dtype for leaf in leaves)]
        expected = truth(loss, [value.cpu() for value in tensors])
        assert_close([each.cpu() for each in results], expected, 4 * torch.finfo(narrow).eps)


@on_cpu
@pytest.mark.parametrize("references", [True, False])
@for_every_loss
def test_counted_operations_are_those_of_the_naive_products(loss: str, references: bool) -> None:
    if loss.startswith("class") and not references:
        pytest.skip("a class loss has a weight")
    counts = []
    for backend in ("auto", "reference"):
        tensors = problem() if references else problem()[:2]
        leaves = tensors[::2]
        with FlopCounterMode(display=False) as forward:
            output = LOSSES[loss](*tensors, backend=backend)
        with FlopCounterMode(display=False) as backward:
            torch.autograd.grad(output, leaves)
        counts.append((forward.get_total_flops(), backward.get_total_flops()))
    assert counts[0] == counts[1]
    assert min(counts[0]) > 0


PRECISIONS = {
    "legacy-high": "torch.set_float32_matmul_precision('high')",
    "legacy-medium": "torch.set_float32_matmul_precision('medium')",
}
if hasattr(torch.backends, "fp32_precision"):  # PyTorch 2.9
    PRECISIONS |= {
        "cuda": "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
        "mkldnn": "torch.backends.mkldnn.matmul.fp32_precision = 'tf32'",
        "mkldnn-bf16": "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
        "mkldnn-all": "torch.backends.mkldnn.fp32_precision = 'tf32'",
        "all": "torch.backends.fp32_precision = 'tf32'",
        "ieee": "torch.backends.fp32_precision = 'ieee'",
    }


@on_cpu
@pytest.mark.parametrize("setting", PRECISIONS)
@apart
def test_every_way_to_set_the_precision_is_taken(setting: str) -> None:
    tensors = problem()
    exact = [value_and_gradients(loss(*tensors), *tensors[::2]) for loss in LOSSES.values()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(PRECISIONS[setting], {"torch": torch})
    digits = 0.1 if setting in ("mkldnn-bf16", "legacy-medium") else 1e-3
    for (name, loss), expected in zip(LOSSES.items(), exact, strict=True):
        results = value_and_gradients(loss(*tensors), *tensors[::2])
        if setting in ("cuda", "ieee"):  # nothing of it concerns the CPU
            assert all(map(torch.equal, results, expected)), name
        assert_close(results, truth(name, tensors), digits)


@pytest.mark.backends
@for_every_backend
def test_gradients_of_both_dtypes_are_held_to_the_yardstick_of_one(target: Target) -> None:
    """Widening first or in the loss is the same, to the bit."""
    tensors = [value.detach().to(target.device) for value in problem()]
    if torch.float32 not in target.dtypes:
        pytest.skip("this level adds bfloat16 products only")
    tensors[2] = tensors[2].to(torch.bfloat16)
    leaves = [tensors[0].requires_grad_(), tensors[2].requires_grad_()]
    formula = CircleFormula()
    ours = pair_logsumexp(*tensors, formula=formula, backend=target.backend)
    widened = [tensors[0], tensors[1], tensors[2].float(), tensors[3]]
    expected = pair_logsumexp(*widened, formula=formula, backend=target.backend)
    assert all(map(torch.equal, ours, expected))
    assert all(map(torch.equal, gradients(*ours, leaves), gradients(*expected, leaves)))
