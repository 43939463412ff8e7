"""Where files lie, and what to say where they do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")


class MissingData(FileNotFoundError):
    """A data set is not where it should be; the message says what to do."""


class BrokenData(ValueError):
    """A file says something else than its layout."""


@dataclass(frozen=True)
class Source:
    """A published data set."""

    name: str
    folder: str  # what unpacking makes
    get: str  # what to get, and from whom

    def find(self, root: Path, *needed: str) -> Path:
        """``root`` or the published folder in it, whichever has all files and folders ``needed``.

        Raises:
            MissingData: neither has.
        """
        places = (root, root / self.folder)
        for place in places:
            if all((place / each).exists() for each in needed):
                return place
        # Of the two the one that somebody began to fill.
        place = max(places, key=lambda place: sum((place / each).exists() for each in needed))
        absent = ", ".join(str(place / each) for each in needed if not (place / each).exists())
        raise MissingData(
            f"{self.name} is missing: there is no {absent}. Nothing is downloaded here. Get "
            f"{self.get}, and unpack it so that {root} or {root / self.folder} holds "
            f"{', '.join(needed)}"
        )


def lines(path: Path, fields: int, header: bool = False) -> Iterator[list[str]]:
    """The words of each line, of which there have to be ``fields``.

    Raises:
        BrokenData: a line has another number of words.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            words = line.split(maxsplit=fields - 1)
            if not words or (header and number == 1):
                continue
            if len(words) != fields:
                raise BrokenData(
                    f"{path}, line {number}: wanted {fields} words, got {line.rstrip()!r}"
                )
            words[-1] = words[-1].rstrip()
            yield words


def pictures_in(folder: Path) -> list[Path]:
    """The files of a folder that are pictures by their suffix, by name."""
    return sorted(each for each in folder.iterdir() if each.suffix.lower() in PICTURE_SUFFIXES)


def folders_in(folder: Path) -> list[Path]:
    """The folders of a folder, by name."""
    return sorted(each for each in folder.iterdir() if each.is_dir())
