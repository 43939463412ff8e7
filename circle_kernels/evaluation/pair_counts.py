"""How many positive pairs are more similar than a negative pair of given rank, of all pairs.

Neither the similarities nor a list of pairs is in memory: walks over the tiles of the upper
triangle count pairs by the leading bits of their similarity, 16 bits more in each walk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from circle_kernels.distributed.columns import Spread
from circle_kernels.evaluation.progress import Advance, progress_bar
from circle_kernels.evaluation.similarities import Similarities

_DIGIT_BITS = 16
_DIGITS = 2**_DIGIT_BITS
# Rows and columns of a tile: with what is known of each pair, less than 64 MB.
_TILE = 768


@dataclass
class _Search:
    """The negative pair of one rank, as far as the leading bits of its similarity are known."""

    rank: int  # of those with these bits, the most similar first; 1 is the first
    prefix: int = 0
    above: int = 0  # positive pairs that are more similar than pairs with these bits

    def refine(self, negatives: Tensor, positives: Tensor) -> None:  # (digits,) counts each
        """Find the next digit, given how many pairs with these bits have which."""
        from_the_top = negatives.flip(0).cumsum(0)
        place = int(torch.searchsorted(from_the_top, self.rank))
        self.rank -= int(from_the_top[place - 1]) if place else 0
        digit = _DIGITS - 1 - place
        self.above += int(positives[digit + 1 :].sum())
        self.prefix = (self.prefix << _DIGIT_BITS) + digit


@dataclass(frozen=True)
class AllPairs:
    """All unordered pairs of some embeddings; processes count a part of the tiles each."""

    operand: Tensor  # (N, D)
    labels: Tensor  # (N,) int64
    similarities: Similarities
    spread: Spread | None = None  # processes that all have the same pairs

    def positives_above(self, ranks: list[int], progress: bool) -> list[int]:
        """For each rank how many positive pairs are more similar than the negative pair of it.

        Args:
            ranks: from 1, the most similar negative pair, to the number of negative pairs.
            progress: show a bar.
        """
        searches = {rank: _Search(rank) for rank in ranks}
        bits = 8 * self.similarities.dtype.itemsize
        digits = range(bits - _DIGIT_BITS, -1, -_DIGIT_BITS) if searches else ()
        with progress_bar(len(self._own_tiles()) * len(digits), "tile", progress) as advance:
            for shift in digits:
                prefixes = sorted({search.prefix for search in searches.values()})
                counts = self._counts(prefixes, shift, advance)
                for search in searches.values():
                    search.refine(*counts[prefixes.index(search.prefix)])
        return [searches[rank].above for rank in ranks]

    def _counts(
        self, prefixes: list[int], shift: int, advance: Advance
    ) -> Tensor:  # (prefixes, 2, digits) int64
        """How many pairs of each kind, negative ones first, have which digit after each prefix."""
        kind = _integers(self.similarities.dtype)
        known = torch.tensor(prefixes, dtype=kind, device=self.labels.device)
        counts = self.labels.new_zeros(len(prefixes) * 2 * _DIGITS)
        for tile in self._own_tiles():
            similarity, same = self._tile(tile)
            leading = _keys(similarity) >> shift
            prefix, digit = leading >> _DIGIT_BITS, leading & (_DIGITS - 1)
            place = torch.searchsorted(known, prefix, out_int32=True).clamp_(max=len(known) - 1)
            index = place.mul(2).add_(same).mul_(_DIGITS).add_(digit)
            found = known[place] == prefix
            if not found.all():
                index = index[found]
            counts += torch.bincount(index, minlength=len(counts))
            advance(1)
        if self.spread is not None:
            dist.all_reduce(counts, group=self.spread.group)
        return counts.view(len(prefixes), 2, _DIGITS)

    def _own_tiles(self) -> range:
        """This process's, by their numbers in the upper triangle."""
        blocks = -(-len(self.labels) // _TILE)
        first, step = (0, 1) if self.spread is None else (self.spread.rank, len(self.spread.sizes))
        return range(first, blocks * (blocks + 1) // 2, step)

    def _tile(self, number: int) -> tuple[Tensor, Tensor]:  # (P,) each
        """Similarities of a tile's pairs, and whether these are positive."""
        # The triangle column by column: before column j there are j (j + 1) / 2 tiles.
        j = (math.isqrt(8 * number + 1) - 1) // 2
        i = number - j * (j + 1) // 2
        rows, columns = (slice(each * _TILE, (each + 1) * _TILE) for each in (i, j))
        exact = self.similarities.tile(self.operand[rows], self.operand[columns])
        similarity = exact.to(self.similarities.dtype)
        same = self.labels[rows, None] == self.labels[columns]
        if i == j:
            once = torch.ones_like(same).triu(1)
            return similarity[once], same[once]
        return similarity.flatten(), same.flatten()


def _keys(similarity: Tensor) -> Tensor:  # integers as wide as the floats
    """From 0 on in the order of similarities between -2 and 2."""
    bits = (similarity + 0.0).view(_integers(similarity.dtype))  # -0.0 becomes 0.0
    largest = torch.iinfo(bits.dtype).max
    negative = bits >> (8 * bits.itemsize - 1)  # all bits, or none
    return (bits ^ (negative & largest)) + (largest // 2 + 1)  # the bits of 2


def _integers(dtype: torch.dtype) -> torch.dtype:
    """Those that hold the bits of floats."""
    return torch.int64 if dtype == torch.float64 else torch.int32
