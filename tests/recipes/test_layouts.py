"""Loaders read what was published: labels, splits, cameras, and what is left out."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tests.recipes.programs  # noqa: F401  # isort: skip

from recipes import data
from recipes.configuration import Data, read
from recipes.data.layout import BrokenData, MissingData
from recipes.data.pictures import DataSet, Reidentification, Retrieval, Templates, Verification
from recipes.data.records import read_records
from tests.recipes.drawn import (
    DRAWN,
    MAGIC,
    cars_in_folders,
    encoded,
    faces_in_records,
    pair_file,
    write,
    write_lines,
)


def load(config: str, root: Path) -> DataSet:
    return data.load(read(config).data, root)


def retrieved(dataset: DataSet) -> list[int]:
    (task,) = dataset.tasks
    assert isinstance(task, Retrieval)
    return task.pictures.labels.tolist()


def test_cub_trains_on_the_first_hundred_classes(data_of: Callable[[str], Path]) -> None:
    dataset = load("cub", data_of("cub"))
    assert dataset.train.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6 + [3] * 6
    assert retrieved(dataset) == [101] * 6 + [102] * 6 + [200] * 6
    assert dataset.classes == 4
    assert dataset.train.files[6].name == "Bird_0.jpg"
    assert dataset.train.open(0).mode == "RGB"


def test_published_folder_may_be_given_itself(data_of: Callable[[str], Path]) -> None:
    inside = load("cub", data_of("cub") / "CUB_200_2011")
    assert inside.train.files == load("cub", data_of("cub")).train.files


def test_cars_trains_on_the_first_98_classes(data_of: Callable[[str], Path]) -> None:
    dataset = load("cars", data_of("cars"))
    assert dataset.train.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert retrieved(dataset) == [99] * 6 + [196] * 6
    assert dataset.train.files[0].is_file()


def test_cars_in_folders_are_the_classes_in_order(tmp_path: Path) -> None:
    cars_in_folders(tmp_path)
    dataset = load("cars", tmp_path)
    assert dataset.classes == 98
    counts = dataset.train.labels.bincount().tolist()
    assert counts == [4, *[2] * 96, 4]
    assert sorted(retrieved(dataset)) == [99] * 4 + [100] * 4


def test_sop_is_split_as_its_lists_say(data_of: Callable[[str], Path]) -> None:
    dataset = load("sop", data_of("sop"))
    assert dataset.train.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert retrieved(dataset) == [11319] * 6 + [11320] * 6


def test_market_leaves_out_junk_and_keeps_distractors(data_of: Callable[[str], Path]) -> None:
    dataset = load("market", data_of("market"))
    (task,) = dataset.tasks
    assert isinstance(task, Reidentification)
    assert dataset.train.labels.unique().tolist() == [0, 1, 2]
    assert task.query.labels.tolist() == [1, 3, 4]
    assert task.cameras[0].tolist() == [1, 1, 1]
    gallery = task.gallery.labels.tolist()
    assert gallery == [0, 0, 1, 1, 1, 3, 3, 3, 4, 4, 4]
    assert task.cameras[1].tolist() == [2, 2, *[1, 2, 3] * 3]


def test_msmt17_has_persons_of_lists_and_cameras_of_names(data_of: Callable[[str], Path]) -> None:
    dataset = load("msmt17", data_of("msmt17"))
    (task,) = dataset.tasks
    assert isinstance(task, Reidentification)
    assert dataset.train.labels.tolist() == [0] * 5 + [1] * 5 + [0] * 2 + [1] * 2
    assert task.query.labels.tolist() == [0, 1, 2]
    assert task.cameras[0].tolist() == [1, 1, 1]
    assert task.cameras[1].tolist() == [2, 3, 4] * 3
    assert task.gallery.files[0].is_file()


def test_second_release_of_msmt17_has_other_folders(
    data_of: Callable[[str], Path], tmp_path: Path
) -> None:
    for name in ("list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt"):
        write_lines(tmp_path / name, ["0000/0000_000_01_x.jpg 0"])
    for folder in ("mask_train_v2", "mask_test_v2"):
        write(tmp_path / folder / "0000" / "0000_000_01_x.jpg", 0, 0)
    assert load("msmt17", tmp_path).train.files[0].is_file()


def test_faces_are_folders_pairs_and_templates(data_of: Callable[[str], Path]) -> None:
    dataset = load("faces_circle", data_of("faces_circle"))
    assert dataset.train.labels.bincount().tolist() == [6, 6, 6, 6]
    lfw, cfp, ijbc = dataset.tasks
    assert isinstance(lfw, Verification)
    assert isinstance(cfp, Verification)
    assert (lfw.name, cfp.name, len(lfw.pictures), len(lfw.same)) == ("lfw", "cfp_fp", 40, 20)
    assert isinstance(ijbc, Templates)
    assert ijbc.pictures.labels.tolist() == [0, 1, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5]
    assert ijbc.media.tolist() == [100, 101, 102, 103, 103, 104, 104, 104, 105, 105, 105, 106]
    assert ijbc.pairs.tolist() == [[first, 3 + second] for first in range(3) for second in range(3)]
    assert ijbc.same.tolist() == [True, False, False, False, True, False, False, False, True]
    assert ijbc.pictures.landmarks.shape == (12, 5, 2)
    assert ijbc.pictures.landmarks[0, 1].tolist() == [22, 14]


@pytest.mark.parametrize("first", [1, 700, 3000], ids=["one", "some", "many"])
def test_faces_in_a_record_file_are_those_of_folders(
    first: int, data_of: Callable[[str], Path], tmp_path: Path
) -> None:
    # A picture that has the number that records begin with, at a whole word and elsewhere.
    magic = struct.pack("<I", MAGIC)
    extra = bytes(-len(encoded(0, 0)) % 4) + 2 * magic + first * b"x" + magic
    faces_in_records(tmp_path, extra)
    pair_file(tmp_path / "lfw.bin")
    settings = Data(layout="faces", pairs=["lfw"])
    dataset, folders = data.load(settings, tmp_path), load("faces_circle", data_of("faces_circle"))
    assert torch.equal(dataset.train.labels, folders.train.labels)
    contents = [each.read_bytes() for each in folders.train.files]
    assert list(dataset.train.files) == [contents[0] + extra, *contents[1:]]
    assert list(dataset.train.files[1:3]) == contents[1:3]
    assert len(dataset.train.files) == 24


def test_record_file_without_a_first_record_of_numbers_is_read(tmp_path: Path) -> None:
    faces_in_records(tmp_path)
    index = (tmp_path / "train.idx").read_text("utf-8").splitlines()
    write_lines(tmp_path / "train.idx", index[1:25])
    assert len(read_records(tmp_path / "train.rec")) == 24


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:40], "has no record at byte 40"),
        (lambda content: b"\0" * 4 + content[4:], "has no record at byte 0"),
        (lambda content: content[:100], "ends within the record at byte 40"),
        (lambda content: content[:4] + struct.pack("<I", 8) + content[8:], "too few for a label"),
        (lambda content: content[:8] + b"\xff" + content[9:], "with 255 labels"),
    ],
    ids=["cut off", "another number", "cut in a record", "short", "labels"],
)
def test_broken_record_file_says_where(
    change: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    faces_in_records(tmp_path)
    path = tmp_path / "train.rec"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(BrokenData, match=message):
        read_records(path)


@pytest.mark.parametrize("config", sorted(DRAWN))
def test_missing_data_set_says_what_to_get_and_where_to_put_it(config: str, tmp_path: Path) -> None:
    with pytest.raises(MissingData) as error:
        load(config, tmp_path)
    message = str(error.value)
    assert "is missing: there is no" in message
    assert "Nothing is downloaded here. Get " in message
    assert re.search(r"https://\S+", message)
    assert str(tmp_path) in message


@pytest.mark.parametrize(
    ("config", "absent"),
    [
        ("cub", "CUB_200_2011/images.txt"),
        ("cars", "car_ims"),
        ("sop", "Ebay_test.txt"),
        ("market", "query"),
        ("msmt17", "list_gallery.txt"),
        ("msmt17", "test"),
        ("faces_circle", "lfw.bin"),
        ("faces_circle", "IJBC/meta/ijbc_face_tid_mid.txt"),
    ],
)
def test_missing_part_of_a_data_set_is_named(config: str, absent: str, tmp_path: Path) -> None:
    DRAWN[config](tmp_path)
    (tmp_path / absent).rename(tmp_path / "elsewhere")
    with pytest.raises(MissingData, match=f"there is no .*{re.escape(str(tmp_path / absent))}"):
        load(config, tmp_path)


@pytest.mark.parametrize(
    ("config", "file", "content", "message"),
    [
        ("cub", "CUB_200_2011/images.txt", "7", "line 1: wanted 2 words, got '7'"),
        ("cub", "CUB_200_2011/image_class_labels.txt", "1 1", "has no class of image 2"),
        ("sop", "Ebay_test.txt", "x\n1 2 3", "line 2: wanted 4 words, got '1 2 3'"),
        ("msmt17", "list_query.txt", "a/b.jpg 1", "third part is the camera, got 'a/b.jpg'"),
        ("msmt17", "list_query.txt", "", "must have pictures of persons, got none"),
        ("faces_circle", "IJBC/meta/ijbc_name_5pts_score.txt", "1.jpg 1 2 3", "points of 1.jpg"),
        (
            "faces_circle",
            "IJBC/meta/ijbc_template_pair_label.txt",
            "10 77 0",
            re.escape("compares templates [10, 77], of which"),
        ),
    ],
)
def test_broken_list_says_where(
    config: str, file: str, content: str, message: str, tmp_path: Path
) -> None:
    DRAWN[config](tmp_path)
    write_lines(tmp_path / file, [content])
    with pytest.raises(BrokenData, match=message):
        load(config, tmp_path)


def test_data_set_with_only_one_half_is_an_error(tmp_path: Path) -> None:
    DRAWN["cub"](tmp_path)
    root = tmp_path / "CUB_200_2011"
    labels = (root / "image_class_labels.txt").read_text("utf-8").splitlines()
    write_lines(root / "image_class_labels.txt", [f"{each.split()[0]} 7" for each in labels])
    with pytest.raises(BrokenData, match="got 42 and 0 pictures"):
        load("cub", tmp_path)
