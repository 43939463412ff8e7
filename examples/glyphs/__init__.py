"""What the glyph examples share: letters, a network, its training, evaluation and their display."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def packages_of_the_examples() -> Iterator[None]:
    """Ends the program with what to install where an import inside it finds no such package."""
    try:
        yield
    except ModuleNotFoundError as error:
        sys.exit(
            f"The package {error.name!r} is missing. This example needs: "
            "pip install 'circle-kernels[examples]' (in a clone: pip install '.[examples]')"
        )
