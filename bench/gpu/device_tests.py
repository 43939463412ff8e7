"""The tests on a device: in several processes, within a time limit, as rows for a results file."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.places import ROOT
from bench.reporting.progress import progress_bar

_ROOT = ROOT
# Compiling is what takes the time, and takes one core. More processes would not fit their oracles
# into the memory of one device.
_MOST_PROCESSES = 8
# What a test that is running when time is up may still take.
_GRACE = 5.0

BAD_OUTCOMES = ("failed", "error")
NOT_RUN = "not run"


def run_tests(
    seconds: float,
    selection: Sequence[str] = ("-m", "gpu", "tests"),
    processes: int | None = None,
) -> list[dict[str, Any]]:
    """One row per test; what had not ended when time was up is among them, as not run.

    Args:
        seconds: until the last process is stopped, about.
        selection: pytest's arguments.
        processes: how many share the tests; None for one per core, within what memory allows.
    """
    if importlib.util.find_spec("pytest") is None:
        return [_row("pytest", "error", "pytest is not installed, so that no test was run")]
    count = processes or min(_MOST_PROCESSES, os.cpu_count() or 1)
    until = time.time() + seconds
    with tempfile.TemporaryDirectory() as folder:
        shares = [_Share(Path(folder), index, count, until, selection) for index in range(count)]
        try:
            _watch(shares, until + _GRACE)
        finally:
            for share in shares:
                share.end()
        rows = [row for share in shares for row in share.rows()]
    return rows or [_row("pytest", "error", "no test was found")]


def _watch(shares: list[_Share], deadline: float) -> None:
    done = 0
    total = 0
    with progress_bar(0, "test") as progress:
        progress.set_description("tests")
        while any(share.process.poll() is None for share in shares) and time.time() < deadline:
            time.sleep(0.2)
            events = [event for share in shares for event in share.events()]
            total = sum(len(event["collected"]) for event in events if "collected" in event)
            finished = sum("finished" in event for event in events)
            progress.total = total
            progress.update(finished - done)
            done = finished


class _Share:
    """One pytest process and what it has written so far."""

    def __init__(
        self, folder: Path, index: int, count: int, until: float, selection: Sequence[str]
    ) -> None:
        self.name = f"process {index + 1} of {count}"
        self.records = folder / f"{index}.jsonl"
        self.log = folder / f"{index}.log"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += ["-p", "bench.gpu.pytest_records", "--records", str(self.records)]
        command += ["--share", f"{index}/{count}", "--until", str(until)]
        command += ["--continue-on-collection-errors", *selection]
        threads = max(1, (os.cpu_count() or 1) // count)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=_ROOT,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.in_time = True

    def events(self) -> list[dict[str, Any]]:
        """Everything recorded; a line that is being written is left for the next time."""
        if not self.records.exists():
            return []
        text = self.records.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines(keepends=True) if line[-1] == "\n"]

    def end(self) -> None:
        """Stop the process where it still runs."""
        if self.process.poll() is None:
            self.in_time = False
            self.process.kill()
        self.process.wait()

    def rows(self) -> list[dict[str, Any]]:
        """A row for each test of this share."""
        rows: dict[str, dict[str, Any]] = {}
        waiting: list[str] = []
        running = None
        for event in self.events():
            waiting += event.get("collected", [])
            running = event.get("started", running)
            if event.get("finished") == running:
                running = None
            name = event.get("test")
            # What fails after a test that passed, in a fixture, is what is told of it.
            if name is not None and rows.get(name, {}).get("outcome") not in BAD_OUTCOMES:
                rows[name] = _row(name, event["outcome"], event["message"], event["seconds"])
        ended = f"pytest ended with code {self.process.returncode}"
        # pytest's own codes: 0 and 1 for its tests' results, 2 for being stopped, 5 for no tests.
        crashed = self.in_time and self.process.returncode not in (0, 1, 2, 5)
        if running is not None and not self.in_time:
            rows[running] = _row(running, NOT_RUN, "was running when time was up")
        elif running is not None:
            rows[running] = _row(running, "error", f"{ended} during this test")
        elif crashed or (self.in_time and not self.events()):
            last = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            rows[self.name] = _row(self.name, "error", f"{ended}: {last[-1] if last else ''}")
        for name in waiting:
            reason = ended if crashed else "no time left"
            rows.setdefault(name, _row(name, NOT_RUN, reason))
        return list(rows.values())


def _row(name: str, outcome: str, message: str = "", seconds: float = 0.0) -> dict[str, Any]:
    row = {"kind": "test", "test": name, "outcome": outcome, "seconds": seconds}
    return {**row, "message": message} if message else row
