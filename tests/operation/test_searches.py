"""A share of the searches that found no fault, with seeds that never change.

Random problems against float64, random NaNs and infinities, steps in many threads, forks, too
little memory, and what many steps leave behind. Kinds of tensors have a file of their own.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import random
import re
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from circle_kernels import (
    CircleFormula,
    UnifiedFormula,
    circle_loss,
    class_circle_loss,
    pair_logsumexp,
)
from circle_kernels.formula import PairFormula
from circle_kernels.logsumexp import masked_logsumexp
from circle_kernels.operation.listed_pairs import (
    PairIndices,
    gathered_logsumexp,
    matrix_logsumexp,
    pair_matrix,
    unique_pairs,
)
from circle_kernels.reference import pair_masks, similarity_matrix
from tests.support.apart import apart
from tests.support.raw_ops import call_op
from tests.support.targets import INTERPRETED, Target, for_every_backend
from tests.support.yardstick import gradients

PROBLEMS = 6 if INTERPRETED else 120
SEEDS = range(2 if INTERPRETED else 6)
on_cpu = pytest.mark.skipif(INTERPRETED, reason="the interpreter lane is for kernels")

# ------------------------------------------------------------------------------ random problems


@dataclass
class Problem:
    """One random problem; what it was drawn as says how to draw it again."""

    seed: int
    dtype: torch.dtype
    formula: PairFormula
    normalize: bool
    mode: str  # "self", "references", "classes", "listed" or "few listed"
    embeddings: Tensor
    labels: Tensor
    references: Tensor | None
    ref_labels: Tensor | None
    kinds: tuple[Tensor, Tensor]  # (N, M) bool: positive pairs and negative pairs
    words: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        shapes = [tuple(self.embeddings.shape)]
        if self.references is not None:
            shapes.append(tuple(self.references.shape))
        return f"seed {self.seed}: {self.mode} {shapes} {self.dtype} {self.formula} {self.words}"


def layout(values: Tensor, chosen: random.Random) -> tuple[Tensor, str]:
    """The same numbers in another order of memory."""
    name = chosen.choice(["as it is", "transposed", "spread", "reversed rows", "offset"])
    if name == "transposed":
        return values.T.contiguous().T, name
    if name == "spread":
        wide = values.new_full((3 * len(values), 2 * values.shape[1]), math.nan)
        wide[::3, ::2] = values
        return wide[::3, ::2], name
    if name == "reversed rows":
        return values.flip(0).contiguous().flip(0), name
    if name == "offset":
        return torch.cat([values.new_full((1, values.shape[1]), math.nan), values])[1:], name
    return values, name


def draw_labels(rows: int, chosen: random.Random, generator: torch.Generator) -> tuple[Tensor, str]:
    name = chosen.choice(["few", "many", "one", "distinct", "sorted", "huge", "skewed"])
    top = {"few": 3, "many": max(rows // 2, 1), "one": 1}.get(name, max(rows // 4, 1))
    labels = torch.randint(0, top, (rows,), generator=generator)
    if name == "distinct":
        labels = torch.randperm(rows, generator=generator)
    if name == "sorted":
        labels = labels.sort().values
    if name == "huge":
        labels = labels * 2**61 - 2**62
    if name == "skewed":
        labels = labels * (torch.rand(rows, generator=generator) < 0.2)
    return labels, name


def draw_formula(chosen: random.Random) -> PairFormula:
    gamma = chosen.choice([0.5, 16.0, 80.0, 256.0, 700.0])
    m = chosen.choice([-0.2, 0.0, 0.25, 0.4, 0.9])
    if chosen.random() < 0.25:
        return UnifiedFormula(m=m, gamma=gamma)
    optima = {}
    if chosen.random() < 0.3:
        names = ("optimum_pos", "optimum_neg", "margin_pos", "margin_neg")
        optima = {name: chosen.uniform(-0.5, 1.5) for name in names}
    return CircleFormula(m=m, gamma=gamma, detach_weights=chosen.random() < 0.7, **optima)


def draw_problem(seed: int, dtypes: tuple[torch.dtype, ...], modes: list[str]) -> Problem:
    chosen, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    rows = chosen.choice([1, 2, 3, 7, 33, 65, 95, 96, 97, 130])
    depth = chosen.choice([1, 2, 5, 16, 31, 64, 130])
    columns = chosen.choice([1, 2, 9, 64, 97, 150])
    dtype, mode = chosen.choice(dtypes), chosen.choice(modes)
    spread = chosen.choice([0.02, 0.3, 2.0, 30.0])
    labels, words = draw_labels(rows + columns, chosen, generator)
    centres = torch.randn(rows + columns, depth, generator=generator, dtype=torch.float64)
    values = centres[labels % (rows + columns)]
    values = values + spread * torch.randn(values.shape, generator=generator, dtype=torch.float64)
    normalize = chosen.random() < 0.8
    if normalize:
        values = values * 10.0 ** chosen.choice([-2, 0, 2])
    else:
        values = values / values.norm(dim=1, keepdim=True)
    embeddings, first = layout(values[:rows].to(dtype), chosen)
    references, second = layout(values[rows:].to(dtype), chosen)
    ref_labels: Tensor | None = labels[rows:]
    labels = labels[:rows]
    alone = mode == "self" or (mode.endswith("listed") and chosen.random() < 0.5)
    if mode == "classes":
        labels = torch.randint(0, columns, (rows,), generator=generator)
        positive, negative = pair_masks(labels, torch.arange(columns))
        ref_labels = None
    else:
        positive, negative = pair_masks(labels, None if alone else ref_labels)
    if mode.endswith("listed"):
        # Some of the pairs, and each row says for itself which.
        rate = 0.01 if mode == "few listed" else 0.7
        kept = torch.rand(positive.shape, generator=generator) < rate
        positive, negative = positive & kept, negative & kept
    return Problem(
        seed,
        dtype,
        draw_formula(chosen),
        normalize,
        mode,
        embeddings,
        labels,
        None if alone else references,
        None if alone else ref_labels,
        (positive, negative),
        [words, first, second],
    )


def logsumexps(
    problem: Problem, inputs: list[Tensor | None], backend: str, skip_below: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The problem's log-sum-exps of these embeddings and references."""
    embeddings, references = inputs
    options: dict[str, Any] = {"formula": problem.formula, "normalize": problem.normalize}
    if problem.mode.endswith("listed"):
        positive, negative = problem.kinds
        indices = PairIndices(*positive.nonzero().T, *negative.nonzero().T)
        if problem.mode == "few listed":
            pairs = unique_pairs(indices, *positive.shape)
            assert pairs is not None
            return gathered_logsumexp(embeddings, references, pairs, **options)
        kinds = pair_matrix(indices, *positive.shape)
        return matrix_logsumexp(embeddings, references, kinds, **options)
    options.update(skip_below=skip_below, backend=backend)
    if problem.mode == "classes":  # references without labels
        inputs = {"embeddings": embeddings, "labels": problem.labels, "ref_emb": references}
        return call_op("pair_logsumexp_forward", **options, **inputs)[:2]
    return pair_logsumexp(embeddings, problem.labels, references, problem.ref_labels, **options)


def naive_logsumexps(problem: Problem, inputs: list[Tensor | None]) -> tuple[Tensor, Tensor]:
    embeddings, references = inputs
    similarity = similarity_matrix(
        embeddings,
        embeddings if references is None else references,
        normalize=problem.normalize,
    )
    positive, negative = problem.kinds
    return (
        masked_logsumexp(problem.formula.positive_logits(similarity), positive, dim=1),
        masked_logsumexp(problem.formula.negative_logits(similarity), negative, dim=1),
    )


def as_leaves(problem: Problem, dtype: torch.dtype, device: str) -> list[Tensor | None]:
    return [
        None if value is None else value.detach().to(device, dtype).requires_grad_()
        for value in (problem.embeddings, problem.references)
    ]


def in_its_layout(problem: Problem, device: str) -> list[Tensor | None]:
    return [
        None if value is None else value.detach().to(device).requires_grad_()
        for value in (problem.embeddings, problem.references)
    ]


def assert_as_exact_as_eager(problem: Problem, target: Target, skip_below: float = 0.0) -> None:
    """Losses and gradients within twice the error of naive PyTorch, beyond rounding."""
    device, dtype = target.device, problem.dtype
    results = []
    for name, inputs in (
        ("ours", in_its_layout(problem, device)),
        ("truth", as_leaves(problem, torch.float64, "cpu")),
        ("eager", as_leaves(problem, dtype, "cpu")),
    ):
        if name == "ours":
            statistics = logsumexps(problem, inputs, target.backend, skip_below)
        else:
            statistics = naive_logsumexps(problem, inputs)
        slopes = gradients(*statistics, inputs)
        results.append([each.detach().cpu().double() for each in (*statistics, *slopes)])
    gamma = problem.formula.gamma
    norms = torch.cat([x.double().norm(dim=1) for x in inputs if x is not None])
    for place, (ours, truth, eager) in enumerate(zip(*results, strict=True)):
        message = f"{problem}, result {place}"
        finite = truth.isfinite()
        assert torch.equal(ours[~finite], truth[~finite]), message
        if not finite.any():
            continue
        scale, eps = truth[finite].abs().max().item(), torch.finfo(dtype).eps
        if place < 2:
            # Sums are kept in float32, and the logarithm of one near 1 has its rounding.
            scale = max(scale, 1.0)
            eps = min(eps, torch.finfo(torch.float32).eps)
        else:
            # Where terms of this size cancel, what is left is their rounding.
            scale = max(scale, gamma / norms.min().item())
        left_out = skip_below if place >= 2 else 0.0
        allowed = (eps * (16 + 2 * gamma) + left_out) * scale
        eager_error = (eager - truth)[finite].abs().max().item()
        if math.isfinite(eager_error):
            allowed += 2 * eager_error
        error = (ours - truth)[finite].abs().max().item()
        assert error <= allowed, f"{message}: error {error:.3g}, allowed {allowed:.3g}"


@pytest.mark.backends
@for_every_backend
@pytest.mark.parametrize("seed", SEEDS)
def test_random_problems_are_as_exact_as_eager(target: Target, seed: int) -> None:
    modes = ["self", "references", "classes"]
    if target.backend != "triton" and target.device == "cpu":
        modes += ["listed", "few listed"]
    for index in range(PROBLEMS // len(SEEDS)):
        problem = draw_problem(1000 * seed + index, target.dtypes, modes)
        assert_as_exact_as_eager(problem, target)


@pytest.mark.backends
@for_every_backend
def test_random_problems_with_pairs_left_out_stay_within_the_share(target: Target) -> None:
    for index in range(PROBLEMS // 4):
        problem = draw_problem(77_000 + index, target.dtypes, ["self", "references", "classes"])
        assert_as_exact_as_eager(problem, target, skip_below=2.0**-10)


# --------------------------------------------------------------------------- NaNs and infinities


def poison(problem: Problem, chosen: random.Random) -> tuple[Tensor, Tensor]:
    """Put NaNs and infinities into some rows of both sides, in place; which rows they are."""
    marked = []
    for name in ("embeddings", "references"):
        values = getattr(problem, name)
        bad = torch.zeros(0 if values is None else len(values), dtype=torch.bool)
        marked.append(bad)
        if values is None or chosen.random() < 0.3:
            continue
        for _ in range(chosen.choice([1, 1, 2, 5])):
            row, column = chosen.randrange(len(values)), chosen.randrange(values.shape[1])
            values[row, column] = chosen.choice([math.nan, math.inf, -math.inf])
            bad[row] = True
    return marked[0], marked[1]


@pytest.mark.backends
@for_every_backend
@pytest.mark.parametrize("seed", SEEDS)
def test_nan_shows_in_the_losses_that_saw_it_and_in_no_other(target: Target, seed: int) -> None:
    """Every other row is what it is where the bad rows have other numbers."""
    for index in range(PROBLEMS // len(SEEDS)):
        number = 31_000 + 1000 * seed + index
        problem = draw_problem(number, target.dtypes, ["self", "references", "classes"])
        expected = logsumexps(problem, in_its_layout(problem, target.device), target.backend)
        bad_rows, bad_columns = poison(problem, random.Random(number))
        ours = logsumexps(problem, in_its_layout(problem, target.device), target.backend)
        if problem.references is None:
            bad_columns = bad_rows
        kept = ~bad_rows
        for results in zip(ours, expected, problem.kinds, strict=True):
            rows, value, kind = (each.detach().cpu() for each in results)
            # A set that holds a bad pair is NaN; so are all non-empty ones of a bad row.
            saw = (kind & (bad_columns[None, :] | bad_rows[:, None])).any(1)
            assert rows[saw].isnan().all(), str(problem)
            assert rows[~kind.any(1)].isneginf().all(), str(problem)
            assert not rows[~saw & kept].isnan().any(), str(problem)
            if not bad_columns.any():
                eps = torch.finfo(rows.dtype).eps * (16 + 2 * problem.formula.gamma)
                exact = target.backend == "tiled"  # others round a tile with a NaN another way
                torch.testing.assert_close(
                    rows[~saw & kept],
                    value[~saw & kept],
                    rtol=0 if exact else eps,
                    atol=0 if exact else eps,
                    msg=lambda words, problem=problem: f"{problem}: {words}",
                )


# -------------------------------------------------------------------------------- many threads


def steps(seed: int) -> list[Callable[[], list[Tensor]]]:
    """Training steps of several kinds, each of which gives the same numbers every time."""
    result: list[Callable[[], list[Tensor]]] = []
    for index in range(4):
        problem = draw_problem(seed + index, (torch.float32, torch.float64), ["self", "references"])
        weight = torch.randn(50, problem.embeddings.shape[1], dtype=problem.dtype)

        def pairs(problem: Problem = problem) -> list[Tensor]:
            inputs = in_its_layout(problem, "cpu")
            statistics = logsumexps(problem, inputs, "auto")
            return [*statistics, *gradients(*statistics, inputs)]

        def head(problem: Problem = problem, weight: Tensor = weight) -> list[Tensor]:
            leaf = weight.clone().requires_grad_()
            labels = torch.arange(len(problem.embeddings)) % len(weight)
            loss = class_circle_loss(problem.embeddings, labels, leaf)
            return [loss, *torch.autograd.grad(loss, leaf)]

        result += [pairs, head]
    return result


@on_cpu
def test_steps_in_many_threads_are_the_steps_alone() -> None:
    work = steps(5_000)
    expected = [step() for step in work]
    wrong: list[str] = []

    def repeat(first: int) -> None:
        try:
            for index in range(first, first + 40):
                results = work[index % len(work)]()
                for ours, value in zip(results, expected[index % len(work)], strict=True):
                    if not torch.equal(ours, value):
                        wrong.append(f"step {index % len(work)}")
        except BaseException as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=repeat, args=(first,)) for first in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@on_cpu
def test_one_graph_may_be_walked_back_by_several_threads() -> None:
    problem = draw_problem(5_100, (torch.float32,), ["references"])
    inputs = in_its_layout(problem, "cpu")
    statistics = logsumexps(problem, inputs, "auto")
    upstream = tuple(torch.rand_like(each) for each in statistics)
    expected = torch.autograd.grad(statistics, inputs, upstream, retain_graph=True)
    wrong: list[object] = []

    def walk() -> None:
        for _ in range(20):
            ours = torch.autograd.grad(statistics, inputs, upstream, retain_graph=True)
            wrong.extend(a for a, b in zip(ours, expected, strict=True) if not torch.equal(a, b))

    threads = [threading.Thread(target=walk) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --------------------------------------------------------------------------------------- forks


def _small_problem(seed: int) -> Problem:
    return draw_problem(seed, (torch.float32,), ["self", "references"])


def _forward_bytes(problem: Problem) -> bytes:
    """No backward pass: autograd itself refuses to run in a fork of a process in which it ran."""
    with torch.no_grad():
        lse = logsumexps(problem, [problem.embeddings, problem.references], "auto")
    return b"".join(bytes(each.view(torch.uint8).tolist()) for each in lse)


def _answer(queue: Any, place: int, problem: Problem) -> None:
    torch.set_num_threads(1)  # the threads of torch's own operations are not there
    queue.put((place, _forward_bytes(problem)))


@on_cpu
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forks_while_other_threads_compute_give_the_same_bits() -> None:
    # Drawn here: torch's own operations may wait for ever in a fork.
    problems = [_small_problem(seed) for seed in range(6_000, 6_009)]
    expected = dict(enumerate(map(_forward_bytes, problems[:-1])))
    over = threading.Event()

    def compute() -> None:
        while not over.is_set():
            _forward_bytes(problems[-1])

    threads = [threading.Thread(target=compute) for _ in range(2)]
    for thread in threads:
        thread.start()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    children = [
        context.Process(target=_answer, args=(queue, place, problems[place])) for place in expected
    ]
    try:
        for child in children:
            child.start()
        for child in children:
            child.join(timeout=120)  # which only a hang reaches
    finally:
        over.set()
        for thread in threads:
            thread.join()
        for child in children:
            child.kill()
    assert [child.exitcode for child in children] == [0] * len(children)
    assert dict(queue.get() for _ in expected) == expected


@on_cpu
@apart
def test_fork_of_a_fork_trains() -> None:
    """In a process in which autograd never ran, so that it may run in the children."""
    torch.set_num_threads(1)  # the threads of torch's own operations would not be in a fork
    problem = _small_problem(6_200)
    expected = _forward_bytes(problem)

    def train(generation: int) -> None:
        assert _forward_bytes(problem) == expected
        child = os.fork() if generation < 3 else 0
        if child:
            assert os.waitpid(child, 0)[1] == 0
            return
        if generation < 3:
            status = 1
            try:
                train(generation + 1)
                status = 0
            finally:
                os._exit(status)
        for step in steps(6_300):
            first, second = step(), step()
            assert all(map(torch.equal, first, second))

    train(0)


# ------------------------------------------------------------------------------- out of memory


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


@on_cpu
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("backend", ["auto", "tiled"])
@apart
def test_step_without_memory_raises_and_the_next_one_works(backend: str) -> None:
    small = draw_problem(7_000, (torch.float32,), ["references"])
    inputs = in_its_layout(small, "cpu")
    expected = logsumexps(small, inputs, backend)
    expected_slopes = gradients(*expected, inputs)
    generator = torch.Generator().manual_seed(0)
    large = torch.randn(3000, 256, generator=generator).requires_grad_()
    labels = torch.arange(3000) % 700
    raised = 0
    for spare in (0, 1, 2, 4, 8, 16, 24, 32, 48):
        used = _address_space()
        resource.setrlimit(resource.RLIMIT_AS, (used + spare * 2**20, resource.RLIM_INFINITY))
        try:
            circle_loss(large, labels, backend=backend).backward()
        except (MemoryError, RuntimeError) as error:
            raised += bool(re.search("alloc|memory", repr(error), re.IGNORECASE))
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        large.grad = None
        ours = logsumexps(small, inputs, backend)
        assert all(map(torch.equal, ours, expected))
        assert all(map(torch.equal, gradients(*ours, inputs), expected_slopes))
    assert raised > 3


# --------------------------------------------------------------------------------------- leaks


def _tensors_alive() -> int:
    gc.collect()
    return sum(isinstance(each, Tensor) for each in gc.get_objects())


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _kinds_of_steps() -> Iterator[tuple[str, Callable[[], Any]]]:
    x = torch.randn(300, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = torch.arange(300) % 40
    weight = x.detach().clone().requires_grad_()
    same = y[:, None] == y
    indices = PairIndices(*same.nonzero().T, *(~same).nonzero().T)
    matrix, formula = pair_matrix(indices, 300, 300), CircleFormula()

    def backward(loss: Tensor) -> None:
        torch.autograd.grad(loss, x)

    def abandoned() -> None:
        circle_loss(x, y)  # no backward pass follows

    def failed() -> None:
        with pytest.raises(TypeError):
            circle_loss(x, y.float())
        with pytest.raises(ValueError, match="labels must be in"):
            class_circle_loss(x, y + 1000, weight)

    yield "self", lambda: backward(circle_loss(x, y))
    yield "references", lambda: backward(circle_loss(x, y, weight, y))
    yield "classes", lambda: backward(class_circle_loss(x, y, weight))
    yield "sampled", lambda: backward(class_circle_loss(x, y, weight, sample_rate=0.5))
    yield "listed", lambda: backward(sum(matrix_logsumexp(x, x, matrix, formula=formula)).sum())
    yield "without gradient", lambda: circle_loss(x.detach(), y)
    yield "abandoned", abandoned
    yield "failed", failed


@on_cpu
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@apart
def test_many_steps_leave_nothing_behind() -> None:
    """Of a step's 500 KB none stays: no tensor that Python sees, no memory that C++ holds."""
    for name, step in _kinds_of_steps():
        for _ in range(30):  # memory that is held on to, once
            step()
        tensors, resident = _tensors_alive(), _resident_bytes()
        for _ in range(200):
            step()
        assert _tensors_alive() <= tensors, name
        grown = _resident_bytes() - resident
        assert grown < 8 * 2**20, f"{name}: 200 steps left {grown} bytes"
