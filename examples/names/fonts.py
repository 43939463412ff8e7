"""Which of the installed fonts have the characters of a text."""

from __future__ import annotations

import unicodedata
from functools import cache

import matplotlib
from matplotlib.font_manager import FontEntry, fontManager
from matplotlib.ft2font import FT2Font

INSTALL = "Debian's packages fonts-noto-core and fonts-noto-cjk have them (Noto Sans)"
# Matplotlib puts letters together from 3.11 on. What earlier ones draw right:
UNSHAPED = ("LATIN", "CYRILLIC", "GREEK", "GEORGIAN", "ARMENIAN", "CJK", "KATAKANA", "HANGUL")
SHAPES = tuple(map(int, matplotlib.__version__.split(".")[:2])) >= (3, 11)


def script_of(text: str) -> str:
    """The script of the first letter: the first word of its Unicode name, as "CYRILLIC".

    Empty without a letter.
    """
    for letter in unicodedata.normalize("NFC", text):
        if letter.isalpha():
            return unicodedata.name(letter, "").split(" ")[0]
    return ""


def families(text: str) -> list[str]:
    """Fonts to draw the text with; none where one lacks or matplotlib would draw it wrong."""
    if not SHAPES and script_of(text) not in UNSHAPED:
        return []
    wanted = {ord(character) for character in text if not character.isspace()}
    used = []
    for entry in _candidates():
        if found := wanted & _characters(entry.fname):
            used.append(entry.name)
            wanted -= found
        if not wanted:
            return used
    return []


@cache
def _candidates() -> list[FontEntry]:
    """Noto Sans, then those of one script, then matplotlib's own."""
    regular = {
        entry.name: entry
        for entry in fontManager.ttflist
        if (entry.style, entry.weight) == ("normal", 400)
    }
    scripts = sorted(name for name in regular if name.startswith("Noto Sans "))
    # The fonts for Chinese, Japanese and Korean have the same characters in different shapes.
    scripts = [name for name in scripts if "CJK" not in name or name == "Noto Sans CJK SC"]
    order = ["Noto Sans", *scripts, "DejaVu Sans"]
    return [regular[name] for name in order if name in regular]


@cache
def _characters(file: str) -> frozenset[int]:
    return frozenset(FT2Font(file).get_charmap())
