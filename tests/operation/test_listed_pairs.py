"""Log-sum-exps over listed pairs: every backend, and the short way, against dense masks."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor

from circle_kernels import CircleFormula, UnifiedFormula
from circle_kernels.backends import choice, cpu, gathered, problem
from circle_kernels.logsumexp import masked_logsumexp
from circle_kernels.operation.listed_pairs import (
    PairIndices,
    gathered_logsumexp,
    label_matrix,
    labels_of,
    matrix_logsumexp,
    pair_matrix,
    unique_pairs,
)
from circle_kernels.reference import similarity_matrix
from tests.support.cases import Case
from tests.support.targets import INTERPRETED, TARGETS, Target
from tests.support.yardstick import Yardstick, gradients

pytestmark = pytest.mark.sanitized

CASES = [
    Case("random"),
    Case("random", m=130),
    Case("clusters", n=110),
    Case("clusters", m=41, formula=CircleFormula(m=0.25, gamma=256)),
    Case("duplicates_and_antipodes", formula=CircleFormula(m=0.5, gamma=1024)),
    Case("unlike_norms", n=97, formula=CircleFormula(gamma=64, detach_weights=False)),
    Case("random", m=41, formula=UnifiedFormula(m=0.35, gamma=64), normalize=False),
]

# The tiled backend in small tiles only: with large ones these cases have a single tile.
SMALL_TILES = [t for t in TARGETS if isinstance(t, Target) and (t.backend != "tiled" or t.tile)]
BACKENDS = ["triton"] if INTERPRETED else ["cpu", "tiled"]


def draw_kinds(rows: int, columns: int, self_mode: bool) -> Tensor:
    """Positive, negative and unlisted pairs; in self mode one or both rows of a pair list it."""
    generator = torch.Generator().manual_seed(rows + columns)
    kinds = torch.randint(0, 3, (rows, columns), generator=generator, dtype=torch.uint8)
    if self_mode:
        kinds = kinds.triu() + kinds.triu(1).T
        kinds *= torch.rand(rows, columns, generator=generator) < 0.7
    kinds[::7] = 0  # rows without any
    kinds[1::7] = kinds[1::7].clamp_max(1)  # or without negatives
    return kinds


def as_indices(kinds: Tensor) -> PairIndices:
    """All of a matrix's pairs, in no order, some of them twice."""
    listed = []
    for kind in (problem.ROW_POSITIVE, problem.ROW_NEGATIVE):
        pairs = (kinds == kind).nonzero()
        pairs = torch.cat([pairs, pairs[::3]])
        pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))]
        listed += [pairs[:, 0], pairs[:, 1]]
    return PairIndices(*listed)


def dense(case: Case, kinds: Tensor, inputs: list[Tensor | None], dtype: torch.dtype):
    """Both log-sum-exps and the gradients from the whole matrix in the given dtype."""
    embeddings, _, ref_emb, _ = (
        value.detach().to(dtype).requires_grad_()
        if value is not None and value.is_floating_point()
        else value
        for value in inputs
    )
    similarity = similarity_matrix(
        embeddings, embeddings if ref_emb is None else ref_emb, normalize=case.normalize
    )
    statistics = [
        masked_logsumexp(case.formula.positive_logits(similarity), kinds == 1, dim=1),
        masked_logsumexp(case.formula.negative_logits(similarity), kinds == 2, dim=1),
    ]
    return statistics, gradients(*statistics, [embeddings, ref_emb])


def without_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists become matrices as on devices."""
    monkeypatch.setattr(cpu, "mark_pairs", lambda *arguments: None)


def check(case: Case, kinds: Tensor, dtype: torch.dtype, compute) -> None:
    inputs = case.tensors(dtype)
    embeddings, _, ref_emb, _ = inputs
    ours = compute(embeddings, ref_emb)
    our_gradients = gradients(*ours, [embeddings, ref_emb])
    truth, true_gradients = dense(case, kinds, inputs, torch.float64)
    eager, eager_gradients = dense(case, kinds, inputs, dtype)
    eps = torch.finfo(dtype).eps
    for mine, right, other in zip(
        [*ours, *our_gradients], [*truth, *true_gradients], [*eager, *eager_gradients], strict=True
    ):
        yardstick = Yardstick(right.detach().cpu(), other.detach().cpu())
        yardstick.assert_close(mine, eps, case.formula.gamma)


@pytest.fixture(params=["kept tiles", "recomputed tiles"])
def _tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "recomputed tiles":
        monkeypatch.setattr(cpu, "KEPT_BYTES", 0)
    return


@pytest.mark.backends
@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("target", SMALL_TILES, ids=str)
def test_matrix_of_pairs_gives_what_dense_masks_give(case, target, monkeypatch) -> None:
    monkeypatch.setattr(choice, "_BEST_BACKEND", {"cpu": target.backend})
    if target.backend != "cpu":
        without_extension(monkeypatch)
    kinds = draw_kinds(case.n, case.m or case.n, case.m is None)
    for dtype in target.dtypes:
        check(
            case,
            kinds,
            dtype,
            lambda embeddings, ref_emb: matrix_logsumexp(
                embeddings,
                ref_emb,
                pair_matrix(as_indices(kinds), *kinds.shape),
                formula=case.formula,
                normalize=case.normalize,
            ),
        )


@pytest.mark.parametrize("chunk", [100, 2**20])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gathered_pairs_give_what_dense_masks_give(case, chunk, monkeypatch) -> None:
    monkeypatch.setattr(gathered, "_CHUNK", chunk * case.d)
    kinds = draw_kinds(case.n, case.m or case.n, False)
    kinds[:, 8:] = 0
    for dtype in (torch.float64, torch.float32, torch.float16):
        check(
            case,
            kinds,
            dtype,
            lambda embeddings, ref_emb: gathered_logsumexp(
                embeddings,
                ref_emb,
                unique_pairs(as_indices(kinds), *kinds.shape),
                formula=case.formula,
                normalize=case.normalize,
            ),
        )


@pytest.mark.backends
@pytest.mark.parametrize("target", BACKENDS)
def test_pair_that_its_rows_call_different_things(target, monkeypatch) -> None:
    monkeypatch.setattr(choice, "_BEST_BACKEND", {"cpu": target})
    case = Case("random")
    kinds = draw_kinds(case.n, case.n, False)
    assert ((kinds == 1) & (kinds.T == 2)).any()
    check(
        case,
        kinds,
        torch.float32,
        lambda embeddings, _: matrix_logsumexp(
            embeddings, None, pair_matrix(as_indices(kinds), *kinds.shape), formula=case.formula
        ),
    )


@pytest.mark.backends
@pytest.mark.parametrize("target", BACKENDS)
@pytest.mark.parametrize("way", ["matrix", "gathered"])
def test_nan_reaches_exactly_the_rows_that_list_it(target, way, monkeypatch) -> None:
    monkeypatch.setattr(choice, "_BEST_BACKEND", {"cpu": target})
    embeddings = torch.randn(9, 4)
    embeddings[3, 1] = float("nan")
    indices = PairIndices(
        torch.tensor([0, 3, 5]), torch.tensor([1, 1, 3]), torch.tensor([0, 2]), torch.tensor([3, 4])
    )
    if way == "matrix":
        lse = matrix_logsumexp(
            embeddings, None, pair_matrix(indices, 9, 9), formula=CircleFormula()
        )
    else:
        lse = gathered_logsumexp(
            embeddings, None, unique_pairs(indices, 9, 9), formula=CircleFormula()
        )
    assert [each.isnan().nonzero().flatten().tolist() for each in lse] == [[3, 5], [0]]


def test_labels_are_found_from_their_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    labels, others = (torch.randint(0, 9, (n,), generator=generator) for n in (30, 45))
    for columns, with_diagonal in ((labels, False), (others, True), (labels, True)):
        kinds = label_matrix(labels, columns, with_diagonal=with_diagonal)
        found = labels_of(kinds, with_diagonal=with_diagonal)
        assert found is not None
        assert torch.equal(
            found[0][:, None] == found[1][None, :], labels[:, None] == columns[None, :]
        )
        kinds[4, 7] = 3 - kinds[4, 7]
        assert labels_of(kinds, with_diagonal=with_diagonal) is None
        kinds[4, 7] = 0
        assert labels_of(kinds, with_diagonal=with_diagonal) is None


@pytest.mark.parametrize("extension", [True, False])
def test_index_out_of_range_is_an_error_and_a_negative_one_counts_from_the_end(
    extension: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not extension:
        without_extension(monkeypatch)

    def indices(row: int, column: int) -> PairIndices:
        empty = torch.empty(0, dtype=torch.int64)
        return PairIndices(torch.tensor([row]), torch.tensor([column]), empty, empty)

    for row, column in ((3, 0), (0, 5), (-4, 0)):
        with pytest.raises(IndexError):
            pair_matrix(indices(row, column), 3, 5)
        with pytest.raises(IndexError):
            unique_pairs(indices(row, column), 3, 5)
    with pytest.raises(ValueError, match="2 rows and 1 columns"):
        pair_matrix(
            PairIndices(torch.tensor([0, 1]), torch.tensor([0]), *torch.empty(2, 0).long()), 3, 5
        )
    assert pair_matrix(indices(-1, -2), 3, 5).nonzero().tolist() == [[2, 3]]
    rows, columns, positive = unique_pairs(indices(-1, -2), 3, 5)
    assert (rows.item(), columns.item(), positive.item()) == (2, 3, True)


@pytest.mark.parametrize("references", [True, False])
def test_hooks_on_saved_tensors_may_lose_the_padding(references: bool, monkeypatch) -> None:
    """As copies do, to the CPU's memory for example. What the kernel would read behind them changes
    no number, so what it is told is looked at."""
    told = []
    describe = cpu.describe
    monkeypatch.setattr(
        cpu,
        "describe",
        lambda extension, problem, *kept: (
            told.append(problem.listed) or describe(extension, problem, *kept)
        ),
    )
    embeddings, ref_emb = torch.randn(2, 100, 8).requires_grad_().unbind()
    formula = CircleFormula(gamma=8)
    kinds = pair_matrix(as_indices(draw_kinds(100, 100, not references)), 100, 100)
    gradients = []

    def copied(saved: Tensor) -> Tensor:
        return saved.clone(memory_format=torch.contiguous_format)

    for hooks in (
        contextlib.nullcontext(),
        torch.autograd.graph.saved_tensors_hooks(copied, lambda saved: saved),
    ):
        with hooks:
            statistics = matrix_logsumexp(
                embeddings, ref_emb if references else None, kinds, formula=formula
            )
        total = sum(value[value.isfinite()].sum() for value in statistics)
        gradients.append(torch.autograd.grad(total, embeddings)[0])
    assert torch.equal(*gradients)
    assert len(told) == 4
    for listed in told:
        assert listed.stride() == (192, 1)
        assert listed.untyped_storage().nbytes() - listed.storage_offset() >= 192 * 192


def test_padding_is_a_panel_of_the_kernel() -> None:
    extension = pytest.importorskip("circle_kernels._cpu")
    assert extension.PANEL == problem.LISTED_MULTIPLE
