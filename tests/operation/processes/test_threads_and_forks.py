"""Steps in many threads, and in forks."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from circle_kernels import class_circle_loss
from tests.support.apart import apart
from tests.support.random_problems import Problem, draw_problem, in_its_layout, logsumexps
from tests.support.yardstick import gradients

pytestmark = pytest.mark.sanitized


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
