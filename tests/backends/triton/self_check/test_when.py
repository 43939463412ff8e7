"""When the check runs, and what is remembered of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", minversion="3.3")

from circle_kernels import available_backends
from circle_kernels.backends import remembered
from circle_kernels.backends import triton as kernels
from circle_kernels.backends.triton import launch, self_check
from circle_kernels.backends.triton.conditions import Hardware, assuming
from tests.backends.triton.self_check.stand_in import (
    CHECKED,
    CPU,
    WRONG,
    fails_with,
    in_a_new_process,
    reason,
)


def test_other_devices_versions_and_sources_are_checked(
    monkeypatch: pytest.MonkeyPatch, device: SimpleNamespace
) -> None:
    key = self_check._key(CPU, torch.float32)
    assert set(key) == {"device", "driver", "versions", "kernels", "dtype"}
    assert reason() is None
    for change in (
        lambda: setattr(device, "name", "Another device"),
        lambda: monkeypatch.setattr(self_check, "_driver", lambda: "another"),
        lambda: monkeypatch.setattr(self_check, "__version__", "another"),
        lambda: monkeypatch.setattr(self_check.triton, "__version__", "3.99"),
        lambda: monkeypatch.setattr(self_check, "_sources", lambda: "another"),
    ):
        change()
        device.forwards = 0
        in_a_new_process()
        assert reason() is None
        assert device.forwards == CHECKED
    with assuming(table={}):
        assert self_check._key(CPU, torch.float32)["kernels"] != key["kernels"]


def test_sources_are_all_of_the_backend() -> None:
    root = Path(kernels.__file__).parent
    found = remembered.digest(*(p.read_text("utf-8") for p in sorted(root.rglob("*.py"))))
    assert self_check._sources() == found


@pytest.mark.parametrize("content", ["", "[]", '{"key": {}, "found": ""}', '{"found": 3}'])
def test_file_that_says_nothing_of_this_is_written_anew(
    content: str, device: SimpleNamespace
) -> None:
    assert reason() is None
    (file,) = device.cache.rglob("*.json")
    right = file.read_text()
    file.write_text(content)
    in_a_new_process()
    assert reason() is None
    assert device.forwards == 2 * CHECKED
    assert file.read_text() == right
    assert [path for path in device.cache.rglob("*") if path.is_file()] == [file]


def test_cache_that_cannot_be_written_is_done_without(
    device: SimpleNamespace, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where there should be a folder")
    assert reason() is None
    assert reason() is None
    assert device.forwards == CHECKED
    in_a_new_process()
    assert reason() is None
    assert device.forwards == 2 * CHECKED


def test_cache_is_in_the_home_folder_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/somewhere")
    assert remembered.folder() == Path("/somewhere/.cache/circle_kernels")


def test_environment_variable_turns_it_off(
    monkeypatch: pytest.MonkeyPatch, device: SimpleNamespace
) -> None:
    monkeypatch.setattr(kernels, *WRONG["a sign"])
    monkeypatch.setenv(self_check.VARIABLE, "0")
    assert reason() is None
    assert device.forwards == 0
    monkeypatch.delenv(self_check.VARIABLE)
    assert "self-check" in str(reason())
    monkeypatch.setenv(self_check.VARIABLE, "0")
    assert reason() is None


@pytest.mark.parametrize("where", ["interpreter", "assumed", "measured", "float64"])
def test_where_there_is_nothing_to_find_out_nothing_runs(
    where: str, monkeypatch: pytest.MonkeyPatch, device: SimpleNamespace
) -> None:
    if where == "interpreter":
        monkeypatch.setattr(launch, "INTERPRETED", True)
    if where == "measured":
        monkeypatch.setattr(self_check, "MEASURED", frozenset({"sm_100"}))
    if where == "float64":
        monkeypatch.setattr(launch, "unusable_reason", lambda *_: "not float64")
    if where == "assumed":
        with assuming(hardware=Hardware("sm_90", 132)):
            assert reason() is None
    else:
        assert reason() == ("not float64" if where == "float64" else None)
    assert device.forwards == 0


def test_capture_of_a_graph_leaves_it_to_the_next_call(
    monkeypatch: pytest.MonkeyPatch, device: SimpleNamespace
) -> None:
    monkeypatch.setattr(kernels, *WRONG["a sign"])
    device.capturing = True
    assert reason() is None
    assert device.forwards == 0
    device.capturing = False
    failure = reason()
    assert "self-check" in str(failure)
    device.capturing = True
    assert reason() == failure
    in_a_new_process()
    assert reason() == failure  # a file can be read


def test_errors_are_a_failure_of_this_process(
    monkeypatch: pytest.MonkeyPatch, device: SimpleNamespace
) -> None:
    right = kernels.forward
    monkeypatch.setattr(kernels, "forward", fails_with(RuntimeError("no compiler")))
    failure = str(reason())
    assert "self-check in torch.float32 ended in RuntimeError: no compiler" in failure
    monkeypatch.setattr(kernels, "forward", right)
    assert reason() == failure
    assert not device.cache.exists()
    in_a_new_process()
    assert reason() is None


def test_too_little_memory_leaves_it_to_the_next_call(
    monkeypatch: pytest.MonkeyPatch, device: SimpleNamespace
) -> None:
    right = kernels.forward
    monkeypatch.setattr(kernels, "forward", fails_with(torch.OutOfMemoryError("full")))
    assert reason() is None
    monkeypatch.setattr(kernels, "forward", right)
    assert reason() is None
    assert device.forwards == CHECKED


def test_later_calls_look_up_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reason() is None
    for name in ("_is_checked", "_known", "_lock", "hardware_of"):
        monkeypatch.setattr(self_check, name, None)
    assert reason() is None


def test_status_tells_failures_and_runs_nothing(
    monkeypatch: pytest.MonkeyPatch, device: SimpleNamespace
) -> None:
    usable = "usable: on CUDA and ROCm tensors"
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(self_check, "_key", lambda _, dtype: {"dtype": str(dtype)})
    monkeypatch.setattr(launch, "status", lambda: usable)
    assert available_backends()["triton"] == usable
    assert device.forwards == 0
    monkeypatch.setattr(kernels, *WRONG["a sign"])
    failure = reason(torch.bfloat16)
    assert available_backends()["triton"] == f"{usable}; but {failure}"
    in_a_new_process()
    assert available_backends()["triton"] == f"{usable}; but {failure}"
    for dtype in launch.DTYPES:
        reason(dtype)
    in_a_new_process()
    assert available_backends()["triton"].startswith("not usable: its self-check in ")
    monkeypatch.setenv(self_check.VARIABLE, "0")
    assert available_backends()["triton"] == usable
