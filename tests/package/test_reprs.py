"""What is shown of losses, heads, memories, formulas and results."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from circle_kernels import (
    CircleFormula,
    CircleLoss,
    ClassCircleLoss,
    ClassUnifiedLoss,
    EmbeddingMemory,
    PairFormula,
    UnifiedFormula,
    evaluation,
    losses,
)

ALONE = "group=None (this process alone)"
LEARNED = nn.Parameter(torch.tensor(8.0))


class Halved(CircleFormula):
    """A subclass has its own name."""


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (CircleLoss(), f"CircleLoss(m=0.4, gamma=80.0, {ALONE})"),
        (
            CircleLoss(0.25, 128, scope="batch", skip_below=0.5, ignore_label=-1, backend="tiled"),
            "CircleLoss(m=0.25, gamma=128, scope='batch', skip_below=0.5, ignore_label=-1, "
            f"backend='tiled', {ALONE})",
        ),
        (
            CircleLoss(gamma=LEARNED, group="world", exchange="ring"),
            "CircleLoss(m=0.4, gamma=tensor(8.) (learned), group='world', exchange='ring', "
            "same_sizes=False, grad_reduction='mean')",
        ),
        (ClassCircleLoss(7, 5), "ClassCircleLoss(7, 5, m=0.25, gamma=256.0)"),
        (
            ClassCircleLoss(7, 5, detach_weights=False, sparse_grad=True, ignore_index=0),
            "ClassCircleLoss(7, 5, m=0.25, gamma=256.0, ignore_index=0, sparse_grad=True, "
            "detach_weights=False)",
        ),
        (
            ClassUnifiedLoss(7, 5, gamma=torch.tensor(2.0), label_smoothing=0.1),
            "ClassUnifiedLoss(7, 5, m=0.35, gamma=tensor(2.), label_smoothing=0.1)",
        ),
        (losses.SupConLoss(), f"SupConLoss(temperature=0.1, {ALONE})"),
        (
            losses.MultiSimilarityLoss(beta=40, reduction="sum", normalize=False),
            "MultiSimilarityLoss(alpha=2.0, beta=40, base=0.5, reduction='sum', normalize=False, "
            f"{ALONE})",
        ),
        (losses.NPairsLoss(normalize=False), f"NPairsLoss(normalize=False, {ALONE})"),
        (
            losses.ProxyAnchorLoss(7, 5, alpha=16),
            f"ProxyAnchorLoss(7, 5, margin=0.1, alpha=16, {ALONE})",
        ),
        (
            losses.CLIPLoss(1.0, largest=50),
            f"CLIPLoss(logit_scale=tensor(1.) (learned), largest=50.0, {ALONE})",
        ),
        (
            losses.CLIPLoss(1.0, learned=False),
            f"CLIPLoss(logit_scale=tensor(1.), largest=100.0, {ALONE})",
        ),
        (EmbeddingMemory(4, 3), "EmbeddingMemory(4, 3, dtype=torch.float32, group=None)"),
        (CircleFormula(), "CircleFormula(m=0.4, gamma=80.0)"),
        (
            CircleFormula(margin_pos=0.5, gamma_neg=8.0, detach_weights=False),
            "CircleFormula(m=0.4, gamma=80.0, margin_pos=0.5, gamma_neg=8.0, detach_weights=False)",
        ),
        (Halved(m=0.1), "Halved(m=0.1, gamma=80.0)"),
        (UnifiedFormula(gamma_pos=-8.0), "UnifiedFormula(m=0.0, gamma=80.0, gamma_pos=-8.0)"),
        (
            PairFormula.from_functions(lambda s: 1 - s, torch.relu, gamma=2.0),
            "FunctionFormula(positive=Program(text='subtract 1.0 0'), "
            "negative=Program(text='maximum 0.0 0'), gamma=2.0)",
        ),
        (
            evaluation.positive_ranks(torch.eye(3)[[0, 0, 1]], torch.tensor([0, 0, 1])),
            "PositiveRanks(ranks=tensor([1, 1]), offsets=tensor([0, 1, 2, 2]))",
        ),
        (
            evaluation.nearest(torch.eye(2)[1:], torch.eye(2), k=1),
            "Nearest(similarities=tensor([[1.]]), indices=tensor([[1]]))",
        ),
    ],
    ids=lambda value: value.partition("(")[0] if isinstance(value, str) else "",
)
def test_settings_that_are_not_the_defaults_are_shown(shown: object, text: str) -> None:
    assert repr(shown) == text


def test_formulas_are_made_again_by_what_is_shown() -> None:
    names = [name for name in vars(CircleFormula()) if name != "detach_weights"]
    formulas = [CircleFormula(**{name: 0.25}) for name in names]
    assert len({repr(each) for each in formulas}) == len(names) == 8
    assert all(eval(repr(each)) == each for each in formulas)


def test_what_is_learned_has_its_number_of_today() -> None:
    loss = losses.CLIPLoss(4.0)
    before = repr(loss)
    with torch.no_grad():
        loss.log_scale.add_(1.0)
    assert repr(loss) != before
    assert isinstance(loss.logit_scale, Tensor)
