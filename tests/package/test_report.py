"""``python -m circle_kernels``: what it tells, and that it tells what is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata

import pytest
import torch

from circle_kernels import __main__ as report
from circle_kernels import __version__, available_backends
from circle_kernels.backends import choice, cpu, tiled


def lines(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What was printed, by what each line is about."""
    printed = capsys.readouterr().out.splitlines()
    return {name.strip(): value for name, _, value in (line.partition(": ") for line in printed)}


def test_report_of_a_process_of_its_own() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "circle_kernels"], capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert f"circle_kernels: {__version__} in " in process.stdout
    assert f"torch: {torch.__version__}, " in process.stdout
    assert re.search(r"^python: 3\.\d+", process.stdout, re.M)
    assert "unknown" not in process.stdout
    assert "tiled on cpu: ok, " in process.stdout


def test_every_fact_and_every_usable_backend_has_its_line(capsys, monkeypatch) -> None:
    monkeypatch.setenv("CIRCLE_KERNELS_SELF_CHECK", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HOME_OF_SECRETS", "not shown")
    assert report.main() == 0
    told = lines(capsys)
    assert set(report._FACTS) <= told.keys()
    assert "CIRCLE_KERNELS_SELF_CHECK=1, OMP_NUM_THREADS=1" in told["environment variables"]
    assert "SECRETS" not in told["environment variables"]
    for name, status in available_backends().items():
        assert told[name] == status
    for name in ("tiled", "reference"):
        of_loss, of_gradient = map(
            float, told[f"{name} on cpu"].removeprefix("ok, ").split(" and ")
        )
        assert 0 <= of_loss < 1e-6
        assert 0 < of_gradient < 1e-5


def test_instruction_set_that_there_is_not_is_told(capsys, monkeypatch) -> None:
    """Every loss on the CPU raises with it."""
    if not cpu.supported_levels():
        pytest.skip("CIRCLE_KERNELS_NO_CPU_KERNEL is set")
    monkeypatch.setenv(cpu.LEVEL_VARIABLE, "nonsense")
    assert report.main() == 1
    assert lines(capsys)["auto on cpu"].startswith("WRONG, RuntimeError: ")


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_backend_with_wrong_gradients_is_told(capsys, monkeypatch, factor: float) -> None:
    right = tiled.backward

    def backward(*arguments):
        return tuple(None if each is None else each * factor for each in right(*arguments))

    monkeypatch.setattr(tiled, "backward", backward)
    assert report.main() == 1
    told = lines(capsys)
    assert told["tiled on cpu"].startswith("WRONG, ")
    assert told["reference on cpu"].startswith("ok, ")


def test_backend_with_wrong_sums_is_told(capsys, monkeypatch) -> None:
    right = tiled.forward

    def forward(problem):
        lse_pos, lse_neg, saved = right(problem)
        return lse_pos, lse_neg + 0.01, saved

    monkeypatch.setattr(tiled, "forward", forward)
    assert report.main() == 1
    assert lines(capsys)["tiled on cpu"].startswith("WRONG, ")


def test_backend_that_raises_is_told_and_others_are_checked(capsys, monkeypatch) -> None:
    def forward(problem):
        raise RuntimeError("no such tile")

    monkeypatch.setattr(tiled, "forward", forward)
    assert report.main() == 1
    told = lines(capsys)
    assert told["tiled on cpu"] == "WRONG, RuntimeError: no such tile"
    assert told["reference on cpu"].startswith("ok, ")


def test_backend_whose_package_is_broken_is_told(capsys, monkeypatch) -> None:
    def load(name: str):
        raise ImportError("libtriton.so: cannot open shared object file")

    monkeypatch.setattr(choice, "_loaded", {})
    monkeypatch.setattr(choice, "_load", load)
    assert report.main() == 1
    assert lines(capsys)["backends"].startswith("ImportError: libtriton.so")


def test_what_is_missing_is_no_error(capsys, monkeypatch) -> None:
    def version(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    def fails() -> str:
        raise OSError("no such file")

    monkeypatch.setattr(report.metadata, "version", version)
    monkeypatch.setattr(cpu, "_extension", lambda: "it was not built")
    monkeypatch.setitem(report._FACTS, "processor", fails)
    assert report.main() == 0
    told = lines(capsys)
    assert told["triton"].startswith("not ")
    assert told["numpy"] == "not installed"
    assert told["processor"] == "unknown (OSError: no such file)"
    assert told["cpu"] == "not usable: it was not built"
    assert told["instruction set of the C++ kernel"] == "not usable: it was not built"
    assert "cpu on cpu" not in told
    assert told["tiled on cpu"].startswith("ok, ")
