"""CUB-200-2011, CARS196 and SOP: half of the classes to train on, the other half to retrieve.

The split is that of Song et al. ("Deep Metric Learning via Lifted Structured Feature Embedding",
CVPR 2016): the first 100 classes of CUB, the first 98 of CARS196, SOP as its lists say.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recipes.configuration import Data
from recipes.data.layout import BrokenData, MissingData, Source, folders_in, lines, pictures_in
from recipes.data.pictures import DataSet, Pictures, Retrieval, from_zero

CUB = Source(
    "CUB-200-2011",
    "CUB_200_2011",
    "CUB_200_2011.tgz from Caltech (Wah et al., 2011; "
    "https://www.vision.caltech.edu/datasets/cub_200_2011/)",
)
CARS = Source(
    "CARS196",
    "cars196",
    "car_ims.tgz and cars_annos.mat of the Stanford Cars (Krause et al., 2013; "
    "https://ai.stanford.edu/~jkrause/cars/car_dataset.html), or a copy of them with one folder "
    "for each class in train/ and test/",
)
SOP = Source(
    "Stanford Online Products",
    "Stanford_Online_Products",
    "Stanford_Online_Products.zip (Song et al., 2016; "
    "https://cvgl.stanford.edu/projects/lifted_struct/)",
)
CUB_TRAINED, CARS_TRAINED = 100, 98  # the last class to train on, from 1 on


def cub(data: Data, root: Path) -> DataSet:
    """``images.txt``, ``image_class_labels.txt`` and ``images/``."""
    root = CUB.find(root, "images.txt", "image_class_labels.txt", "images")
    label = {image: int(number) for image, number in lines(root / "image_class_labels.txt", 2)}
    records = []
    for image, name in lines(root / "images.txt", 2):
        if image not in label:
            raise BrokenData(f"{root / 'image_class_labels.txt'} has no class of image {image}")
        records.append((root / "images" / name, label[image]))
    return _halves(records, CUB_TRAINED)


def cars(data: Data, root: Path) -> DataSet:
    """``cars_annos.mat`` and ``car_ims/``, or ``train/`` and ``test/``, a folder for each class.

    Folders stand for classes in the order of their names, as the published numbers do; pictures of
    both parts are taken together, since the split is by class.
    """
    try:
        root = CARS.find(root, "cars_annos.mat", "car_ims")
    except MissingData as missing:
        try:
            root = CARS.find(root, "train", "test")
        except MissingData:
            raise missing from None
        folders = [each for part in ("train", "test") for each in folders_in(root / part)]
        names = sorted({each.name for each in folders})
        records = [
            (picture, 1 + names.index(folder.name))
            for folder in folders
            for picture in pictures_in(folder)
        ]
    else:
        records = [
            (root / str(each["relative_im_path"].item()), int(each["class"].item()))
            for each in _annotations(root / "cars_annos.mat")
        ]
    return _halves(records, CARS_TRAINED)


def sop(data: Data, root: Path) -> DataSet:
    """``Ebay_train.txt`` and ``Ebay_test.txt``, with paths from where they are."""
    root = SOP.find(root, "Ebay_train.txt", "Ebay_test.txt")

    def part(name: str) -> Pictures:
        listed = lines(root / f"Ebay_{name}.txt", 4, header=True)
        return Pictures.of([(root / path, int(label)) for _, label, _, path in listed])

    return DataSet(from_zero(part("train")), (Retrieval(part("test")),))


def _annotations(path: Path) -> Iterable[Any]:
    try:
        from scipy.io import loadmat  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} takes scipy: pip install scipy", name=error.name
        ) from error
    return loadmat(str(path))["annotations"].ravel()


def _halves(records: list[tuple[Path, int]], last_trained: int) -> DataSet:
    train = [each for each in records if each[1] <= last_trained]
    test = [each for each in records if each[1] > last_trained]
    if not train or not test:
        raise BrokenData(
            f"wanted classes up to {last_trained} to train on and others to retrieve, got "
            f"{len(train)} and {len(test)} pictures of these"
        )
    return DataSet(from_zero(Pictures.of(train)), (Retrieval(Pictures.of(test)),))
