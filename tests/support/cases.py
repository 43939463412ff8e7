"""Problems that every backend is tested with: a regime, a shape and a formula each."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from circle_kernels import CircleFormula, UnifiedFormula
from circle_kernels.formula import PairFormula
from tests.support.formulas import OTHER_FORMULAS
from tests.support.regimes import REGIMES
from tests.support.targets import INTERPRETED

PAPER = CircleFormula()


@dataclass(frozen=True)
class Case:
    """One problem: a regime, a shape and a formula."""

    regime: str
    n: int = 67
    m: int | None = None  # references; None for self mode
    d: int = 24
    formula: PairFormula = PAPER
    normalize: bool = True
    classes: bool = False  # references are class weights: one for each label, in order

    def __str__(self) -> str:
        mode = f"{self.n}" if self.m is None else f"{self.n}x{self.m}"
        formula = f"{self.formula.name}-m{self.formula.m}-g{self.formula.gamma:g}"
        formula = next((name for name, f in OTHER_FORMULAS.items() if f is self.formula), formula)
        flags = "" if self.normalize else "-unnormalised"
        flags += "" if self.formula.detach_weights else "-undetached"
        flags += "-classes" if self.classes else ""
        return f"{self.regime}-{mode}-D{self.d}-{formula}{flags}"

    @property
    def is_about_shapes(self) -> bool:
        """Whether it stands for its number of rows or its depth."""
        return (self.n, self.d) != (Case.n, Case.d) and not self.classes

    def tensors(self, dtype: torch.dtype, device: str = "cpu") -> list[Tensor | None]:
        """``[embeddings, labels, ref_emb, ref_labels]``; the embeddings require gradients."""
        generator = torch.Generator().manual_seed(20020 + self.n + self.d)
        total = self.n + (self.m or 0)
        embeddings, labels = REGIMES[self.regime](total, self.d, generator)
        if not self.normalize:
            embeddings = embeddings / embeddings.norm(dim=1, keepdim=True)
        # References from the same draw, interleaved, so that they share the rows' classes.
        order = torch.randperm(total, generator=generator) if self.m else torch.arange(total)
        embeddings, labels = embeddings[order].to(dtype), labels[order]
        result: list[Tensor | None] = [embeddings[: self.n], labels[: self.n], None, None]
        if self.m is not None:
            result[2:] = [embeddings[self.n :], labels[self.n :]]
        if self.m is not None and self.classes:
            # The last row is to be ignored.
            result[1] = torch.randint(0, self.m, (self.n,), generator=generator)
            result[1][-1:] = -1
            result[3] = torch.arange(self.m)
        return [
            value if value is None else value.to(device).clone().requires_grad_(index % 2 == 0)
            for index, value in enumerate(result)
        ]


# The regimes that are tried with references, too, where a case takes seconds.
WITH_REFERENCES = ("random", "clusters", "collapsed", "extreme_labels", "unlike_norms")


def _cases() -> list[Case]:
    cases = [Case(regime) for regime in REGIMES]
    cases += [Case(regime, m=41) for regime in (WITH_REFERENCES if INTERPRETED else REGIMES)]
    # Gamma and m over the range that users and the paper's ablations span.
    for regime in ("random", "clusters"):
        cases += [
            Case(regime, formula=CircleFormula(m=m, gamma=gamma))
            for m, gamma in ((0.25, 1.0), (-0.1, 32.0), (0.25, 256.0), (0.5, 1024.0))
        ]
    # Every logit clamped: the truth is exactly 0, and nothing allows for an error.
    cases += [Case("collapsed", m=m, formula=CircleFormula(m=-0.1, gamma=16.0)) for m in (None, 9)]
    # Depths tiny, odd and large, on both sides of every switch between kernels.
    depths = (1, 3, 16, 65, 128, 515) if INTERPRETED else (1, 2, 3, 16, 65, 128, 129, 256, 257, 515)
    cases += [Case("random", n=35, d=d) for d in depths]
    cases += [Case("random", n=19, m=21, d=d) for d in (1, 7, 130, 300)]
    cases += [Case("random", n=5, d=4096)]
    # Sizes around tile edges.
    cases += [Case("random", n=n, d=8) for n in (1, 2, 16, 63, 64, 65, 128, 193)]
    cases += [Case("random", n=1, m=200, d=8), Case("random", n=200, m=1, d=8)]
    undetached = CircleFormula(m=0.25, gamma=64.0, detach_weights=False)
    general = CircleFormula(
        gamma=32.0, optimum_pos=0.9, optimum_neg=0.1, margin_pos=0.6, margin_neg=0.2
    )
    for formula in (undetached, general, UnifiedFormula(m=0.35, gamma=64.0)):
        cases += [Case("random", formula=formula), Case("clusters", m=41, formula=formula)]
    for formula in OTHER_FORMULAS.values():
        cases += [Case("random", formula=formula), Case("clusters", m=41, formula=formula)]
    cases += [Case("random", normalize=False), Case("random", m=41, normalize=False)]
    faces = CircleFormula(m=0.25, gamma=256.0)
    cases += [
        Case("random", n=n, m=m, formula=formula, classes=True)
        for n, m in ((67, 500), (130, 11), (33, 96))
        for formula in (faces, UnifiedFormula(m=0.35, gamma=64.0))
        if not INTERPRETED or (n, formula) in ((67, faces), (130, faces), (33, formula))
    ]
    return cases


CASES = _cases()
for_every_case = pytest.mark.parametrize("case", CASES, ids=str)

# Sums over so many pairs, or values of d, that roundings which do not cancel are seen.
LARGE_CASES = [
    Case("non_negative", n=1500, d=32, formula=CircleFormula(gamma=1.0)),
    Case("one_direction_0.01", n=1500, d=32),
    Case("one_direction_1e-05", n=1200, d=16),
    Case("one_direction_0.01", n=100, m=8192, d=32),
    Case("one_direction_0.01", n=100, m=8192, formula=UnifiedFormula(m=0.35), classes=True),
    Case("non_negative", n=100, m=8192, normalize=False),
    Case("non_negative", n=200, d=4096),
    Case("clusters", n=200, d=4096, formula=CircleFormula(m=0.25, gamma=256.0)),
    Case("clusters", n=200, d=512, formula=CircleFormula(m=0.25, gamma=256.0)),
]
for_every_large_case = pytest.mark.parametrize("case", LARGE_CASES, ids=str)
