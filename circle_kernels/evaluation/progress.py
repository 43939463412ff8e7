"""A bar for work that takes long, where somebody asks for one."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator

from circle_kernels.options import check_flag

Advance = Callable[[int], object]


def check_progress(progress: bool) -> None:
    """Require a flag, and tqdm if it is set.

    Raises:
        TypeError: another value.
        ImportError: there is no tqdm.
    """
    check_flag("progress", progress)
    if progress and importlib.util.find_spec("tqdm") is None:
        raise ImportError("progress=True needs tqdm (pip install tqdm)")


@contextlib.contextmanager
def progress_bar(total: int, unit: str, shown: bool) -> Iterator[Advance]:
    """What to call with the number of units that are done, and a bar by tqdm if ``shown``."""
    if not shown:
        yield lambda done: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, unit=unit, unit_scale=True) as bar:
        yield bar.update
