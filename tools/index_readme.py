"""The README as a package index shows it, where links into a repository lead nowhere."""

from __future__ import annotations

import re

_CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\((?!https?://|#)([^()\s]+)\)")


def index_readme(text: str, repository: str | None, version: str) -> str:
    """Lead links to the repository's files of this version.

    Args:
        text: README.md.
        repository: the address of the repository; without one, links become their words, and
            pictures go.
        version: whose tag is ``v`` and this.
    """

    def absolute(found: re.Match[str]) -> str:
        picture, words, target = found.groups()
        if repository is None:
            return "" if picture else words
        kind = "raw" if picture else "blob"
        return f"{picture}[{words}]({repository}/{kind}/v{version}/{target})"

    parts = _CODE.split(text)
    parts[::2] = [_LINK.sub(absolute, part) for part in parts[::2]]
    return "".join(parts)
