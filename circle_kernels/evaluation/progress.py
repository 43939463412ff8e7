"""A bar for work that takes long, where somebody asks for one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

Advance = Callable[[int], object]


@contextlib.contextmanager
def progress_bar(total: int, unit: str, shown: bool) -> Iterator[Advance]:
    """What to call with the number of units that are done, and a bar by tqdm if ``shown``.

    Raises:
        ImportError: there is no tqdm.
    """
    if not shown:
        yield lambda done: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm (pip install tqdm)") from error
    with tqdm(total=total, unit=unit, unit_scale=True) as bar:
        yield bar.update
