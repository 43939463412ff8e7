"""``python -m bench tune``: whole runs, shown without a device, and what it refuses.

Passes are planned on pretended devices, or run in Triton's interpreter; times are made up.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", minversion="3.3")

from bench import __main__ as cli
from bench.measuring.timing import Effort
from bench.reporting.errors import UserError
from bench.tune import choice as tune_choice
from bench.tune import chooser as tune_chooser
from bench.tune import command as tune
from bench.tune import passes as tune_passes
from bench.tune.chooser import Choice
from bench.tune.grid import Gpu
from bench.tune.passes import Job, TimedPass
from bench.tune.search import QUICK, Extent
from circle_kernels.backends.triton.conditions import conditions_on
from circle_kernels.backends.triton.launch import Launch, observe_launches
from circle_kernels.backends.triton.settings import Settings, find_settings, fit_depth
from circle_kernels.backends.triton.settings_table import (
    SETTINGS_VARIABLE,
    load_table,
    read_entries,
)
from tests.bench.tune.tuning import BASE, FAST, H100, no_data
from tests.support.targets import INTERPRETED


def made_up(fastest: Mapping[str, Settings]) -> tune_passes.Measure:
    """A stopwatch that finds given settings of each kernel faster by a tenth."""

    def measure(steps: Mapping[str, TimedPass], effort: Effort) -> dict[str, list[float]]:
        return {
            name: [0.9 if step.settings == fastest.get(step.of.job.kernel) else 1.0] * 5
            for name, step in steps.items()
        }

    return measure


class _Here:
    """A chooser in this process."""

    def __init__(self, measure: tune_passes.Measure, gpu: Gpu, extent: Extent) -> None:
        self.measure, self.gpu, self.extent = measure, gpu, extent

    def __enter__(self) -> _Here:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def choose(self, job: Job, tried: Callable[[], None]) -> Choice:
        return tune_choice.choose_settings(
            job, self.gpu, self.extent, {}, lambda settings: tried(), self.measure
        )


@pytest.mark.skipif(INTERPRETED, reason="the interpreter launches nothing")
def test_whole_command_on_a_pretended_device(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    own_table: None,
) -> None:
    from bench.offline.pretended import DEVICES, pretend_device

    faster = Settings(256, 128, 64, 8, 4, 255)
    spilling = Settings(64, 64, 64, 4, 4)
    times = made_up({"triangle": faster, "small_rectangle": spilling})
    monkeypatch.setattr(tune_chooser, "Chooser", functools.partial(_Here, times))
    monkeypatch.setattr(tune_passes, "make_data", no_data)
    # Fake tensors have nothing to compare, and no device to wait for.
    monkeypatch.setattr(tune_passes, "_close", lambda results, expected: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "Pretended H100")
    path = tmp_path / "new" / "tuned.json"

    def compile_nothing(launch: Launch, proceed: Callable[[Launch], Any]) -> SimpleNamespace:
        proceed(launch)
        # Only where the depth needs masking do these spill.
        masked = not launch.constants.get("EVEN_DEPTH", True)
        spills = 80 * (launch.num_stages == 4 and masked)
        return SimpleNamespace(n_spills=spills * (launch.kernel.__name__ == "sum_rows_kernel"))

    with pretend_device(DEVICES["sm_90"]), observe_launches(compile_nothing):
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
    assert entries[1].settings == find_settings("small_rectangle", "sm_90", torch.bfloat16, 512)
    content = json.loads(path.read_text())["measured"]
    assert content["settings"]["multiprocessors"] == 132
    assert content["versions"]["torch"] == torch.__version__
    rows = {(row["kernel"], row["depth"]): row for row in content["rows"]}
    assert rows["triangle", 512]["ratio"] == 0.9
    assert rows["small_rectangle", 512]["ratio"] == 1.0
    (left_out,) = rows["small_rectangle", 512]["left_out"].items()
    assert left_out == (
        "64x64x64, 4 warps, 4 stages",
        "for another formula, depth or dtype: 80 spills",
    )
    shown = capsys.readouterr()
    assert "256x128x64, 8 warps, 4 stages" in shown.out
    assert f"{SETTINGS_VARIABLE}={path} uses it" in shown.out


@pytest.mark.backends
@pytest.mark.skipif(not INTERPRETED, reason="runs in the interpreter lane")
def test_what_is_chosen_by_running_kernels_is_used_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_table: None
) -> None:
    search = tune.Search(["small_rectangle"], ["float16"], [16], "cpu", QUICK)
    gpu = tune.find_gpu(search)
    assert gpu == Gpu(*conditions_on(torch.device("cpu")).hardware, 32)
    job = Job("small_rectangle", "interpreter", torch.float16, 16, "cpu")
    current, *others = tune_choice.to_try(job, gpu, QUICK)
    chosen = others[-1]
    path = tmp_path / "tuned.json"

    def measure(steps: Mapping[str, TimedPass], effort: Effort) -> dict[str, list[float]]:
        for step in steps.values():
            assert step.forward().isfinite().all()
        return made_up({"small_rectangle": chosen})(steps, effort)

    tune.tune(search, gpu, path, _Here(measure, gpu, QUICK).choose)
    (row,) = json.loads(path.read_text())["measured"]["rows"]
    assert row["left_out"] == {}
    assert len(row["ratios"]) == len(others)
    before = find_settings("small_rectangle", "interpreter", torch.float16, 64)
    monkeypatch.setenv(SETTINGS_VARIABLE, str(path))
    load_table.cache_clear()
    after = find_settings("small_rectangle", "interpreter", torch.float16, 64)
    assert after == fit_depth(chosen, 64) != before == fit_depth(current, 64)


def test_what_could_not_be_found_is_said_and_the_rest_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def choose(job: Job, tried: Callable[[], None]) -> Choice:
        row = tune_choice.new_row(job, BASE)
        if job.kernel == "triangle":
            return None, {**row, "failed": "took longer than 600 s"}
        return FAST, {**row, "chosen": tune_choice.text_of(FAST), "ratio": 0.5, "ratios": {}}

    path = tmp_path / "tuned.json"
    search = tune.Search(["weights", "triangle"], ["float32"], [128], "cpu")
    with pytest.raises(UserError, match=r"1 of 2, .* triangle float32 D=128: took longer than 600"):
        tune.tune(search, H100, path, choose)
    assert [(entry.kernel, entry.settings) for entry in read_entries(path)] == [("weights", FAST)]
    assert "took longer than 600 s" in capsys.readouterr().out


def test_depths_at_which_the_table_changes_are_tried_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_table: None
) -> None:
    entry = {"kernel": "triangle", "family": "sm_86", "bytes": 4, "depth": 700}
    entry |= {**dataclasses.asdict(BASE), "num_stages": 5}
    (tmp_path / "family.json").write_text(json.dumps({"entries": [entry]}))
    monkeypatch.setenv(SETTINGS_VARIABLE, str(tmp_path / "family.json"))

    def keep(job: Job, tried: Callable[[], None]) -> Choice:
        current = tune_choice.to_try(job, gpu, QUICK)[0]
        text = tune_choice.text_of(current)
        return current, {**tune_choice.new_row(job, current), "chosen": text}

    gpu = Gpu("sm_89", 128, 32)
    path = tmp_path / "tuned.json"
    tune.tune(tune.Search(["triangle"], ["float32"], [128], "cpu", QUICK), gpu, path, keep)
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
