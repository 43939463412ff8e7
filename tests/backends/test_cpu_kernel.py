"""The C++ kernel beyond the oracle: chunk borders, levels, threads, forks, and being absent."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.classes.heads import HeadCase
from bench.measuring.memory import peak_of_child
from circle_kernels import (
    CircleFormula,
    available_backends,
    circle_loss,
    pair_logsumexp,
)
from circle_kernels.backends import choice, cpu
from circle_kernels.backends.problem import PairProblem
from tests.support.places import ROOT
from tests.support.targets import INTERPRETED

LEVELS = cpu.supported_levels()
pytestmark = [
    pytest.mark.sanitized,
    pytest.mark.skipif(INTERPRETED, reason="the interpreter lane is for Triton"),
    pytest.mark.skipif(not LEVELS, reason="CIRCLE_KERNELS_NO_CPU_KERNEL is set"),
]
FORMULA = CircleFormula(m=0.25, gamma=64)


def batch(n: int, d: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)
    return [
        embeddings.requires_grad_(),
        torch.randint(0, max(1, n // 4), (n,), generator=generator),
    ]


def class_batch(n: int, num_classes: int, d: int, dtype: torch.dtype) -> list[Tensor]:
    """Rows against class weights, whose labels are consecutive numbers; some rows have no class."""
    generator = torch.Generator().manual_seed(n)
    beyond = num_classes // 9
    labels = torch.randint(-beyond, num_classes + beyond, (n,), generator=generator)
    weight = torch.randn(num_classes, d, generator=generator, dtype=torch.float64).to(dtype)
    embeddings, _ = batch(n, d, dtype)
    return [embeddings, labels, weight.requires_grad_(), torch.arange(num_classes)]


def results(inputs: list[Tensor], backend: str = "cpu", **options) -> list[Tensor]:
    """Both log-sum-exps and every gradient, for unlike upstream gradients."""
    statistics = pair_logsumexp(*inputs, formula=FORMULA, backend=backend, **options)
    weights = torch.linspace(0.5, 2, 2 * len(inputs[0]), dtype=statistics[0].dtype).view(2, -1)
    total = sum(
        (weight * value.masked_fill(value.isinf(), 0)).sum()
        for weight, value in zip(weights, statistics, strict=True)
    )
    return [*(value.detach() for value in statistics), *torch.autograd.grad(total, inputs[::2])]


def assert_equal(ours: list[Tensor], expected: list[Tensor]) -> None:
    assert len(ours) == len(expected)
    for value, other in zip(ours, expected, strict=True):
        assert torch.equal(value, other)


# 16 panels of 96 rows are a chunk of the backward pass, 48 one of the forward pass.
@pytest.mark.parametrize(
    ("n", "m"), [(1700, None), (4800, None), (1700, 100), (50, 4800), (4800, 97)]
)
def test_problems_of_several_chunks_agree_with_tiled(n: int, m: int | None) -> None:
    inputs = batch(n, 6, torch.float64)
    if m is not None:
        inputs += batch(m, 6, torch.float64, seed=1)
    for ours, expected in zip(results(inputs), results(inputs, "tiled"), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


# Columns are held 48 panels at a time, or 16 where there are many rows.
@pytest.mark.parametrize(("n", "num_classes"), [(5, 14_000), (300, 5000), (1700, 3200), (96, 96)])
def test_class_weights_of_several_chunks_agree_with_tiled(n: int, num_classes: int) -> None:
    inputs = class_batch(n, num_classes, 6, torch.float64)
    for ours, expected in zip(results(inputs), results(inputs, "tiled"), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_consecutive_labels_may_begin_anywhere() -> None:
    inputs = class_batch(300, 200, 6, torch.float32)
    expected = results(inputs)
    for first in (-70, 2**40, torch.iinfo(torch.int64).min + 30):
        moved = [inputs[0], inputs[1] + first, inputs[2], inputs[3] + first]
        assert_equal(results(moved), expected)


def test_bad_class_weight_makes_the_sums_that_saw_it_nan() -> None:
    inputs = class_batch(300, 5000, 6, torch.float32)
    inputs[2].data[4900, 3] = torch.nan
    inputs[1][:2] = 4900
    lse_pos, lse_neg = pair_logsumexp(*inputs, formula=FORMULA, backend="cpu")
    own = inputs[1] == 4900
    assert torch.equal(lse_pos.isnan(), own)
    assert torch.equal(lse_neg.isnan(), ~own)


def test_many_classes_take_little_memory() -> None:
    """Less than a third of the weight, of which a copy would be all; in a fresh process."""
    case = HeadCase(rows=900, classes=200_000, dim=128)
    peak = peak_of_child("bench.classes.command", "cpu", json.dumps(case.as_dict()))
    assert peak.bytes < 200_000 * 128 * 4 / 3


@pytest.mark.parametrize("m", [None, 430])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kept_and_recomputed_tiles_differ_by_rounding_only(m, dtype, monkeypatch) -> None:
    inputs = batch(500, 40, dtype) + ([] if m is None else batch(m, 40, dtype, seed=1))
    everything = results(inputs)
    for tiles in (0, 7):
        monkeypatch.setattr(cpu, "KEPT_BYTES", tiles * 96 * 96 * dtype.itemsize)
        some = results(inputs)
        assert_equal(some[:2], everything[:2])
        for value, other in zip(some[2:], everything[2:], strict=True):
            # A logit of the size of gamma is rounded relative to unlike shifts.
            rounding = (16 + 2 * FORMULA.gamma) * torch.finfo(dtype).eps
            largest = other.abs().max().item()
            torch.testing.assert_close(value, other, rtol=0, atol=rounding * largest)


def test_memory_for_the_backward_pass_serves_the_next_step_too() -> None:
    """Clearing new pages at every step took a fifth of the forward pass."""
    inputs = batch(700, 8)
    addresses = set()
    for _ in range(5):
        statistics = pair_logsumexp(*inputs, formula=FORMULA, backend="cpu")
        node = statistics[0].grad_fn
        saved = max((t for t in node.saved_tensors if t is not None), key=Tensor.numel)
        addresses.add(saved.data_ptr())
        del statistics, node, saved
    assert len(addresses) == 1


def test_steps_in_flight_do_not_share_memory() -> None:
    """Several losses before their backward passes, as with gradient accumulation."""
    batches = [batch(n, 16, seed=n) for n in (300, 700, 300)]
    expected = [results(inputs) for inputs in batches]
    losses = [pair_logsumexp(*inputs, formula=FORMULA, backend="cpu") for inputs in batches]
    for inputs, statistics, (_, _, gradient) in zip(batches, losses, expected, strict=True):
        weights = torch.linspace(0.5, 2, 2 * len(inputs[0])).view(2, -1)
        total = (
            weights * torch.stack(statistics).masked_fill(torch.stack(statistics).isinf(), 0)
        ).sum()
        torch.testing.assert_close(torch.autograd.grad(total, inputs[0])[0], gradient)


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
        worker.join(timeout=120)
        assert not worker.is_alive()
    assert failures == []


def two_passes(inputs: list[Tensor], between=lambda saved: saved, **changes) -> Tensor:
    """The embeddings' gradient from the backend's two functions; ``between`` sees what is saved."""
    values = [value.detach() for value in inputs]
    problem = PairProblem(*values, *(None,) * (4 - len(values)), FORMULA, True)
    lse_pos, lse_neg, saved = cpu.forward(problem)
    upstream = torch.linspace(0.5, 2, len(lse_pos), dtype=lse_pos.dtype)
    saved = between(saved)
    gradient, _ = cpu.backward(
        dataclasses.replace(problem, **changes),
        lse_pos,
        lse_neg,
        saved,
        upstream,
        -upstream,
        needs_embeddings=True,
        needs_references=False,
    )
    return gradient


@pytest.mark.parametrize("later", [*LEVELS, "avx1024"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_uses_the_level_of_the_forward_pass(level, later, dtype, monkeypatch) -> None:
    """Whatever the environment says meanwhile; levels round differently."""
    monkeypatch.setenv(cpu.LEVEL_VARIABLE, level)
    expected = two_passes(batch(300, 70, dtype))

    def between(saved: Tensor) -> Tensor:
        monkeypatch.setenv(cpu.LEVEL_VARIABLE, later)
        return saved

    assert torch.equal(two_passes(batch(300, 70, dtype), between), expected)


@pytest.mark.parametrize(
    "change",
    [
        torch.zeros_like,
        lambda saved: saved[:-1],
        lambda saved: saved[:0],
        lambda saved: torch.cat([saved, saved]),
        lambda saved: saved.half().float(),
        lambda saved: saved.bfloat16().float(),
        lambda saved: saved.roll(16),
    ],
    ids=["zeros", "short", "empty", "long", "half", "bfloat16", "rolled"],
)
def test_saved_memory_that_was_changed_is_refused(change) -> None:
    for inputs in (batch(300, 8), batch(300, 8) + batch(99, 8, seed=1)):
        with pytest.raises(RuntimeError, match="what the forward pass saved was changed"):
            two_passes(inputs, change)


@pytest.mark.parametrize(
    "changes",
    [{"skip_below": 0.5}, {"embeddings": torch.ones(300, 7)}, {"embeddings": torch.ones(299, 8)}],
    ids=["skip_below", "dim", "rows"],
)
def test_saved_memory_of_another_problem_is_refused(changes) -> None:
    with pytest.raises(RuntimeError, match=r"does not belong to this problem: .* 300 rows"):
        two_passes(batch(300, 8), **changes)


def test_saved_memory_may_be_moved() -> None:
    """As hooks on saved tensors do, to where it is aligned to nothing."""

    def moved(saved: Tensor) -> Tensor:
        memory = torch.empty(saved.numel() + 1, dtype=saved.dtype)
        return memory[1:].view(saved.shape).copy_(saved)

    inputs = batch(300, 8)
    assert torch.equal(two_passes(inputs, moved), two_passes(inputs))
    expected = results(inputs)
    with torch.autograd.graph.saved_tensors_hooks(moved, lambda saved: saved):
        assert_equal(results(inputs), expected)


def test_nothing_is_kept_where_no_backward_pass_can_follow(monkeypatch) -> None:
    """For a leaf that requires a gradient, too."""
    sizes = []
    new_saved = cpu._new_saved
    monkeypatch.setattr(
        cpu, "_new_saved", lambda extension, size: sizes.append(size) or new_saved(extension, size)
    )
    embeddings, labels = batch(300, 8)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            circle_loss(embeddings, labels)
            circle_loss(embeddings, labels, scope="batch")
            circle_loss(embeddings, labels, embeddings, labels)
    circle_loss(embeddings.detach(), labels)
    assert sizes == [0] * 7
    circle_loss(embeddings, labels)
    assert sizes[-1] > 300 * 300 * 4 / 2


@pytest.mark.parametrize("backend", ["cpu", "tiled"])
@pytest.mark.parametrize(
    ("name", "rows", "change"),
    [
        ("labels", 300, lambda saved: saved[:1]),
        ("labels", 300, Tensor.int),
        ("ref_labels", 99, lambda saved: saved[:1]),
        ("ref_labels", 99, Tensor.int),
    ],
)
def test_hooks_that_change_labels_are_refused(name: str, rows: int, change, backend: str) -> None:
    """The kernel would read behind their end."""

    def changed(saved: Tensor) -> Tensor:
        return change(saved) if saved.dtype == torch.int64 and len(saved) == rows else saved

    inputs = batch(300, 8) + batch(99, 8, seed=1)
    with torch.autograd.graph.saved_tensors_hooks(changed, lambda saved: saved):
        loss = circle_loss(*inputs, backend=backend)
    with pytest.raises(RuntimeError, match=f"wants {name} to be int64"):
        loss.backward()


@pytest.mark.parametrize("backend", ["cpu", "tiled"])
def test_hooks_that_narrow_one_side_are_refused(backend: str) -> None:
    """The kernel reads both as numbers of one size."""

    def narrowed(saved: Tensor) -> Tensor:
        return saved.half() if saved.shape == (99, 8) else saved

    inputs = batch(300, 8) + batch(99, 8, seed=1)
    with torch.autograd.graph.saved_tensors_hooks(narrowed, lambda saved: saved):
        loss = circle_loss(*inputs, backend=backend)
    with pytest.raises(RuntimeError, match=r"wants ref_emb to be torch\.float32 of 8 columns"):
        loss.backward()


@pytest.mark.parametrize("backend", ["cpu", "tiled"])
@pytest.mark.parametrize("gamma", [80.0, 1024.0])
def test_hooks_that_compress_what_is_saved_leave_gradients_finite(
    gamma: float, backend: str
) -> None:
    """Kept weights use the whole of float32's exponents, of which half precision has few; and what
    rounds a log-sum-exp scales its row's gradient by an exponential."""

    def halved(saved: Tensor) -> Tensor:
        return saved.half() if saved.is_floating_point() else saved

    def widened(saved: Tensor) -> Tensor:
        return saved.float() if saved.is_floating_point() else saved

    for references in ([], batch(99, 8, seed=1)):
        embeddings, *rest = batch(300, 8) + references
        with torch.autograd.graph.saved_tensors_hooks(halved, widened):
            loss = circle_loss(embeddings, *rest, gamma=gamma, backend=backend)
        (compressed,) = torch.autograd.grad(loss, embeddings)
        loss = circle_loss(embeddings.half().float(), *rest, gamma=gamma, backend=backend)
        (whole,) = torch.autograd.grad(loss, embeddings)
        # Rows are rounded to half precision in both, but log-sum-exps in neither.
        assert (compressed - whole).norm() < 0.5 * whole.norm()


@pytest.mark.parametrize("shape", [(2, 2**58), (2, 2**60), (3, 2**54), (2, 2**40)])
@pytest.mark.parametrize("references", [False, True])
@pytest.mark.parametrize("gradient", [False, True])
def test_shapes_that_no_memory_holds_raise(shape, references: bool, gradient: bool) -> None:
    """A view of one number, whose size in bytes overflows or nearly does."""
    rows = torch.zeros(1, requires_grad=gradient).expand(shape)
    inputs = [rows, torch.zeros(shape[0], dtype=torch.int64)]
    with pytest.raises((MemoryError, ValueError), match="memory"):
        circle_loss(*inputs, *(inputs if references else ()), backend="cpu")


CTRL_C = """
import torch
from circle_kernels import circle_loss

torch.set_num_threads(2)
embeddings = torch.ones(2_000_000, 8, requires_grad=True)
labels = torch.arange(2_000_000)
print("started", flush=True)
try:
    circle_loss(embeddings, labels, backend="cpu")
except KeyboardInterrupt:
    loss = circle_loss(embeddings[:300], labels[:300] // 2, backend="cpu")
    loss.backward()
    print("interrupted", loss.isfinite().item(), flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_ctrl_c_ends_a_step_of_hours() -> None:
    root = ROOT
    child = subprocess.Popen(
        [sys.executable, "-c", CTRL_C],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout.readline() == "started\n"
        with pytest.raises(subprocess.TimeoutExpired):  # or the step ends by itself
            child.wait(1)
        child.send_signal(signal.SIGINT)
        output, _ = child.communicate(timeout=120)
    finally:
        child.kill()
    assert output == "interrupted True\n"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that sends signals")
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
        assert queue.get(timeout=60) == expected
        child.join(timeout=60)
        assert child.exitcode == 0
    finally:
        child.kill()


@pytest.mark.parametrize("level", LEVELS)
def test_level_is_the_one_asked_for(level: str, monkeypatch) -> None:
    monkeypatch.setenv(cpu.LEVEL_VARIABLE, level)
    assert available_backends()["cpu"].endswith(f"instruction set {level}")
    for ours, expected in zip(
        results(batch(200, 30)), results(batch(200, 30), "tiled"), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_unknown_level_is_named_with_those_that_exist(monkeypatch) -> None:
    monkeypatch.setenv(cpu.LEVEL_VARIABLE, "avx1024")
    assert available_backends()["cpu"].startswith(
        f"not usable: {cpu.LEVEL_VARIABLE}: there is no 'avx1024'; this machine supports baseline"
    )
    with pytest.raises(RuntimeError, match="there is no 'avx1024'"):
        circle_loss(*batch(8, 4), backend="cpu")
    with pytest.raises(RuntimeError, match="there is no 'avx1024'"):
        circle_loss(*batch(8, 4))


@pytest.fixture
def _no_warning_yet():
    choice._warn_once.cache_clear()
    yield
    choice._warn_once.cache_clear()


@pytest.mark.usefixtures("_no_warning_yet")
def test_without_the_extension_auto_is_tiled_and_says_so_once(monkeypatch) -> None:
    monkeypatch.setattr(cpu, "_extension", lambda: "the C++ kernel was not built: no compiler")
    assert available_backends()["cpu"] == "not usable: the C++ kernel was not built: no compiler"
    with pytest.raises(RuntimeError, match=r"cannot serve .*: the C\+\+ kernel was not built"):
        circle_loss(*batch(8, 4), backend="cpu")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        losses = [circle_loss(*batch(8, 4)) for _ in range(3)]
    assert [str(each.message).partition("since ")[2][:40] for each in seen] == [
        "cpu cannot: the C++ kernel was not built"
    ]
    torch.testing.assert_close(losses[2], circle_loss(*batch(8, 4), backend="tiled"))


@pytest.mark.parametrize(
    ("files", "remedy"),
    [
        (["csrc/kernels.h"], "run 'pip install -e .' there"),
        (["csrc/kernels.h", "circle_kernels/_cpu.of-another-python.so"], "for another Python"),
        (["circle_kernels/_cpu.abi3.so"], "compiles it for this machine"),
        ([], "without CIRCLE_KERNELS_NO_CPU_KERNEL"),
    ],
    ids=["checkout", "built for another Python", "does not load", "installed"],
)
def test_missing_extension_is_explained_where_it_is_missing(
    files: list[str], remedy: str, tmp_path: Path, monkeypatch
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(cpu, "__file__", str(tmp_path / "circle_kernels/backends/cpu.py"))
    assert remedy in cpu._why_missing(ImportError("no module"))


def test_rows_far_below_their_tile_are_exact() -> None:
    """One exponential for a whole tile would make the sums of such rows 0."""
    formula = CircleFormula(m=0.25, gamma=1024)
    angles = torch.cat([torch.linspace(0, 0.1, 60), torch.tensor([1.5])]).double()
    embeddings = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels = torch.arange(61)
    for dtype in (torch.float32, torch.float64):
        lse_pos, lse_neg = pair_logsumexp(
            embeddings.to(dtype), labels, formula=formula, backend="cpu"
        )
        expected = pair_logsumexp(embeddings, labels, formula=formula, backend="reference")[1]
        assert expected.max() - expected.min() > 300
        assert bool(lse_pos.isneginf().all())
        torch.testing.assert_close(
            lse_neg.double(), expected, rtol=0, atol=4096 * torch.finfo(dtype).eps
        )


@pytest.mark.parametrize(
    ("precision", "digits"), [("highest", 1e-6), ("high", 1e-4), ("medium", 3e-2)]
)
def test_matmul_precision_bounds_the_error(precision: str, digits: float) -> None:
    embeddings, labels = batch(300, 64)
    truth = circle_loss(embeddings.double(), labels, gamma=32)
    torch.set_float32_matmul_precision(precision)
    try:
        loss = circle_loss(embeddings, labels, gamma=32, backend="cpu")
    finally:
        torch.set_float32_matmul_precision("highest")
    assert abs(loss.item() - truth.item()) <= digits * truth.item()
