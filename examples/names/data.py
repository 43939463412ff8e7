"""What the world's languages call countries, languages, scripts and currencies, and its split.

The names come with the package Babel: the Unicode Common Locale Data Repository (CLDR). An entity
is a territory, a language, a script or a currency; its names are what the locales call it. Names
that differ in no more than case, width or composition are one (:func:`folded`), a name of two
entities is dropped, and so is an entity with fewer than 16 names.

Entities whose names have a stem in common stay on one side of the split (see names/stems.py):
who has been taught German knows much of Germany.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from babel import localedata
from torch import Tensor

from names.stems import groups_with_common_stems

FEWEST_NAMES = 16
# What the locale data call the names of each kind of entity.
KINDS = {
    "territory": "territories",
    "language": "languages",
    "script": "scripts",
    "currency": "currency_names",
}
# Not the run's seed: the examples' hyper-parameters were chosen on this split's validation
# entities, and under another split some of those would be test entities.
SPLIT_SEED = 0
SPLITS = ("stems", "random")

Key = tuple[str, str]  # kind and code of an entity
Locales = Mapping[str, Mapping[Key, str]]  # by the code of the locale, its name of each entity


@dataclass(frozen=True)
class Entity:
    """What is named."""

    kind: str  # a key of KINDS
    code: str  # of ISO 3166, 639, 15924 or 4217, or of the CLDR
    title: str  # in English, where it has an English name
    names: tuple[str, ...]  # no two of them the same when folded


@dataclass(frozen=True)
class NameSet:
    """E entities."""

    entities: tuple[Entity, ...]
    groups: Tensor  # (E,) integers, the same for entities with common stems

    def __len__(self) -> int:
        return len(self.entities)

    def select(self, entities: Tensor) -> NameSet:
        """The given entities only, (E',) integers, in that order."""
        return NameSet(tuple(self.entities[i] for i in entities.tolist()), self.groups[entities])

    def names_and_labels(
        self,
        names_per_entity: int | None = FEWEST_NAMES,  # drawn at random; None: all
    ) -> tuple[list[str], Tensor]:
        """N names, the same at each call, and the indices of their entities, (N,) integers."""
        generator = torch.Generator().manual_seed(0)
        names, labels = [], []
        for label, entity in enumerate(self.entities):
            order = torch.randperm(len(entity.names), generator=generator)
            chosen = [entity.names[i] for i in order[:names_per_entity].tolist()]
            names += chosen
            labels += [label] * len(chosen)
        return names, torch.tensor(labels)

    def many_names(self, most: int) -> tuple[list[str], Tensor]:
        """So many names, drawn from those of all entities (or all, if there are no more)."""
        names, labels = self.names_and_labels(None)
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))[:most]
        return [names[i] for i in order.tolist()], labels[order]


def folded(name: str) -> str:
    """The name without what case, width and composition make of it."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def decomposed(name: str) -> str:
    """The name in lower case, with accents apart from letters and syllables of Hangul in parts."""
    return unicodedata.normalize("NFKD", name).casefold()


def load_locales() -> dict[str, dict[Key, str]]:
    """The names in all locales of the CLDR, 1,146 and the root of them; takes two seconds."""
    names = {}
    for locale in sorted(localedata.locale_identifiers()):
        data = localedata.load(locale)
        names[locale] = {
            (kind, code): name
            for kind, of_kind in KINDS.items()
            for code, name in data.get(of_kind, {}).items()
        }
    return names


def name_set(locales: Locales) -> NameSet:
    """The entities of 16 names or more: of the CLDR about 1,435 with 140,600 names."""
    spellings: dict[Key, dict[str, str]] = defaultdict(dict)  # by what they are when folded
    for names in locales.values():
        for key, name in names.items():
            spellings[key].setdefault(folded(name), name)
    holders = Counter(name for of_entity in spellings.values() for name in of_entity)
    english = locales.get("en", {})
    entities = []
    for (kind, code), of_entity in spellings.items():
        own = tuple(spelling for name, spelling in of_entity.items() if holders[name] == 1)
        if len(own) >= FEWEST_NAMES:
            entities.append(Entity(kind, code, english.get((kind, code), code), own))
    numbers = {(entity.kind, entity.code): number for number, entity in enumerate(entities)}
    different = {  # most regional locales have the names of their language
        frozenset((folded(name), numbers[key]) for key, name in names.items() if key in numbers)
        for names in locales.values()
    }
    return NameSet(tuple(entities), groups_with_common_stems(different, len(entities)))


@dataclass(frozen=True)
class EntitySplit:
    """Disjoint sets of entities."""

    train: NameSet
    validation: NameSet
    test: NameSet

    def __str__(self) -> str:
        parts = (self.train, self.validation, self.test)
        train, validation, test = map(len, parts)
        names = sum(len(entity.names) for part in parts for entity in part.entities)
        return (
            f"{names:,} names of {train + validation + test:,} entities: {train} to train on, "
            f"{validation} to validate, {test} to test"
        )


def split_entities(
    names: NameSet,
    by: str = "stems",  # what stays together: entities with common stems, or ("random") nothing
    validation_share: float = 1 / 6,
) -> EntitySplit:
    """Half of the entities, at random, for testing; of the rest a share for validation.

    By stems the parts are larger than that by what completes their last group.
    """
    groups = names.groups if by == "stems" else torch.arange(len(names))
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    places = torch.randperm(int(groups.max()) + 1, generator=generator)[groups]
    order = places.argsort(stable=True)
    # Before which of the ordered entities a group begins.
    starts = torch.nonzero(places[order].diff(append=torch.tensor([-1]))).flatten() + 1

    def start_of_group(place: int) -> int:
        return int(starts[torch.searchsorted(starts, place)])

    test = start_of_group(len(names) // 2)
    validation = start_of_group(test + round((len(names) - test) * validation_share))
    return EntitySplit(
        train=names.select(order[validation:]),
        validation=names.select(order[test:validation]),
        test=names.select(order[:test]),
    )
