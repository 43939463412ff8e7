"""``python -m bench tune``: what it tries and chooses, shown without a device.

Passes are planned on pretended devices, or run in Triton's interpreter; times are made up.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", minversion="3.3")

from bench import __main__ as cli
from bench.measuring.timing import CapturedStep, CpuClock, Effort
from bench.reporting.errors import UserError
from bench.tune import choice as tune_choice
from bench.tune import command as tune
from bench.tune import passes as tune_passes
from bench.tune import worker as tune_worker
from bench.tune.grid import Hardware, Size, candidates, problem_sizes
from bench.tune.passes import Job, NotLaunchedError, Pass, TimedPass, time_ratios, why_unusable
from circle_kernels.backends.triton import launch
from circle_kernels.backends.triton.settings import Settings, fit_depth, rectangle_settings
from circle_kernels.backends.triton.settings_table import (
    KERNELS,
    SETTINGS_VARIABLE,
    load_table,
    read_entries,
    unusable_shape,
)
from tests.support.targets import INTERPRETED

H100 = Hardware("sm_90", 132, 32)
MI300 = Hardware("gfx942", 304, 64)
BASE, FAST, FASTER = (Settings(64, 64, 32, 4, stages) for stages in (2, 3, 4))


@pytest.mark.parametrize("hardware", [H100, MI300], ids=lambda hardware: hardware.architecture)
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("kernel", KERNELS)
def test_candidates_differ_and_suit_their_kernel(
    kernel: str, itemsize: int, hardware: Hardware
) -> None:
    found = candidates(kernel, itemsize, 512, hardware)
    assert len(found) == len(set(found)) >= 8
    assert all(unusable_shape(kernel, settings) is None for settings in found)
    threads = hardware.warp_size
    for each in found:
        assert 16 <= each.block_rows * each.block_columns / (each.num_warps * threads) <= 64
    assert max(each.block_rows for each in found) == 128
    assert {each.num_stages for each in found} == ({1, 2} if threads == 64 else {2, 3, 4})
    assert {each.block_depth for each in found} == ({32, 64} if itemsize == 2 else {16, 32})
    shallow = candidates(kernel, itemsize, 16, hardware)
    assert {each.block_depth for each in shallow} == ({32} if itemsize == 2 else {16})


def test_quick_candidates_have_the_current_tile() -> None:
    current = Settings(128, 128, 128, 8, 3)
    found = candidates("rectangle", 2, 512, H100, current)
    assert {(each.block_rows, each.block_columns, each.block_depth) for each in found} == {
        (128, 128, 128)
    }
    assert {(each.num_warps, each.num_stages) for each in found} == {(8, 2), (8, 3), (8, 4)}


def no_data(
    regime: str, rows: int, dim: int, *, dtype: torch.dtype, device: str, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shapes alone: what is drawn on the CPU cannot be moved to a pretended device."""
    embeddings = torch.empty(rows, dim, dtype=dtype, device=device)
    return embeddings, torch.empty(rows, dtype=torch.int64, device=device)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter launches nothing")
@pytest.mark.parametrize("target", ["sm_80", "sm_89", "sm_90", "sm_100", "gfx942"])
def test_problems_take_the_kernel_that_they_are_for(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.offline.pretended import DEVICES, pretend_device

    monkeypatch.setattr(tune_passes, "make_data", no_data)
    device = DEVICES[target]
    settings = Settings(32, 32, 16, 2, 1)  # what no entry has
    with pretend_device(device):
        for kernel in KERNELS:
            job = Job(kernel, target, torch.bfloat16, 512, "cuda")
            for size in problem_sizes(kernel, device.multiprocessors):
                Pass(job, size).inspect(settings)
        with pytest.raises(NotLaunchedError, match="triangle bfloat16 D=512: wanted"):
            Pass(Job("triangle", target, torch.bfloat16, 512, "cuda"), Size(256)).inspect(settings)


def test_fastest_is_chosen_if_it_is_faster_by_more_than_the_margin() -> None:
    def choose(ratios: dict[Settings, float], rejected: Sequence[Settings] = (), **kwargs: Any):
        return tune_choice.choose(BASE, ratios, lambda settings: settings in rejected, **kwargs)

    assert choose({FAST: 0.96, FASTER: 0.9}) == FASTER
    assert choose({FAST: 0.975, FASTER: 0.97}) == BASE
    assert choose({FAST: 0.96, FASTER: 0.9}, rejected=[FASTER]) == FAST
    assert choose({FAST: 0.98, FASTER: 0.9}, rejected=[FASTER]) == BASE
    assert choose({}) == BASE
    # Where the current settings do not run, there is nothing to keep.
    assert choose({FAST: 0.99, FASTER: 1.2}, keeps_baseline=False) == FAST


def test_settings_hold_from_the_depth_at_which_they_change() -> None:
    assert tune.by_smallest_depth({128: BASE, 512: BASE, 1024: FAST}) == [(1, BASE), (1024, FAST)]
    assert tune.by_smallest_depth({1024: BASE, 512: FAST}) == [(1, FAST), (1024, BASE)]
    assert tune.by_smallest_depth({}) == []


def test_ratios_are_taken_in_groups_beside_the_baseline_and_over_all_problems() -> None:
    others = [Settings(64, 64, 32, warps, stages) for warps in (1, 2, 4, 8) for stages in (5, 6)]
    groups = []

    def measure(steps: Mapping[str, TimedPass], effort: Effort) -> dict[str, list[float]]:
        groups.append(len(steps))
        # Every group is slower than the one before, and so is its baseline.
        unit = float(len(groups))
        # On the second problem others take four times as long.
        slower = 4.0 if next(iter(steps.values())).of == "second" else 1.0
        return {
            name: [unit * (1.0 if step.settings == BASE else slower * step.settings.num_stages)] * 5
            for name, step in steps.items()
        }

    passes: list[Any] = ["first", "second"]
    ratios, seconds = time_ratios(passes, BASE, others, measure, Effort())
    assert groups == [7, 3, 7, 3]
    assert list(ratios) == others
    for settings, found in ratios.items():
        assert found == pytest.approx(2 * settings.num_stages)
    assert seconds == [1.0, 3.0]


class _Replay:
    """What a CUDA graph does, without one."""

    def __init__(self, step: TimedPass) -> None:
        self.replay = step.forward


class _Sleeps:
    """Stands for a pass."""

    def __init__(self) -> None:
        self.ran: list[Settings] = []

    def run(self, settings: Settings) -> tuple[torch.Tensor, ...]:
        self.ran.append(settings)
        return (torch.zeros(()),)


def test_steps_are_captured_and_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tune_passes, "capture", lambda step: CapturedStep(step, _Replay(step), torch.zeros(()))
    )
    monkeypatch.setattr(tune_passes, "clock_for", lambda device: CpuClock())
    one: Any = _Sleeps()
    steps = {str(settings): TimedPass(one, settings) for settings in (BASE, FAST)}
    effort = Effort(seconds=0.0, min_rounds=5, max_rounds=5, sample_seconds=0.0)
    samples = tune_passes.measure(steps, effort)
    assert {name: len(sample) for name, sample in samples.items()} == dict.fromkeys(steps, 5)
    assert one.ran[-10:] == [BASE, FAST] * 5


class _Inspected:
    """Stands for a pass whose results and spills are known."""

    job = Job("triangle", "sm_90", torch.float32, 64, "cpu")

    def __init__(self, result: float = 1.0, spills: int = 0, error: Exception | None = None):
        self.result, self.spills, self.error = torch.full((4,), result), spills, error

    def inspect(self, settings: Settings) -> tuple[tuple[torch.Tensor, ...], int]:
        if self.error is not None:
            raise self.error
        return (self.result,), self.spills


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (_Inspected(), None),
        (_Inspected(1 + 1e-5), None),
        (_Inspected(spills=12), "12 spills"),
        (_Inspected(1.001), "results differ from those of the current settings"),
        (_Inspected(float("nan")), "results differ from those of the current settings"),
        (
            _Inspected(error=RuntimeError("out of resource: shared memory\nRequired: 3")),
            "failed: RuntimeError: out of resource: shared memory",
        ),
    ],
)
def test_settings_are_left_out_for_a_reason(one: Any, reason: str | None) -> None:
    expected = [(torch.ones(4),)]
    assert why_unusable([one], BASE, expected)[0] == reason


def test_pass_that_launches_no_tiles_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_passes.triton_backend, "forward", lambda problem: (torch.ones(8),) * 3)
    with pytest.raises(NotLaunchedError, match=r"got \[\]"):
        Pass(Job("rectangle", "sm_90", torch.float32, 16, "cpu"), Size(8)).inspect(BASE)


def test_problem_of_another_kernel_is_no_fault_of_the_settings() -> None:
    broken: Any = _Inspected(error=NotLaunchedError("wanted"))
    with pytest.raises(NotLaunchedError):
        why_unusable([broken], BASE, None)


def test_broken_device_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def synchronize() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    broken: Any = _Inspected(error=RuntimeError("CUDA error"))
    broken.job = Job("triangle", "sm_90", torch.float32, 64, "cuda")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        why_unusable([broken], BASE, None)


def breaks_at_some(
    job: Job, hardware: Hardware, quick: bool, broken: dict, trying: Any, measure: Any
) -> tune_worker.Choice:
    """Ends its process with one of the settings and hangs with another."""
    for settings in (BASE, FAST, FASTER):
        trying(settings)
        if job.depth == 64 and settings not in broken:
            if settings == BASE:
                os.abort()
            if settings == FAST:
                time.sleep(1e6)
    trying(None)
    if job.depth == 1:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")
    return FASTER, {"broken": broken, "process": os.getpid()}


class _Impatient:
    """Waits for what hangs not at all, and for everything else as long as it takes."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.close = connection, connection.close
        self.hangs, self.hanging = False, False

    def send(self, message: tuple[Job, dict]) -> None:
        job, broken = message
        self.hanging = job.depth == 64 and FAST not in broken
        self.connection.send(message)

    def poll(self, patience: float) -> bool:
        return not self.hangs and self.connection.poll(None)

    def recv(self) -> Any:
        message = self.connection.recv()
        self.hangs = self.hanging and message == ("trying", FAST)
        return message


def test_settings_that_end_the_process_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    start = tune_worker.Worker._start

    def start_impatiently(worker: tune_worker.Worker) -> Any:
        worker._connection = _Impatient(start(worker))
        return worker._connection

    monkeypatch.setattr(tune_worker.Worker, "_start", start_impatiently)
    jobs = [Job("triangle", "sm_90", torch.float32, depth, "cpu") for depth in (64, 128, 1)]
    tried = []
    with tune_worker.Worker(H100, True, breaks_at_some, patience=1.0) as worker:
        settings, row = worker.choose(jobs[0], lambda: tried.append(1))
        assert settings == FASTER
        assert row["broken"] == {
            BASE: "failed: the process ended with code -6",
            FAST: "failed: took longer than 1 s",
        }
        assert len(tried) == 3
        # The process goes on with the next job, of which nothing is known to be broken.
        assert worker.choose(jobs[1], lambda: None)[1] == {"broken": {}, "process": row["process"]}
        settings, row = worker.choose(jobs[2], lambda: None)
    assert settings is None
    assert row["failed"] == "RuntimeError: CUDA error: an illegal memory access was encountered"


def made_up(fastest: Mapping[str, Settings]) -> tune_passes.Measure:
    """A stopwatch that finds given settings of each kernel faster by a tenth."""

    def measure(steps: Mapping[str, TimedPass], effort: Effort) -> dict[str, list[float]]:
        return {
            name: [0.9 if step.settings == fastest.get(step.of.job.kernel) else 1.0] * 5
            for name, step in steps.items()
        }

    return measure


class _Here:
    """A worker in this process."""

    def __init__(self, measure: tune_passes.Measure, hardware: Hardware, quick: bool) -> None:
        self.measure, self.hardware, self.quick = measure, hardware, quick

    def __enter__(self) -> _Here:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def choose(self, job: Job, tried: Callable[[], None]) -> tune_worker.Choice:
        return tune_choice.choose_settings(
            job, self.hardware, self.quick, {}, lambda settings: tried(), self.measure
        )


@pytest.fixture
def own_table(monkeypatch: pytest.MonkeyPatch):
    """No file of the user's but what the test names."""
    monkeypatch.delenv(SETTINGS_VARIABLE, raising=False)
    load_table.cache_clear()
    yield
    load_table.cache_clear()


@pytest.mark.skipif(INTERPRETED, reason="the interpreter launches nothing")
def test_whole_command_on_a_pretended_device(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    own_table: None,
) -> None:
    import triton

    from bench.offline.pretended import DEVICES, pretend_device

    faster = Settings(128, 128, 64, 8, 4)
    spilling = Settings(64, 64, 64, 4, 4)
    times = made_up({"triangle": faster, "small_rectangle": spilling})
    monkeypatch.setattr(tune_worker, "Worker", functools.partial(_Here, times))
    monkeypatch.setattr(tune_passes, "make_data", no_data)
    # Fake tensors have nothing to compare, and no device to wait for.
    monkeypatch.setattr(tune_passes, "_close", lambda results, expected: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "Pretended H100")
    path = tmp_path / "new" / "tuned.json"
    with pretend_device(DEVICES["sm_90"]):
        plan = triton.runtime.JITFunction.run

        def run(kernel: Any, *args: Any, **arguments: Any) -> SimpleNamespace:
            plan(kernel, *args, **arguments)
            # Only where the depth needs masking do these spill.
            spills = 8 * (arguments["num_stages"] == 4 and not arguments.get("EVEN_DEPTH", True))
            return SimpleNamespace(n_spills=spills * (kernel.__name__ == "sum_rows_kernel"))

        monkeypatch.setattr(triton.runtime.JITFunction, "run", run)
        arguments = ["tune", "--quick", "--depths", "64,512", "--dtypes", "bfloat16"]
        kernels = "triangle,small_rectangle,weights,weights_in_any_order"
        assert cli.main([*arguments, "--kernels", kernels, "--out", str(path)]) == 0
        assert path.exists()
        monkeypatch.undo()

    entries = read_entries(path)
    assert [(entry.kernel, entry.family, entry.bytes, entry.depth) for entry in entries] == [
        ("triangle", "sm_90", 2, 1),
        ("small_rectangle", "sm_90", 2, 1),
        ("weights", "sm_90", 2, 1),
        ("weights_in_any_order", "sm_90", 2, 1),
    ]
    assert entries[0].settings == faster
    assert entries[1].settings == rectangle_settings("sm_90", torch.bfloat16, 512, small=True)
    content = json.loads(path.read_text())["measured"]
    assert content["settings"]["multiprocessors"] == 132
    assert content["versions"]["torch"] == torch.__version__
    rows = {(row["kernel"], row["depth"]): row for row in content["rows"]}
    assert rows["triangle", 512]["ratio"] == 0.9
    assert rows["small_rectangle", 512]["ratio"] == 1.0
    (left_out,) = rows["small_rectangle", 512]["left_out"].items()
    assert left_out == (
        "64x64x64, 4 warps, 4 stages",
        "for another formula, depth or dtype: 8 spills",
    )
    shown = capsys.readouterr()
    assert "128x128x64, 8 warps, 4 stages" in shown.out
    assert f"{SETTINGS_VARIABLE}={path} uses it" in shown.out


@pytest.mark.backends
@pytest.mark.skipif(not INTERPRETED, reason="runs in the interpreter lane")
def test_what_is_chosen_by_running_kernels_is_used_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_table: None
) -> None:
    plan = tune.Plan(["small_rectangle"], ["float16"], [16], "cpu", quick=True)
    hardware = tune.find_hardware(plan)
    assert hardware == Hardware("interpreter", launch.num_multiprocessors(torch.device("cpu")), 32)
    job = Job("small_rectangle", "interpreter", torch.float16, 16, "cpu")
    current, *others = tune_choice.to_try(job, hardware, quick=True)
    chosen = others[-1]
    path = tmp_path / "tuned.json"

    def measure(steps: Mapping[str, TimedPass], effort: Effort) -> dict[str, list[float]]:
        for step in steps.values():
            assert step.forward().isfinite().all()
        return made_up({"small_rectangle": chosen})(steps, effort)

    tune.tune(plan, hardware, path, _Here(measure, hardware, quick=True).choose)
    (row,) = json.loads(path.read_text())["measured"]["rows"]
    assert row["left_out"] == {}
    assert len(row["ratios"]) == len(others)
    before = rectangle_settings("interpreter", torch.float16, 64, small=True)
    monkeypatch.setenv(SETTINGS_VARIABLE, str(path))
    load_table.cache_clear()
    after = rectangle_settings("interpreter", torch.float16, 64, small=True)
    assert after == fit_depth(chosen, 64) != before == fit_depth(current, 64)


@pytest.mark.backends
@pytest.mark.skipif(not INTERPRETED, reason="runs in the interpreter lane")
@pytest.mark.parametrize("kernel", ["rectangle", "weights_in_any_order"])
def test_results_do_not_depend_on_settings_and_wrong_ones_are_seen(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(kernel, "interpreter", torch.float32, 32, "cpu")
    one = Pass(job, Size(300, 250) if kernel == "rectangle" else Size(140))
    reason, expected = why_unusable([one], Settings(64, 64, 16, 4, 1), None)
    assert reason is None
    assert why_unusable([one], Settings(64, 32, 32, 4, 2), expected)[0] is None
    backend = tune_passes.triton_backend
    name = "backward" if kernel.startswith("weights") else "forward"
    right = getattr(backend, name)

    def wrong(*args: Any, **kwargs: Any) -> list[torch.Tensor | None]:
        results = list(right(*args, **kwargs))
        results[0][0] *= 1.1
        return results

    monkeypatch.setattr(backend, name, wrong)
    assert why_unusable([one], Settings(64, 32, 32, 4, 2), expected)[0].startswith("results differ")


def test_what_could_not_be_found_is_said_and_the_rest_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def choose(job: Job, tried: Callable[[], None]) -> tune_worker.Choice:
        row = tune_choice.new_row(job, BASE)
        if job.kernel == "triangle":
            return None, {**row, "failed": "took longer than 600 s"}
        return FAST, {**row, "chosen": tune_choice.text_of(FAST), "ratio": 0.5, "ratios": {}}

    path = tmp_path / "tuned.json"
    plan = tune.Plan(["weights", "triangle"], ["float32"], [128], "cpu")
    with pytest.raises(UserError, match=r"1 of 2, .* triangle float32 D=128: took longer than 600"):
        tune.tune(plan, H100, path, choose)
    assert [(entry.kernel, entry.settings) for entry in read_entries(path)] == [("weights", FAST)]
    assert "took longer than 600 s" in capsys.readouterr().out


def test_depths_at_which_the_table_changes_are_tried_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_table: None
) -> None:
    entry = {"kernel": "triangle", "family": "sm_86", "bytes": 4, "depth": 700}
    entry |= {**dataclasses.asdict(BASE), "num_stages": 5}
    (tmp_path / "family.json").write_text(json.dumps({"entries": [entry]}))
    monkeypatch.setenv(SETTINGS_VARIABLE, str(tmp_path / "family.json"))

    def keep(job: Job, tried: Callable[[], None]) -> tune_worker.Choice:
        current = tune_choice.to_try(job, hardware, quick=True)[0]
        text = tune_choice.text_of(current)
        return current, {**tune_choice.new_row(job, current), "chosen": text}

    hardware = Hardware("sm_89", 128, 32)
    path = tmp_path / "tuned.json"
    tune.tune(tune.Plan(["triangle"], ["float32"], [128], "cpu", True), hardware, path, keep)
    # Entries of sm_89 go before those of its family at every depth.
    depths = {entry.depth: entry.settings.num_stages for entry in read_entries(path)}
    assert depths == {1: 2, 700: 5}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device")
@pytest.mark.parametrize("kernel", ["small_rectangle", "weights_in_any_order"])
def test_quick_run_on_the_device(kernel: str, tmp_path: Path, own_table: None) -> None:
    path = tmp_path / "tuned.json"
    arguments = ["--kernels", kernel, "--dtypes", "bfloat16", "--depths", "128"]
    assert cli.main(["tune", "--quick", *arguments, "--out", str(path)]) == 0
    (entry,) = read_entries(path)
    assert (entry.kernel, entry.bytes, entry.depth) == (kernel, 2, 1)
    (row,) = json.loads(path.read_text())["measured"]["rows"]
    assert row["ratios"], row["left_out"]
    assert all(0 < seconds < 1 for seconds in row["seconds"])
    # Results are the same whatever the settings, so nothing is left out for them.
    assert not any("differ" in reason for reason in row["left_out"].values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_says_what_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "nowhere.json"
    assert cli.main(["tune", "--out", str(path)]) == cli.main(["gpu", "--out", str(path)]) == 1
    assert "error: python -m bench tune needs a CUDA or ROCm device" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kernels", "triangle,square"], "--kernels must be among rectangle, .* got 'square'"),
        (["--dtypes", "float16,bfloat16"], "must be of different sizes, .* float16,bfloat16"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cli.main(["tune", *arguments]) == 1
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--depths", "0"], "depths must be such as 128,512, got '0'"),
        (["--depths", "128,x"], "depths must be such as 128,512, got '128,x'"),
        (["--dtypes", "float64"], "dtypes must be among bfloat16, float16, float32; got 'float64'"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["tune", *arguments])
    assert message in capsys.readouterr().err


def test_broken_settings_file_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    own_table: None,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv(SETTINGS_VARIABLE, str(tmp_path / "none.json"))
    assert cli.main(["tune"]) == 1
    assert "none.json cannot be read" in capsys.readouterr().err
