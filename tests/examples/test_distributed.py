"""The distributed glyph example, started as its users start it, agrees with one process."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tests.examples.programs import EXAMPLES  # isort: skip

import distributed_glyphs
from glyphs.training import Comparison, Step

PROGRAM = str(EXAMPLES / "distributed_glyphs.py")
SMALL = ("--steps", "3", "--classes-per-batch", "8", "--pictures-per-class", "2")
SECONDS = 300  # on a busy machine; alone it takes about fifteen


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command, *SMALL],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Standalone: at a free port, since other tests may be running.
    starter = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    return run(*starter, PROGRAM, *arguments)


def test_two_processes_train_as_one_does() -> None:
    done = torchrun()
    assert done.returncode == 0, done.stderr
    assert "group of 2" in done.stdout
    assert "1 to 1" in done.stdout
    assert done.stdout.count("Both runs agree to") == 1


def test_without_the_group_the_runs_differ_and_the_program_fails() -> None:
    done = torchrun("--without-group")
    assert done.returncode != 0
    assert "The runs differ by" in done.stderr
    assert "Both runs agree" not in done.stdout


def test_plain_python_trains_one_process_and_says_how_to_start_two() -> None:
    done = run(PROGRAM)
    assert done.returncode == 0, done.stderr
    assert "torchrun --nproc-per-node 2" in done.stdout
    assert "Both runs agree to" in done.stdout


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_parts_are_all_of_the_batch_and_differ(processes: int) -> None:
    sizes = distributed_glyphs.sizes_of_parts(256, processes)
    assert sum(sizes) == 256
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == processes


def test_a_difference_that_is_no_number_is_no_agreement() -> None:
    same = Comparison(1.0, 0.0, loss_difference=0.0, gradient_difference=0.0)
    broken = Comparison(1.0, 0.0, loss_difference=0.0, gradient_difference=torch.nan)
    steps = [Step(1.0, 0.0, 0.0, each) for each in (same, broken, same)]
    assert not distributed_glyphs.largest_difference(steps) <= 1.0
