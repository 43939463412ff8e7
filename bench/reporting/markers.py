"""Text between ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->`` in Markdown files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from bench.reporting.errors import UserError


def replace_blocks(text: str, blocks: Mapping[str, str], where: str) -> str:
    """Put each block between its markers; everything else stays as it is.

    Args:
        text: the document.
        blocks: new content by marker name; those without markers in the document are not used.
        where: what to call the document in errors.

    Raises:
        UserError: none of the blocks has markers, or a marker has no end.
    """
    opened = [name for name in blocks if f"<!-- bench:{name} -->" in text]
    if not opened:
        wanted = ", ".join(f"<!-- bench:{name} -->" for name in blocks)
        raise UserError(f"{where} has none of the markers {wanted}")
    for name in opened:
        start, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
        # A block ends before the next one of its name begins.
        block = f"{re.escape(start)}(?:(?!{re.escape(start)}).)*?{re.escape(end)}"
        # Backslashes in the content must not be read as group references.
        content = f"{start}\n{blocks[name]}\n{end}".replace("\\", r"\\")
        text, count = re.subn(block, content, text, flags=re.DOTALL)
        if count != text.count(start):
            raise UserError(f"{where}: {start} has no {end} after it")
    return text


def rewrite(path: Path, blocks: Mapping[str, str]) -> list[str]:
    """:func:`replace_blocks` on a file; returns the names of the blocks that it has."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    path.write_text(replace_blocks(text, blocks, str(path)), encoding="utf-8")
    return [name for name in blocks if f"<!-- bench:{name} -->" in text]
