"""A progress bar, and plain lines where tqdm is not installed."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any


class ProgressLines:
    """What is being done, one line on standard error for each thing."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def set_description(self, text: str) -> None:
        place = f"[{self.done + 1}/{self.total}] " if self.total else ""
        print(f"{place}{text}", file=sys.stderr, flush=True)

    def update(self, done: int = 1) -> None:
        self.done += done


def progress_bar(total: int, unit: str) -> Any:
    """tqdm's bar, or an object with its ``set_description`` and ``update``; a context manager."""
    try:
        from tqdm import tqdm
    except ImportError:
        return ProgressLines(total)
    return tqdm(total=total, unit=unit)
