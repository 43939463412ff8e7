"""Fixtures of the tests of ``python -m bench gpu``."""

from __future__ import annotations

from tests.bench.tune.conftest import own_table

__all__ = ["own_table"]
