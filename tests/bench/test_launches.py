"""``python -m bench launches``: counts that can be believed, and ours within its budget."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

from tests.support.places import ROOT
from tests.support.targets import ON_GPU

pytest.importorskip("triton", minversion="3.3")


from bench import __main__ as cli
from bench.launches import command as launches
from bench.launches.counts import (
    TARGET,
    count_kernels,
    count_triton,
    count_with_engine,
    count_without_engine,
    profile_kernels,
)
from bench.launches.tables import launch_tables
from bench.measuring.cases import Case
from bench.measuring.operators import CountOperators
from bench.measuring.variants import GAMMA, VARIANTS, M
from bench.offline.pretended import DEVICES
from bench.reporting.results import Results, describe_versions, load
from circle_kernels import CircleFormula, circle_loss
from circle_kernels.backends.addressable import stand_ins
from circle_kernels.backends.triton.conditions import assuming
from circle_kernels.backends.triton.launch import Launch, observe_launches
from circle_kernels.operation.batch import operation_of

TOP = ROOT
COMMITTED = load(TOP / "bench" / "results" / "launches.json")


def test_views_and_memory_launch_nothing_and_everything_else_once() -> None:
    values = torch.arange(6.0)
    with CountOperators() as seen:
        matrix = values.view(2, 3)
        torch.empty_like(matrix[1:]).copy_(matrix[1:])
        first, _ = matrix.unbind()
        first.mul_(2)
        (matrix + 1).sum().detach()
    assert seen.launching == [
        "aten.copy_.default",
        "aten.mul_.Tensor",
        "aten.add.Tensor",
        "aten.sum.default",
    ]
    assert set(seen.names) - set(seen.launching) == {
        "aten.view.default",
        "aten.slice.Tensor",
        "aten.empty_like.default",
        "aten.unbind.int",
        "aten.detach.default",
    }


def test_counting_without_autograds_engine_finds_what_its_engine_runs() -> None:
    case = Case(64, 16)
    work = VARIANTS["tiled"].work(case)
    operation = operation_of(CircleFormula, m=M, gamma=GAMMA, backend="tiled")
    counts = count_without_engine(operation, (work.embeddings, work.labels))
    with stand_ins():
        assert counts == count_with_engine(VARIANTS["tiled"].work(case))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_step_under_autograd_launches_the_kernels_that_are_counted(dtype: str) -> None:
    """A real step, watched by nobody but the launcher, whose kernels are not run."""

    def note(launch: Launch, proceed: Callable[[Launch], Any]) -> None:
        names.append(launch.kernel.__name__)

    case = Case(64, 16, dtype=dtype)
    embeddings = torch.randn(case.rows, case.dim).to(case.torch_dtype).requires_grad_()
    names: list[str] = []
    with assuming(hardware=DEVICES[TARGET].hardware), observe_launches(note):
        loss = circle_loss(embeddings, torch.arange(case.rows) // 4, backend="triton")
        forward = len(names)
        loss.backward()
    counts = count_triton(case)
    assert forward == counts["forward"].kernels
    assert len(names) - forward == counts["backward"].kernels


def test_kernels_are_told_from_copies_and_from_what_the_host_does() -> None:
    events = [
        SimpleNamespace(name=name, device_type=device_type)
        for name, device_type in [
            ("aten::mm", DeviceType.CPU),
            ("cudaLaunchKernel", DeviceType.CPU),
            ("ampere_sgemm_128x64_nt", DeviceType.CUDA),
            ("Memcpy DtoH (Device -> Pageable)", DeviceType.CUDA),
            ("Memset (Device)", DeviceType.CUDA),
            ("row_losses_kernel", DeviceType.CUDA),
        ]
    ]
    assert count_kernels(events) == 2


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_profiler_sees_no_kernels_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    work = VARIANTS["eager"].work(Case(16, 4))
    assert profile_kernels(work) == {"forward": 0, "backward": 0}
    assert work.embeddings.grad is not None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=ON_GPU)])
def test_a_device_runs_what_was_counted_without_one(device: str, dtype: str) -> None:
    case = Case(256, 128, dtype=dtype)
    kernels = profile_kernels(VARIANTS["triton"].work(replace(case, device=device)))
    counts = count_triton(case)
    assert kernels["forward"] == counts["forward"].launches
    # The library may add up a matrix product in a second kernel.
    assert kernels["backward"] - counts["backward"].launches in (0, 1)


@pytest.mark.parametrize("case", launches.CASES, ids=str)
def test_small_batches_keep_within_their_launches_and_never_wait(case: Case) -> None:
    counts = {name: asdict(counted) for name, counted in count_triton(case).items()}
    row = {"variant": "triton", **case.as_dict(), **counts}
    assert launches.exceeded_budgets([row]) == []


def test_exceeded_budgets_are_named() -> None:
    row = _row(COMMITTED, "triton", launches.CASES[0])
    worse = {**row, "forward": {**row["forward"], "launches": 3, "waits": 1}}
    assert launches.exceeded_budgets([worse]) == [
        "N=64 D=128 float32 forward: 3 launches, at most 2",
        "N=64 D=128 float32 forward: the host waits 1 times",
    ]
    assert launches.exceeded_budgets([{**worse, "variant": "eager"}]) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", launches.VARIANT_NAMES)
def test_committed_counts_are_those_of_today(name: str, dtype: str) -> None:
    now = describe_versions()
    for package in ("torch", "triton", "pytorch-metric-learning"):
        if _release(now[package]) != _release(COMMITTED.versions[package]):
            pytest.skip(f"counted with {package} {COMMITTED.versions[package]}")
    case = Case(64, 128, dtype=dtype)
    counted, committed = launches.count_case(name, case), _row(COMMITTED, name, case)
    for step in ("forward", "backward"):
        counted[step]["profiled"] = committed[step]["profiled"]  # where there is a device
    assert counted == committed, "run python -m bench launches"


def test_committed_results_are_what_the_page_shows() -> None:
    page = (TOP / "docs" / "cuda-graphs.md").read_text(encoding="utf-8")
    for name, content in launches.PRESENTATION.blocks(COMMITTED).items():
        assert f"<!-- bench:{name} -->\n{content}\n<!-- /bench:{name} -->" in page
    assert launches.exceeded_budgets(COMMITTED.rows) == []
    assert len(COMMITTED.rows) == len(launches.VARIANT_NAMES) * len(launches.CASES)


def test_variant_that_is_not_installed_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = replace(VARIANTS["pml"], missing=lambda case: "not here")
    monkeypatch.setitem(VARIANTS, "pml", absent)
    monkeypatch.setattr(launches, "CASES", launches.CASES[:1])
    assert cli.main(["launches", "--out", str(tmp_path / "launches.json")]) == 0
    assert "Not counted: pml (not here)." in capsys.readouterr().out
    names = [row["variant"] for row in load(tmp_path / "launches.json").rows]
    assert names == ["triton", "eager"]


def test_cases_with_other_counts_have_rows_of_their_own() -> None:
    rows = [copy.deepcopy(_row(COMMITTED, "triton", case)) for case in launches.CASES[:6]]
    rows[0]["forward"]["launches"] += 1
    (table,) = launch_tables(replace(COMMITTED, rows=rows))
    ours = [row for row in table.rows if row[4] == "forward"]
    assert [row[1:4] for row in ours[:2]] == [["64", "128", "float32"], ["64", "512", "float32"]]
    assert len(ours) == len(rows)


def _row(results: Results, name: str, case: Case) -> dict[str, Any]:
    wanted = (name, case.rows, case.dim, case.dtype)
    (row,) = (
        row
        for row in results.rows
        if (row["variant"], row["rows"], row["dim"], row["dtype"]) == wanted
    )
    return row


def _release(version: str | None) -> str | None:
    """Without what the build is for."""
    return version and version.partition("+")[0]
