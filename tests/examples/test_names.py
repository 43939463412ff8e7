"""The names of the name examples: what counts as one, stems, their split, batches, n-grams."""

from __future__ import annotations

import pytest
import torch

import tests.examples.programs  # noqa: F401  # isort: skip

from names import data, ngrams, stems, training
from names.network import MOST_CHARACTERS, code_points, hashed_words

GERMAN, GERMANY, ZULU = ("language", "de"), ("territory", "DE"), ("language", "zu")


def locales_of(**names: list[str]) -> dict[str, dict[data.Key, str]]:
    """Of each language its names in as many locales."""
    codes = {f"l{number}" for of_language in names.values() for number in range(len(of_language))}
    return {
        code: {
            ("language", language): of_language[int(code[1:])]
            for language, of_language in names.items()
            if int(code[1:]) < len(of_language)
        }
        for code in sorted(codes)
    }


def test_1435_entities_have_16_names_or_more(all_names: data.NameSet) -> None:
    assert 1400 <= len(all_names) <= 1600
    assert min(len(entity.names) for entity in all_names.entities) == data.FEWEST_NAMES
    assert sum(len(entity.names) for entity in all_names.entities) > 130_000
    assert {entity.kind for entity in all_names.entities} == set(data.KINDS)


def test_no_two_names_are_the_same_when_folded(all_names: data.NameSet) -> None:
    folded = [data.folded(name) for entity in all_names.entities for name in entity.names]
    assert len(set(folded)) == len(folded)


def test_name_of_two_entities_is_dropped() -> None:
    first = [f"first {i}" for i in range(16)]
    second = [f"second {i}" for i in range(17)]
    found = data.name_set(locales_of(aa=[*first, "Common"], bb=[*second, "COMMON"]))
    assert [set(entity.names) for entity in found.entities] == [set(first), set(second)]


def test_entity_of_15_names_is_dropped() -> None:
    many, few = ([f"{kind} {i}" for i in range(16)] for kind in ("many", "few"))
    few[3] = few[4].upper()  # a name that it has already
    found = data.name_set(locales_of(aa=many, bb=few))
    assert [entity.code for entity in found.entities] == ["aa"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Deutsch", "DEUTSCH"),
        ("\uff2b\uff41\uff49", "kai"),
        ("caf\u00e9", "cafe\u0301"),
        ("Straße", "STRASSE"),
    ],
    ids=["case", "width", "composition", "sharp_s"],
)
def test_names_that_differ_in_form_only_are_folded_to_one(first: str, second: str) -> None:
    assert data.folded(first) == data.folded(second)


def test_entities_with_a_common_stem_in_a_fifth_of_the_locales_are_one_group() -> None:
    alike = {("german", 0), ("germany", 1), ("zulu", 2)}
    other = {("tedesco", 0), ("alemania", 1), ("zulus", 2)}
    assert stems.groups_with_common_stems([alike, *[other] * 4], 3).tolist() == [0, 0, 1]
    assert stems.groups_with_common_stems([alike, *[other] * 5], 3).tolist() == [0, 1, 2]


def test_groups_are_closed_over_what_links_them() -> None:
    names = {("german mark", 0), ("german", 1), ("germany", 2), ("ger", 3), ("zulu", 4)}
    assert stems.groups_with_common_stems([names], 5).tolist() == [0, 0, 0, 1, 2]


@pytest.mark.parametrize("by", data.SPLITS)
def test_entities_are_split_disjointly_and_completely(by: str, all_names: data.NameSet) -> None:
    split = data.split_entities(all_names, by)
    parts = (split.train, split.validation, split.test)
    keys = [{(entity.kind, entity.code) for entity in part.entities} for part in parts]
    assert sum(map(len, keys)) == len(set.union(*keys)) == len(all_names)
    assert len(split.test) == pytest.approx(len(all_names) / 2, abs=100)
    assert len(split.validation) == pytest.approx(len(all_names) / 12, abs=20)
    assert str(split).endswith(f"{len(split.test)} to test")


def test_german_germany_and_the_german_mark_stay_together(all_names: data.NameSet) -> None:
    keys = [("language", "de"), ("territory", "DE"), ("currency", "DEM")]
    by_stems, at_random = (data.split_entities(all_names, by) for by in data.SPLITS)
    for part in (by_stems.train, by_stems.validation, by_stems.test):
        inside = {(entity.kind, entity.code) for entity in part.entities}
        assert len(inside.intersection(keys)) in (0, len(keys))
    groups = [set(part.groups.tolist()) for part in (by_stems.train, by_stems.test)]
    assert groups[0].isdisjoint(groups[1])
    groups = [set(part.groups.tolist()) for part in (at_random.train, at_random.test)]
    assert not groups[0].isdisjoint(groups[1])


def test_each_entity_gives_as_many_different_names_as_are_asked_for(
    all_names: data.NameSet,
) -> None:
    few = all_names.select(torch.tensor([7, 3]))
    names, labels = few.names_and_labels()
    assert labels.tolist() == [0] * 16 + [1] * 16
    assert len(set(names)) == 32
    for name, label in zip(names, labels, strict=True):
        assert name in few.entities[label].names
    assert few.names_and_labels()[0] == names
    everything, labels = few.names_and_labels(None)
    assert everything != names
    assert sorted(everything) == sorted(name for entity in few.entities for name in entity.names)
    assert labels.bincount().tolist() == [len(entity.names) for entity in few.entities]


def test_many_names_keep_their_labels(all_names: data.NameSet) -> None:
    names, labels = all_names.many_names(60_000)
    assert len(names) == len(labels) == len(set(names)) == 60_000
    for name, label in zip(names[:100], labels[:100], strict=True):
        assert name in all_names.entities[label].names
    few = all_names.select(torch.tensor([0]))
    assert len(few.many_names(60_000)[0]) == len(few.entities[0].names)


def test_batch_has_p_entities_with_k_different_names(all_names: data.NameSet) -> None:
    few = all_names.select(torch.arange(20))
    batches = training.Batches(few)
    codes, labels = batches.draw(6, 5, torch.Generator().manual_seed(0))
    values, counts = labels.unique(return_counts=True)
    assert len(values) == 6
    assert counts.tolist() == [5] * 6
    rows = {row[row != 0].numpy().tobytes() for row in codes}
    assert len(rows) == 30
    for row, label in zip(codes, labels, strict=True):
        name = "".join(map(chr, row[row != 0])).strip()
        assert any(data.decomposed(own).startswith(name) for own in few.entities[label].names)


def test_long_names_are_cut_and_short_ones_padded() -> None:
    codes = code_points(["Å", "x" * 100])
    assert codes.shape == (2, MOST_CHARACTERS)
    assert codes[0].tolist() == [*map(ord, " a\u030a "), *[0] * (MOST_CHARACTERS - 4)]
    assert "".join(map(chr, codes[1])) == f" {'x' * (MOST_CHARACTERS - 2)} "


def test_letters_of_related_names_share_vectors() -> None:
    georgian, armenian = (set(hashed_words(ord(letter)).tolist()) for letter in "ბբ")
    bengali, devanagari = (set(hashed_words(ord(letter)).tolist()) for letter in "কक")
    assert len(bengali & devanagari) == 2  # LETTER KA
    assert len(georgian & armenian) == 1  # LETTER; they are called BAN and BEN
    assert hashed_words(0).tolist() == [0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Ça va", "ca va"),
        ("ბანი", "banannarin"),
        ("किम", "kaima"),
        ("Зулу", "zeuelu"),
        ("ドイツ", "toitu"),
        ("中国", "中国"),
    ],
    ids=["latin", "georgian", "devanagari", "cyrillic", "katakana", "chinese"],
)
def test_names_are_read_by_what_unicode_calls_their_letters(name: str, expected: str) -> None:
    assert ngrams.read(name) == expected


def test_ngrams_find_what_is_spelled_alike() -> None:
    vectors = ngrams.ngram_vectors(["Germany", "germani", "Zulu", "Зулу"])
    similarity = vectors @ vectors.T
    torch.testing.assert_close(similarity.diagonal(), torch.ones(4))
    assert similarity[0, 1] > 0.4
    assert similarity[0, 2] < 0.1
    assert similarity[2, 3] < 0.1
    vectors = ngrams.ngram_vectors(["Зулу", "Zulu", "Germany"], ngrams.read)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
