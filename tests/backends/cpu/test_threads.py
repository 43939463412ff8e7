"""The C++ kernel among threads, processes and signals."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from types import FrameType

import pytest
import torch

from circle_kernels import circle_loss
from circle_kernels.backends import cpu
from tests.backends.cpu.steps import NEEDS_KERNEL, assert_equal, batch, class_batch, results
from tests.support.apart import apart

pytestmark = NEEDS_KERNEL


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("m", [None, 300, "classes"])
def test_results_do_not_depend_on_the_number_of_threads(m: int | str | None, dtype) -> None:
    if m == "classes":
        inputs = class_batch(130, 9300, 70, dtype)
    else:
        inputs = batch(700, 70, dtype) + ([] if m is None else batch(m, 70, dtype, seed=1))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = results(inputs)
        for number in (2, 3, 7):
            torch.set_num_threads(number)
            assert_equal(results(inputs), alone)
    finally:
        torch.set_num_threads(threads)


def test_many_python_threads_at_once_get_their_own_results() -> None:
    problems = [batch(150 + 37 * index, 20 + index, seed=index) for index in range(8)]
    expected = [results(inputs) for inputs in problems]
    failures: list[str] = []

    def work(index: int) -> None:
        for _ in range(5):
            for ours, value in zip(results(problems[index]), expected[index], strict=True):
                if not torch.equal(ours, value):
                    failures.append(f"problem {index}")

    workers = [threading.Thread(target=work, args=(index % 8,)) for index in range(16)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=300)
        assert not worker.is_alive()
    assert failures == []


NEEDS_TIMER = pytest.mark.skipif(
    not hasattr(signal, "setitimer"), reason="needs a timer that sends signals"
)


def _press_ctrl_c_in_the_backend(_: int, frame: FrameType | None) -> None:
    """While the kernel runs, the interpreter is in the function that called it."""
    if frame is not None and frame.f_code.co_filename == cpu.__file__:
        signal.raise_signal(signal.SIGINT)


@NEEDS_TIMER
@apart
def test_ctrl_c_ends_a_step_of_hours() -> None:
    torch.set_num_threads(2)
    embeddings, labels = torch.ones(2_000_000, 8, requires_grad=True), torch.arange(2_000_000)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which jobs in the background lack
    signal.signal(signal.SIGVTALRM, _press_ctrl_c_in_the_backend)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.2, 0.05)
    with pytest.raises(KeyboardInterrupt):
        circle_loss(embeddings, labels, backend="cpu")
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    loss = circle_loss(embeddings[:300], labels[:300] // 2, backend="cpu")
    loss.backward()
    assert loss.isfinite()


@NEEDS_TIMER
def test_signal_handlers_run_during_both_passes() -> None:
    """More than once in one pass, in one that takes a while whatever the machine."""
    calls: list[int] = []
    before = signal.signal(signal.SIGVTALRM, lambda *_: calls.append(1))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for run in (0, 1):  # the forward pass, the backward pass
            rows, during = 1000, 0
            while during < 3:
                rows *= 2
                assert rows < 70_000, "no handler runs before the pass ends"
                inputs = batch(rows, 32)
                loss = circle_loss(*inputs, backend="cpu") if run == 1 else None
                calls.clear()
                signal.setitimer(signal.ITIMER_VIRTUAL, 0.06, 0.06)
                loss.backward() if loss is not None else circle_loss(*inputs, backend="cpu")
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
                during = len(calls)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        torch.set_num_threads(threads)


def _results_into(queue: multiprocessing.Queue) -> None:
    queue.put([value.tolist() for value in results(batch(500, 40))])


def test_child_of_fork_neither_hangs_nor_differs() -> None:
    """The parent's threads are gone in the child, which must not wait for them."""
    expected = [value.tolist() for value in results(batch(500, 40))]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_results_into, args=(queue,))
    child.start()
    try:
        assert queue.get(timeout=300) == expected
        child.join(timeout=300)
        assert child.exitcode == 0
    finally:
        child.kill()
