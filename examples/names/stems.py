"""Which entities have names with a common stem, as Germany, German and German mark have.

Two names have a common stem if one begins with the first three quarters of the other (and with at
least four letters). Two entities belong together if a fifth of the locales that name both give them
such names, or if others link them; so words of one language alone, such as "South" or "New", link
little. Of the CLDR's entities a bit more than half belong to another one, the largest group is that
of Europe and America with about 100.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

STEM_SHARE = 0.75
SHORTEST_STEM = 4
LINKED_SHARE = 0.2

NamedEntity = tuple[str, int]  # a name, folded, and the index of its entity


def groups_with_common_stems(
    locales: Collection[Collection[NamedEntity]],
    number_of_entities: int,  # E
) -> Tensor:
    """(E,) integers from 0 on, the same for entities that belong together."""
    named = np.zeros((len(locales), number_of_entities), dtype=np.float32)
    links: Counter[tuple[int, int]] = Counter()
    for row, names in zip(named, locales, strict=True):
        row[[entity for _, entity in names]] = 1
        links.update(set(_links(sorted(names))))
    named_both = named.T @ named
    linked = [pair for pair, count in links.items() if count >= LINKED_SHARE * named_both[pair]]
    first, second = np.array(linked, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(linked)), (first, second)), shape=named_both.shape)
    _, groups = connected_components(graph, directed=False)
    return torch.from_numpy(groups).long()


def _links(names: Sequence[NamedEntity]) -> Iterator[tuple[int, int]]:
    """Pairs of entities, the lower index first, whose names in this sorted list share a stem."""
    for name, entity in names:
        stem = name[: max(SHORTEST_STEM, math.ceil(STEM_SHARE * len(name)))]
        if len(stem) < SHORTEST_STEM:
            continue
        place = bisect_left(names, (stem, -1))
        while place < len(names) and names[place][0].startswith(stem):
            other = names[place][1]
            if other != entity:
                yield min(entity, other), max(entity, other)
            place += 1
