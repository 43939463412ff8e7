"""The file of a stage: whole after every step, and taken up again by the next call."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.gpu.tasks import NO_TIME_LEFT, Rows, Task
from bench.reporting.results import Results, load, same_source, save, start_results

# What a row is of, whatever was found.
_KEY = ("kind", "rows", "dim", "regime", "dtype", "device", "variant", "test")


class Record:
    """Rows of one stage and the file that they are in.

    Rows that an earlier call left are kept if they come from the same code, versions and device:
    all else would be two runs in one table.
    """

    def __init__(self, path: Path, device: str, settings: dict[str, Any]) -> None:
        self.path = path
        self.results = start_results("gpu", device, settings)
        self._begin = time.monotonic()
        self._spent_before = 0.0
        if path.exists():
            before = load(path)
            if same_source(before, self.results):
                self.results = before
                self._spent_before = before.settings.get("seconds_spent", 0)
            else:
                print(f"{path} is of other code, versions or device, and is written anew")

    def is_done(self, task: Task) -> bool:
        """Whether every row of a task is there, with a result or the reason why it has none."""
        done = {_key(row) for row in self.results.rows if row["status"] != NO_TIME_LEFT}
        return all(_key(row) in done for row in task.rows_without_result(""))

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write rows in place of what was known of the same."""
        known: dict[Any, dict[str, Any]] = {_key(row): row for row in self.results.rows}
        known.update({_key(row): row for row in rows})
        self.results.rows = list(known.values())
        self.save()

    def save(self) -> None:
        """Write the file as it is."""
        spent = self._spent_before + time.monotonic() - self._begin
        self.results.settings["seconds_spent"] = round(spent)
        save(self.results, self.path)


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in _KEY)


def combined(folder: Path, names: Iterable[str]) -> Results | None:
    """Rows of all stages whose files are there, with what the last of them says of the machine.

    Settings that were found are none of them: their file is one that the package reads.
    """
    found = None
    rows: Rows = []
    spent = {}
    settings: dict[str, Any] = {}
    for name in names:
        path = folder / f"{name}.json"
        if path.exists() and name != "tune":
            found = load(path)
            rows += found.rows
            settings |= found.settings
            spent[name] = found.settings["seconds_spent"]
    if found is not None:
        found.rows = rows
        found.settings = {**settings, "seconds_spent": spent}
    return found
