"""Exceptions as results."""

from __future__ import annotations


def first_line(error: Exception) -> str:
    """An exception, as short as it stands in tables."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
