"""Faces: identities to train on, pairs and templates to verify."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from recipes.configuration import Data
from recipes.data.layout import BrokenData, MissingData, Source, folders_in, lines, pictures_in
from recipes.data.pair_files import read_pairs
from recipes.data.pictures import DataSet, Pictures, Task, Templates, from_zero
from recipes.data.records import read_records

_SETS = "https://github.com/deepinsight/insightface/tree/master/recognition/_datasets_"
TRAIN = Source(
    "The set of faces to train on",
    "faces_emore",
    f"faces of 112 x 112 pixels from their authors (such as MS1M-ArcFace: {_SETS}): train.rec and "
    "train.idx, or train/ with one folder for each identity",
)
IJBC = Source(
    "IJB-C",
    "IJBC",
    "IJB-C from NIST, after signing its agreement (Maze et al., 2018), with the lists in meta/ and "
    "the cropped faces in loose_crop/ that go with it (https://github.com/deepinsight/insightface/"
    "tree/master/recognition/_evaluation_/ijb); data.templates=[] leaves it out",
)


def faces(data: Data, root: Path) -> DataSet:
    """``train.rec`` or ``train/``; ``NAME.bin`` for each of ``data.pairs``; ``data.templates``."""
    try:
        place = TRAIN.find(root, "train.rec", "train.idx")
        train = read_records(place / "train.rec")
    except MissingData as missing:
        try:
            place = TRAIN.find(root, "train")
        except MissingData:
            raise missing from None
        train = Pictures.of(
            [
                (picture, number)
                for number, folder in enumerate(folders_in(place / "train"))
                for picture in pictures_in(folder)
            ]
        )
        if not len(train):
            raise BrokenData(f"{place / 'train'} must have folders with pictures") from None
    tasks: list[Task] = []
    for name in data.pairs:
        source = Source(
            f"The verification set {name}",
            "faces_emore",
            f"{name}.bin, which comes with the sets to train on ({_SETS}); data.pairs names what "
            "is evaluated",
        )
        tasks.append(read_pairs(source.find(root, f"{name}.bin") / f"{name}.bin"))
    tasks += [TEMPLATES[name](root) for name in data.templates]
    return DataSet(from_zero(train), tuple(tasks))


def ijbc(root: Path) -> Templates:
    """IJB-C, 1:1: lists of pictures with template and medium, of pairs, and of landmarks."""
    lists = (
        "meta/ijbc_face_tid_mid.txt",
        "meta/ijbc_template_pair_label.txt",
        "meta/ijbc_name_5pts_score.txt",
    )
    root = IJBC.find(root, *lists, "loose_crop")
    of_pictures, of_pairs, of_landmarks = (root / each for each in lists)
    names, templates, media = zip(*lines(of_pictures, 3), strict=True)
    points = {
        name: [float(each) for each in numbers.split()[:10]]
        for name, numbers in lines(of_landmarks, 2)
    }
    for name in names:
        if len(points.get(name, ())) != 10:
            raise BrokenData(f"{of_landmarks} must have five points of {name}")
    known, labels = torch.unique(_numbers(templates), return_inverse=True)
    first, second, same = (_numbers(each) for each in zip(*lines(of_pairs, 3), strict=True))
    pairs = torch.stack([first, second], dim=1)
    places = torch.searchsorted(known, pairs).clamp_max(len(known) - 1)
    unknown = (known[places] != pairs).any(1).nonzero()
    if len(unknown):
        raise BrokenData(
            f"{of_pairs} compares templates {pairs[int(unknown[0])].tolist()}, of which "
            f"{of_pictures} has no picture"
        )
    pictures = Pictures(
        [root / "loose_crop" / name for name in names],
        labels,
        landmarks=torch.tensor([points[name] for name in names]).view(-1, 5, 2),
    )
    return Templates("ijbc", pictures, _numbers(media), places, same == 1)


TEMPLATES: dict[str, Callable[[Path], Templates]] = {"ijbc": ijbc}


def _numbers(words: tuple[str, ...]) -> torch.Tensor:
    return torch.tensor([int(each) for each in words])
