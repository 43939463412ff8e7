"""Batches and pictures are functions of the seed and of where they stand in the training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import tests.recipes.programs  # noqa: F401  # isort: skip

from PIL import Image

from recipes import data
from recipes.configuration import ConfigurationError, Data, Training, read
from recipes.data.alignment import aligned
from recipes.data.images import Drawn, EvaluatedPictures, TrainingPictures, batches_of
from recipes.data.pictures import Pictures
from recipes.engine.sampling import drawn_batches

LABELS = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 0, 0])
CPU = torch.device("cpu")


def settings(**values: Any) -> Training:
    return Training(**{"batch": 6, "steps": 10, "learning_rate": 0.1, **values})


def batches(training: Training, first: int = 0, part: slice = slice(None)) -> list[list[Drawn]]:
    return list(drawn_batches(LABELS, training, first, part))


def pictures_of(batch: Sequence[Drawn]) -> list[int]:
    return [each.picture for each in batch]


def test_batch_has_as_many_pictures_of_each_class_as_asked_for() -> None:
    drawn = batches(settings(per_class=3))
    assert len(drawn) == 10
    for batch in drawn:
        classes, counts = LABELS[pictures_of(batch)].unique(return_counts=True)
        assert counts.tolist() == [3, 3]
        for each in classes.tolist():
            members = {one for one in pictures_of(batch) if LABELS[one] == each}
            # All different; class 5 has two pictures, and one of them twice.
            assert len(members) == min(3, int((each == LABELS).sum()))
    # An epoch has each class once: three batches of two classes.
    for start in (0, 3, 6):
        epoch = [one for batch in drawn[start : start + 3] for one in pictures_of(batch)]
        assert LABELS[epoch].unique().tolist() == list(range(6))
    assert [batch[0].epoch for batch in drawn] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]


def test_epoch_without_classes_has_each_picture_once_at_most() -> None:
    drawn = batches(settings())
    for start in (0, 3, 6):
        epoch = [one for batch in drawn[start : start + 3] for one in pictures_of(batch)]
        assert len(set(epoch)) == 18
    assert pictures_of(drawn[0]) != pictures_of(drawn[3])
    assert drawn != batches(settings(seed=1))


@pytest.mark.parametrize("per_class", [0, 2])
@pytest.mark.parametrize("first", [0, 1, 3, 7, 9, 10])
def test_batches_from_a_step_on_are_those_of_the_whole_training(per_class: int, first: int) -> None:
    training = settings(per_class=per_class)
    assert batches(training, first) == batches(training)[first:]


def test_parts_of_processes_are_the_batch() -> None:
    training = settings(per_class=2)
    parts = [batches(training, part=slice(start, start + 3)) for start in (0, 3)]
    assert [[*one, *two] for one, two in zip(*parts, strict=True)] == batches(training)


def test_places_in_an_epoch_are_all_different() -> None:
    drawn = [each for batch in batches(settings(per_class=3)) for each in batch]
    assert len({(each.epoch, each.place) for each in drawn}) == len(drawn)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch": 20}, "takes 20 pictures, and there are 19"),
        ({"batch": 21, "per_class": 3}, "takes 7 classes, and there are 6"),
    ],
)
def test_batch_that_is_too_large_says_what_there_is(values: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        batches(settings(**values))


@pytest.mark.parametrize("augmentation", ["crop", "pad", "flip"])
def test_augmentation_follows_from_the_place_alone(
    augmentation: str, data_of: Callable[[str], Path]
) -> None:
    dataset = data.load(read("cub").data, data_of("cub"))
    options = Data(layout="cub", height=24, width=40, augmentation=augmentation, erase=0.5)
    drawn = TrainingPictures(dataset.train, options, seed=3)
    places = [Drawn(7, 1, place) for place in range(30)]
    found = [drawn[each][0] for each in places]
    assert found[0].shape == (3, 24, 40)
    assert found[0].dtype == torch.float32
    torch.manual_seed(5)
    for place in (29, 4, 0):
        assert torch.equal(drawn[places[place]][0], found[place])
    assert len({each.numpy().tobytes() for each in found}) >= 4
    assert drawn[places[0]][1] == dataset.train.labels[7]
    # What is erased is 0, the mean; a drawn picture never is.
    erased = sum(bool((each == 0).all(0).any()) for each in found)
    assert 0 < erased < 30


def test_workers_leave_batches_and_generators_as_they_are(data_of: Callable[[str], Path]) -> None:
    recipe = read("cub", ["training.batch=8", "training.per_class=4", "training.steps=3"])
    dataset = data.load(recipe.data, data_of("cub"))
    drawn = TrainingPictures(dataset.train, recipe.data, seed=0)
    state = torch.get_rng_state()
    found = []
    for workers in (0, 2):
        order = drawn_batches(dataset.train.labels, recipe.training, 0, slice(None))
        found.append(list(batches_of(drawn, order, workers, CPU)))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(found[0]) == 3
    for one, two in zip(*found, strict=True):
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])


def test_evaluated_picture_is_the_centre_of_the_whole(tmp_path: Path) -> None:
    # Columns of 10 pixels each: the middle 32 of 64 by 32 are cut to 7/8 of the side, 28.
    picture = Image.new("RGB", (64, 32))
    for column in range(64):
        picture.paste((4 * column, 0, 0), (column, 0, column + 1, 32))
    picture.save(tmp_path / "wide.png")
    pictures = Pictures([tmp_path / "wide.png"], torch.zeros(1, dtype=torch.int64))
    options = Data(layout="cub", height=28, width=28, evaluated_share=0.875, normalization="half")
    values = EvaluatedPictures(pictures, options)[0]
    assert values.shape == (3, 28, 28)
    columns = ((values[0, 0] * 0.5 + 0.5) * 255 / 4).round()
    assert columns.tolist() == list(range(18, 46))
    whole = EvaluatedPictures(pictures, Data(layout="cub", height=32, width=64))[0]
    assert whole.shape == (3, 32, 64)


def test_landmarks_come_to_lie_where_faces_are_aligned() -> None:
    # A dot at each landmark of a face that is turned, larger and elsewhere.
    wanted = torch.tensor(
        [[38.3, 51.7], [73.5, 51.5], [56.0, 71.7], [41.5, 92.4], [70.7, 92.2]], dtype=torch.float64
    )
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=torch.float64)
    found = 1.7 * (wanted - 56) @ turn.T + torch.tensor([140.0, 120.0])
    picture = Image.new("L", (280, 260))
    for x, y in found.round().long().tolist():
        picture.paste(255, (x - 2, y - 2, x + 3, y + 3))
    small = torch.frombuffer(
        bytearray(aligned(picture, found, (112, 112)).tobytes()), dtype=torch.uint8
    ).view(112, 112)
    for x, y in wanted.tolist():
        window = small[round(y) - 4 : round(y) + 5, round(x) - 4 : round(x) + 5].double()
        rows, columns = torch.meshgrid(torch.arange(-4.0, 5), torch.arange(-4.0, 5), indexing="ij")
        centre = [float((window * each).sum() / window.sum()) for each in (columns, rows)]
        assert window.max() > 200
        assert centre == pytest.approx([x - round(x), y - round(y)], abs=0.6)
    double = aligned(picture, found, (224, 224))
    assert double.size == (224, 224)
