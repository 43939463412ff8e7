"""What was found out about a machine once, in a file for later processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path


def digest(*texts: str) -> str:
    """A short name for texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]


def folder() -> Path:
    """Where the files are: in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base, "circle_kernels")


def recall(key: Mapping[str, str]) -> str | None:
    """What was remembered under a key; None where nothing was, or where it cannot be read."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        content = json.loads(_path(key).read_text(encoding="utf-8"))
        if content["key"] == key and isinstance(content["found"], str):
            return content["found"]
    return None


def remember(key: Mapping[str, str], found: str) -> None:
    """For :func:`recall`, where there can be a file: whole or not at all, whoever writes beside."""
    path = _path(key)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump({"key": key, "found": found}, file)
        os.replace(file.name, path)


def _path(key: Mapping[str, str]) -> Path:
    return folder() / f"{digest(json.dumps(key))}.json"
