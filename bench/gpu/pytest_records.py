"""A pytest plugin that ``python -m bench gpu`` runs its tests with.

It writes what happens as lines of JSON while it happens, so that what was known is kept where a
test hangs or takes its process with it; it shares the tests between processes, which pytest alone
does not; it stops in time, and where a test has left the device unusable for the process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.gpu.device_tests import UNUSABLE

# What is new with every change to a kernel, and takes a device: first, while there is time.
_FIRST = "test_gpu.py"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where to write, which share to run, and until when."""
    group = parser.getgroup("circle_kernels")
    group.addoption("--records", type=Path, required=True, help="file for lines of JSON")
    group.addoption("--share", default="0/1", help="INDEX/COUNT: every COUNTth test from INDEX on")
    group.addoption("--choice", type=Path, help="JSON: tests that are done, or all that are left")
    group.addoption("--until", type=float, default=float("inf"), help="start no test after time()")


def pytest_configure(config: pytest.Config) -> None:
    """Record from here on."""
    config.pluginmanager.register(Recorder(config.option), "circle_kernels_records")


class Recorder:
    """Writes one line per event: the tests there are, each test's start, and how it ended."""

    def __init__(self, options: Any) -> None:
        self.file = options.records.open("w", encoding="utf-8", buffering=1)
        self.index, self.count = map(int, options.share.split("/"))
        self.until = options.until
        choice = json.loads(options.choice.read_text("utf-8")) if options.choice else {}
        self.done, self.only = set(choice.get("done", ())), choice.get("only")

    def write(self, **event: Any) -> None:
        self.file.write(json.dumps(event) + "\n")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Keep this process's share."""
        items.sort(key=lambda item: item.path.name != _FIRST)
        if self.only is None:
            own = [item for item in items if item.nodeid not in self.done][self.index :: self.count]
        else:
            own = [item for item in items if item.nodeid in self.only]
        config.hook.pytest_deselected(items=[item for item in items if item not in own])
        items[:] = own
        self.write(collected=[item.nodeid for item in own])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be imported, or that is skipped; every process sees it."""
        if report.outcome != "passed" and self.index == 0:
            self._write_outcome(report)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.write(started=nodeid, time=time.time())

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The call, and before and after it what did not pass."""
        if report.when == "call" or report.outcome != "passed":
            self._write_outcome(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.write(finished=nodeid)
        if not _is_usable():
            # In another process the tests after this one may still pass.
            os._exit(UNUSABLE)

    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        """Before each test: whether there is time for it."""
        if time.time() > self.until:
            item.session.shouldstop = "no time left"
            raise item.session.Interrupted(item.session.shouldstop)

    def _write_outcome(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        self.write(
            test=report.nodeid,
            outcome=report.outcome,
            seconds=round(getattr(report, "duration", 0.0), 3),
            message=_reason(report),
        )


def _is_usable() -> bool:
    """Whether what this process has of a device still works: some errors stay until it ends."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a test did not pass, short."""
    if report.outcome == "passed":
        return ""
    if isinstance(report.longrepr, tuple):  # a skipped one's file, line and reason
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        return "\n".join(crash.message.strip().splitlines()[:3])[:500]
    return str(report.longrepr).strip().splitlines()[-1].removeprefix("E").strip()[:500]
