"""The tests on a device: in several processes, within a time limit, as rows for a results file."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu.tasks import Rows
from bench.places import ROOT
from bench.reporting.progress import progress_bar

_ROOT = ROOT
# Compiling is what takes the time, and takes one core. More processes would not fit their oracles
# into the memory of one device.
_MOST_PROCESSES = 8
# What a test that is running when time is up may still take.
_GRACE = 5.0
# Seconds after which a test hangs: one that compiles for a minute is not unheard of.
_LONGEST_TEST = 200.0
# Processes that a share may take: where every test breaks the device, the rest will, too.
_MOST_ATTEMPTS = 20
# Seconds from one look at all rows to the next.
_SAVED_EVERY = 10.0
# pytest's: 0 and 1 for its tests' results, 2 for being stopped, 5 for no tests.
_OWN_CODES = (0, 1, 2, 5)
# Where a test has left the device unusable for its process: none of pytest's.
UNUSABLE = 70

BAD_OUTCOMES = ("failed", "error")
NOT_RUN = "not run"


def run_tests(
    seconds: float,
    selection: Sequence[str] = ("-m", "gpu", "tests"),
    processes: int | None = None,
    done: Sequence[str] = (),
) -> Iterator[Rows]:
    """Now and then a row for every test, as far as is known; what has not ended is "not run".

    A test that takes its process or its device with it, or takes too long, is an error, and the
    others go on in another process.

    Args:
        seconds: until the last process is stopped, about.
        selection: pytest's arguments.
        processes: how many share the tests; None for one per core, within what memory allows.
        done: tests that are left out.
    """
    if importlib.util.find_spec("pytest") is None:
        yield [row_of_test("pytest", "error", "pytest is not installed, so that no test was run")]
        return
    count = processes or min(_MOST_PROCESSES, os.cpu_count() or 1)
    until = time.time() + seconds
    with tempfile.TemporaryDirectory() as folder:
        run = _Run(Path(folder), count, until, selection, done)
        shares = [_Share(run, index) for index in range(count)]
        try:
            for _ in _watch(shares, until + _GRACE):
                yield [row for share in shares for row in share.rows()]
        finally:
            for share in shares:
                share.end("was running when time was up", NOT_RUN)
        rows = [row for share in shares for row in share.rows()]
    yield rows or ([] if done else [row_of_test("pytest", "error", "no test was found")])


def _watch(shares: list[_Share], deadline: float) -> Iterator[None]:
    """Until all is done or time is up; comes back every few seconds."""
    done = 0
    saved = time.time()
    with progress_bar(0, "test") as progress:
        progress.set_description("tests")
        while time.time() < deadline:
            # Every share, for each may have to be begun again.
            running = [share.goes_on() for share in shares]
            if not any(running):
                return
            time.sleep(0.2)
            events = [event for share in shares for event in share.events()]
            progress.total = sum(len(share.collected) for share in shares)
            finished = sum("finished" in event for event in events)
            progress.update(finished - done)
            done = finished
            if time.time() > saved + _SAVED_EVERY:
                saved = time.time()
                yield


@dataclass(frozen=True)
class _Run:
    """What all processes are told."""

    folder: Path
    count: int
    until: float
    selection: Sequence[str]
    done: Sequence[str]


class _Share:
    """A share of the tests: one pytest process after the other, and what they have written."""

    def __init__(self, run: _Run, index: int) -> None:
        self.name = f"process {index + 1} of {run.count}"
        self._run, self._index = run, index
        self._past: list[dict[str, Any]] = []  # events of processes that have ended
        self._crashed = ""  # how the last one ended, if not by itself
        self._attempts = 0
        self._begin()

    def _begin(self, only: Sequence[str] | None = None) -> None:
        run = self._run
        self._attempts += 1
        name = f"{self._index}-{self._attempts}"
        self._records, self._log = run.folder / f"{name}.jsonl", run.folder / f"{name}.log"
        told = run.folder / f"{name}.json"
        told.write_text(json.dumps({"done": list(run.done), "only": only}), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += ["-p", "bench.gpu.pytest_records", "--records", str(self._records)]
        command += ["--share", f"{self._index}/{run.count}", "--until", str(run.until)]
        command += ["--choice", str(told), "--continue-on-collection-errors", *run.selection]
        threads = max(1, (os.cpu_count() or 1) // run.count)
        # Where the C++ kernel is not built, nothing on a device needs it.
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        environment["CIRCLE_KERNELS_NO_CPU_KERNEL"] = "1"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command,
                cwd=_ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def events(self) -> list[dict[str, Any]]:
        """Everything recorded; a line that is being written is left for the next time."""
        if not self._records.exists():
            return self._past
        text = self._records.read_text(encoding="utf-8")
        lines = text.splitlines(keepends=True)
        return self._past + [json.loads(line) for line in lines if line[-1] == "\n"]

    @property
    def collected(self) -> list[str]:
        """All tests of this share."""
        return next((event["collected"] for event in self.events() if "collected" in event), [])

    def _running(self) -> dict[str, Any] | None:
        """The start of the test that has not finished."""
        started = None
        for event in self.events():
            if "started" in event:
                started = event
            elif "ended" in event or (started and event.get("finished") == started["started"]):
                started = None
        return started

    def goes_on(self) -> bool:
        """Whether there is more to come; where a process ended with tests left, another begins."""
        code, running = self._process.poll(), self._running()
        if code is None:
            if running is None or time.time() < running["time"] + _LONGEST_TEST:
                return True
            self.end(f"took longer than {_LONGEST_TEST:.0f} s", "error")
        elif code in _OWN_CODES or self._crashed:
            return False
        else:
            self._crashed = f"pytest ended with code {code}"
            self.end(f"{self._crashed} during this test", "error")
            if running is None and code != UNUSABLE:
                last = self._log.read_text(encoding="utf-8", errors="replace").strip()
                said = f"{self._crashed}: {last.splitlines()[-1] if last else ''}"
                event = {"test": self.name, "outcome": "error", "message": said, "seconds": 0.0}
                self._past.append(event)
        left = [row["test"] for row in self.rows() if row["outcome"] == NOT_RUN]
        if not left or self._attempts > _MOST_ATTEMPTS or time.time() > self._run.until:
            return False
        self._crashed = ""
        self._begin(left)
        return True

    def end(self, reason: str, outcome: str) -> None:
        """Stop the process where it still runs; ``reason`` is what is told of its last test."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._past = [*self.events(), {"ended": reason, "outcome": outcome}]
        self._records = self._run.folder / "none"

    def rows(self) -> Rows:
        """A row for each test of this share."""
        rows: dict[str, dict[str, Any]] = {}
        running = None
        for event in self.events():
            running = event.get("started", running)
            if event.get("finished") == running:
                running = None
            if "ended" in event and running is not None:
                rows[running] = row_of_test(running, event["outcome"], event["ended"])
                running = None
            name = event.get("test")
            # What fails after a test that passed, in a fixture, is what is told of it.
            if name is not None and rows.get(name, {}).get("outcome") not in BAD_OUTCOMES:
                rows[name] = row_of_test(name, event["outcome"], event["message"], event["seconds"])
        for name in self.collected:
            rows.setdefault(name, row_of_test(name, NOT_RUN, self._crashed or "no time left"))
        return list(rows.values())


def row_of_test(name: str, outcome: str, message: str = "", seconds: float = 0.0) -> dict[str, Any]:
    row = {"kind": "test", "test": name, "outcome": outcome, "seconds": seconds}
    return {**row, "message": message} if message else row
