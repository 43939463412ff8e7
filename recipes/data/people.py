"""Market-1501 and MSMT17: persons to train on, and others to find again on other cameras."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from recipes.configuration import Data
from recipes.data.layout import BrokenData, Source, lines, pictures_in
from recipes.data.pictures import DataSet, Pictures, Reidentification, from_zero

MARKET = Source(
    "Market-1501",
    "Market-1501-v15.09.15",
    "Market-1501-v15.09.15.zip from its authors (Zheng et al., 2015; "
    "https://zheng-lab.cecs.anu.edu.au/Project/project_reid.html)",
)
MSMT17 = Source(
    "MSMT17",
    "MSMT17_V1",
    "MSMT17 from its authors, after signing their agreement (Wei et al., 2018; "
    "https://www.pkuvmc.com/dataset.html)",
)
JUNK = -1  # of Market-1501: detections to be passed over. Distractors have 0 and stay.
_MARKET_NAME = re.compile(r"([-\d]+)_c(\d)")
# Both releases: folders of the training and of the test pictures.
_MSMT_FOLDERS = (("train", "test"), ("mask_train_v2", "mask_test_v2"))


def market(data: Data, root: Path) -> DataSet:
    """``bounding_box_train/``, ``query/`` and ``bounding_box_test/``.

    Names of files begin with person and camera. Junk (person -1) is left out everywhere;
    distractors (person 0) stay in the gallery.
    """
    parts = ("bounding_box_train", "query", "bounding_box_test")
    root = MARKET.find(root, *parts)

    def part(name: str) -> tuple[Pictures, Tensor]:
        named = [(_MARKET_NAME.match(each.name), each) for each in pictures_in(root / name)]
        found = [
            (path, int(match[1]), int(match[2]))
            for match, path in named
            if match is not None and int(match[1]) != JUNK
        ]
        return _of_people(found, root / name)

    return _dataset(*map(part, parts))


def msmt17(data: Data, root: Path) -> DataSet:
    """Lists of paths and persons; the third part of a file's name is its camera.

    Trained on are ``list_train.txt`` and ``list_val.txt`` together, the 32,621 pictures that its
    authors count as the training set.
    """
    lists = ("list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt")
    place = MSMT17.find(root, *lists)
    # Says what is missing by the names of the first release.
    train_folder, test_folder = next(
        (both for both in _MSMT_FOLDERS if all((place / each).is_dir() for each in both)),
        _MSMT_FOLDERS[0],
    )
    place = MSMT17.find(root, *lists, train_folder, test_folder)

    def part(folder: str, *names: str) -> tuple[Pictures, Tensor]:
        found = []
        for name in names:
            for path, person in lines(place / name, 2):
                words = Path(path).name.split("_")
                if len(words) < 3 or not words[2].isdigit():
                    raise BrokenData(
                        f"{place / name}: wanted names whose third part is the camera, got {path!r}"
                    )
                found.append((place / folder / path, int(person), int(words[2])))
        return _of_people(found, place / names[0])

    train = part(train_folder, *lists[:2])
    return _dataset(train, part(test_folder, lists[2]), part(test_folder, lists[3]))


def _of_people(found: Sequence[tuple[Path, int, int]], where: Path) -> tuple[Pictures, Tensor]:
    """Pictures and their cameras, of a file, its person and its camera."""
    if not found:
        raise BrokenData(f"{where} must have pictures of persons, got none")
    paths, people, cameras = zip(*found, strict=True)
    return Pictures(paths, torch.tensor(people)), torch.tensor(cameras)


def _dataset(
    train: tuple[Pictures, Tensor], query: tuple[Pictures, Tensor], gallery: tuple[Pictures, Tensor]
) -> DataSet:
    task = Reidentification(query[0], gallery[0], (query[1], gallery[1]))
    return DataSet(from_zero(train[0]), (task,))
