"""Random problems of every mode, formula, dtype and layout, drawn again from their seed."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from circle_kernels import CircleFormula, UnifiedFormula, pair_logsumexp
from circle_kernels.formula import PairFormula
from circle_kernels.logsumexp import masked_logsumexp
from circle_kernels.operation.listed_pairs import (
    PairIndices,
    gathered_logsumexp,
    matrix_logsumexp,
    pair_matrix,
    unique_pairs,
)
from circle_kernels.reference import pair_masks, similarity_matrix
from tests.support.raw_ops import call_op
from tests.support.targets import INTERPRETED

# How many a test takes, and the seeds that it takes them from.
PROBLEMS = 6 if INTERPRETED else 120
SEEDS = range(2 if INTERPRETED else 6)


@dataclass
class Problem:
    """One random problem; what it was drawn as says how to draw it again."""

    seed: int
    dtype: torch.dtype
    formula: PairFormula
    normalize: bool
    mode: str  # "self", "references", "classes", "listed" or "few listed"
    embeddings: Tensor
    labels: Tensor
    references: Tensor | None
    ref_labels: Tensor | None
    kinds: tuple[Tensor, Tensor]  # (N, M) bool: positive pairs and negative pairs
    words: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        shapes = [tuple(self.embeddings.shape)]
        if self.references is not None:
            shapes.append(tuple(self.references.shape))
        return f"seed {self.seed}: {self.mode} {shapes} {self.dtype} {self.formula} {self.words}"


def layout(values: Tensor, chosen: random.Random) -> tuple[Tensor, str]:
    """The same numbers in another order of memory."""
    name = chosen.choice(["as it is", "transposed", "spread", "reversed rows", "offset"])
    if name == "transposed":
        return values.T.contiguous().T, name
    if name == "spread":
        wide = values.new_full((3 * len(values), 2 * values.shape[1]), math.nan)
        wide[::3, ::2] = values
        return wide[::3, ::2], name
    if name == "reversed rows":
        return values.flip(0).contiguous().flip(0), name
    if name == "offset":
        return torch.cat([values.new_full((1, values.shape[1]), math.nan), values])[1:], name
    return values, name


def draw_labels(rows: int, chosen: random.Random, generator: torch.Generator) -> tuple[Tensor, str]:
    name = chosen.choice(["few", "many", "one", "distinct", "sorted", "huge", "skewed"])
    top = {"few": 3, "many": max(rows // 2, 1), "one": 1}.get(name, max(rows // 4, 1))
    labels = torch.randint(0, top, (rows,), generator=generator)
    if name == "distinct":
        labels = torch.randperm(rows, generator=generator)
    if name == "sorted":
        labels = labels.sort().values
    if name == "huge":
        labels = labels * 2**61 - 2**62
    if name == "skewed":
        labels = labels * (torch.rand(rows, generator=generator) < 0.2)
    return labels, name


def draw_formula(chosen: random.Random) -> PairFormula:
    gamma = chosen.choice([0.5, 16.0, 80.0, 256.0, 700.0])
    m = chosen.choice([-0.2, 0.0, 0.25, 0.4, 0.9])
    if chosen.random() < 0.25:
        return UnifiedFormula(m=m, gamma=gamma)
    optima = {}
    if chosen.random() < 0.3:
        names = ("optimum_pos", "optimum_neg", "margin_pos", "margin_neg")
        optima = {name: chosen.uniform(-0.5, 1.5) for name in names}
    return CircleFormula(m=m, gamma=gamma, detach_weights=chosen.random() < 0.7, **optima)


def draw_problem(seed: int, dtypes: tuple[torch.dtype, ...], modes: list[str]) -> Problem:
    chosen, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    rows = chosen.choice([1, 2, 3, 7, 33, 65, 95, 96, 97, 130])
    depth = chosen.choice([1, 2, 5, 16, 31, 64, 130])
    columns = chosen.choice([1, 2, 9, 64, 97, 150])
    dtype, mode = chosen.choice(dtypes), chosen.choice(modes)
    spread = chosen.choice([0.02, 0.3, 2.0, 30.0])
    labels, words = draw_labels(rows + columns, chosen, generator)
    centres = torch.randn(rows + columns, depth, generator=generator, dtype=torch.float64)
    values = centres[labels % (rows + columns)]
    values = values + spread * torch.randn(values.shape, generator=generator, dtype=torch.float64)
    normalize = chosen.random() < 0.8
    if normalize:
        values = values * 10.0 ** chosen.choice([-2, 0, 2])
    else:
        values = values / values.norm(dim=1, keepdim=True)
    embeddings, first = layout(values[:rows].to(dtype), chosen)
    references, second = layout(values[rows:].to(dtype), chosen)
    ref_labels: Tensor | None = labels[rows:]
    labels = labels[:rows]
    alone = mode == "self" or (mode.endswith("listed") and chosen.random() < 0.5)
    if mode == "classes":
        labels = torch.randint(0, columns, (rows,), generator=generator)
        positive, negative = pair_masks(labels, torch.arange(columns))
        ref_labels = None
    else:
        positive, negative = pair_masks(labels, None if alone else ref_labels)
    if mode.endswith("listed"):
        # Some of the pairs, and each row says for itself which.
        rate = 0.01 if mode == "few listed" else 0.7
        kept = torch.rand(positive.shape, generator=generator) < rate
        positive, negative = positive & kept, negative & kept
    return Problem(
        seed,
        dtype,
        draw_formula(chosen),
        normalize,
        mode,
        embeddings,
        labels,
        None if alone else references,
        None if alone else ref_labels,
        (positive, negative),
        [words, first, second],
    )


def logsumexps(
    problem: Problem, inputs: list[Tensor | None], backend: str, skip_below: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The problem's log-sum-exps of these embeddings and references."""
    embeddings, references = inputs
    options: dict[str, Any] = {"formula": problem.formula, "normalize": problem.normalize}
    if problem.mode.endswith("listed"):
        positive, negative = problem.kinds
        indices = PairIndices(*positive.nonzero().T, *negative.nonzero().T)
        if problem.mode == "few listed":
            pairs = unique_pairs(indices, *positive.shape)
            assert pairs is not None
            return gathered_logsumexp(embeddings, references, pairs, **options)
        kinds = pair_matrix(indices, *positive.shape)
        return matrix_logsumexp(embeddings, references, kinds, **options)
    options.update(skip_below=skip_below, backend=backend)
    if problem.mode == "classes":  # references without labels
        inputs = {"embeddings": embeddings, "labels": problem.labels, "ref_emb": references}
        return call_op("pair_logsumexp", **options, **inputs)[:2]
    return pair_logsumexp(embeddings, problem.labels, references, problem.ref_labels, **options)


def naive_logsumexps(problem: Problem, inputs: list[Tensor | None]) -> tuple[Tensor, Tensor]:
    embeddings, references = inputs
    similarity = similarity_matrix(
        embeddings,
        embeddings if references is None else references,
        normalize=problem.normalize,
    )
    positive, negative = problem.kinds
    return (
        masked_logsumexp(problem.formula.positive_logits(similarity), positive, dim=1),
        masked_logsumexp(problem.formula.negative_logits(similarity), negative, dim=1),
    )


def as_leaves(problem: Problem, dtype: torch.dtype, device: str) -> list[Tensor | None]:
    return [
        None if value is None else value.detach().to(device, dtype).requires_grad_()
        for value in (problem.embeddings, problem.references)
    ]


def in_its_layout(problem: Problem, device: str) -> list[Tensor | None]:
    return [
        None if value is None else value.detach().to(device).requires_grad_()
        for value in (problem.embeddings, problem.references)
    ]
