"""One batch over several processes: the value and the gradient of one process."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.distributed as dist

from circle_kernels import CircleFormula, circle_loss, pair_logsumexp, unified_loss
from tests.distributed.one_process import Case, compare, compute, own_rows, reduce_gradient, side
from tests.distributed.processes import run_processes

EXCHANGES = ("gather", "ring")
SIZES = {
    1: ((7,),),
    2: ((5, 9), (0, 8), (0, 0), (1, 0), (1, 1)),
    3: ((5, 3, 0), (1, 1, 7), (0, 0, 9)),
    4: ((3, 0, 6, 2), (0, 0, 0, 5)),
}
OPTIONS = (
    {},
    {"scope": "batch"},
    {"reduction": "sum"},
    {"reduction": "mean_all"},
    {"reduction": "none"},
    {"scope": "batch", "reduction": "none", "grad_reduction": "sum"},
    {"reduction": "none", "grad_reduction": "sum"},
    {"gamma": 256.0, "m": 0.25},
    {"detach_weights": False},
    {"normalize": False, "gamma": 2.0},
    {"backend": "tiled"},
    {"backend": "reference"},
)
unified = functools.partial(unified_loss, m=0.1, gamma=8.0)


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("world_size", SIZES)
def test_value_and_averaged_gradient_are_those_of_one_process(
    world_size: int, exchange: str
) -> None:
    cases = [
        Case(sizes, references, {"exchange": exchange, **options})
        for sizes in SIZES[world_size]
        for options in OPTIONS
        for references in (None, sizes[::-1])
    ]
    cases += [
        Case(sizes, references, {"exchange": exchange}, unified)
        for sizes in SIZES[world_size]
        for references in (None, (2,) * world_size)
    ]
    run_processes(world_size, compare, cases)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_process_without_positives_takes_part(exchange: str) -> None:
    """With 50 classes most rows have no positive, and here a whole process has none."""
    cases = [Case((6, 5, 7), None, {"exchange": exchange}, classes=count) for count in (1, 50)]
    run_processes(3, compare, cases)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_equal_batches_need_no_header(exchange: str) -> None:
    options = {"exchange": exchange, "same_sizes": True}
    cases = [
        Case((size,) * 3, references, options)
        for size in (0, 1, 5)
        for references in (None, (4,) * 3)
    ]
    run_processes(3, compare, cases)


def _take_steps(rank: int, steps: int, exchange: str) -> None:
    """Training by plain SGD over batches of random sizes, beside one process with all rows."""
    generator = torch.Generator().manual_seed(0)
    ours, alone = (torch.eye(6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for step in range(steps):
        sizes = torch.randint(0, 6, (3,), generator=generator).tolist()
        case = Case(sizes, None, {"exchange": exchange, "gamma": 8.0})
        embeddings, labels = side(case, sizes, seed=step)
        rows = own_rows(sizes, rank)
        circle_loss(
            embeddings[rows] @ ours, labels[rows], group="world", exchange=exchange, gamma=8.0
        ).backward()
        ours.grad = reduce_gradient(ours.grad, case)
        circle_loss(embeddings @ alone, labels, gamma=8.0).backward()
        for weight in (ours, alone):
            with torch.no_grad():
                weight -= 1e-3 * weight.grad
            weight.grad = None
        torch.testing.assert_close(ours, alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_hundred_steps_of_random_sizes_do_not_drift(exchange: str) -> None:
    run_processes(3, _take_steps, 100, exchange)


def _compare_sums(rank: int, exchange: str) -> None:
    """Upstream gradients that only this rank knows reach all rows that its sums have seen."""
    sizes = (4, 0, 7)
    case = Case(sizes)
    embeddings, labels = side(case, sizes, seed=3)
    upstream = torch.rand(
        2, sum(sizes), dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    formula = CircleFormula(m=0.25, gamma=16)
    rows = own_rows(sizes, rank)
    results = []
    for part, group in ((rows, "world"), (slice(None), None)):
        sharing = {} if group is None else {"group": group, "exchange": exchange}
        x = embeddings[part].clone().requires_grad_()
        sums = torch.stack(pair_logsumexp(x, labels[part], formula=formula, **sharing))
        sums.masked_fill(sums == -torch.inf, 0).mul(upstream[:, part]).sum().backward()
        results.append((sums.detach(), x.grad))
    (ours, gradient), (expected, wanted) = results
    torch.testing.assert_close(ours, expected[:, rows], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, wanted[rows], rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_sums_of_local_rows_have_the_gradient_of_all_that_is_made_of_them(exchange: str) -> None:
    run_processes(3, _compare_sums, exchange)


def _keep_what_was(rank: int, exchange: str) -> None:
    """Labels, and references that need no gradient, may change before the backward pass."""
    case = Case((5, 4), (3, 3))
    (embeddings, labels), (references, ref_labels) = (
        side(case, sizes, seed) for seed, sizes in enumerate(((5, 4), (3, 3)))
    )
    gradients = []
    for change in (False, True):
        rows, refs = own_rows((5, 4), rank), own_rows((3, 3), rank)
        x = embeddings[rows].clone().requires_grad_()
        others = [labels[rows].clone(), references[refs].clone(), ref_labels[refs].clone()]
        loss = circle_loss(x, *others, group="world", exchange=exchange)
        if change:
            for each in others:
                each.zero_()
        loss.backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_what_changes_after_the_loss_does_not_matter(exchange: str) -> None:
    run_processes(2, _keep_what_was, exchange)


def _share_one_row(rank: int) -> None:
    """Of sizes of 1 strides say nothing, and may be anything."""
    pairs = torch.arange(4).view(1, 4) + 4 * rank
    embeddings = torch.randn(
        1, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(rank)
    )
    for exchange in EXCHANGES:
        loss = circle_loss(embeddings[:, ::12], pairs[:, 1], group="world", exchange=exchange)
        assert loss == 0
        losses = circle_loss(
            embeddings[:, ::2], torch.tensor(3).expand(1), group="world", exchange=exchange
        )
        assert losses == 0


def test_strides_of_one_row_do_not_matter() -> None:
    run_processes(2, _share_one_row)


def _skip(rank: int, exchange: str) -> None:
    """One row weighs references evenly: each of them is a small part of all, not of those here."""
    generator = torch.Generator().manual_seed(0)
    sizes, share = (390, 10), 0.1
    rows, references = torch.nn.functional.normalize(
        torch.randn(2, 400, 4, dtype=torch.float64, generator=generator), dim=2
    )
    formula = CircleFormula(m=0.25, gamma=1.0)
    own, labels = own_rows(sizes, rank), torch.zeros(sizes[rank], dtype=torch.int64)
    gradients = []
    for skip_below in (0.0, share):
        refs = references[own].clone().requires_grad_()
        _, sums = pair_logsumexp(
            rows[own], labels, refs, labels + 1, formula=formula, normalize=False,
            skip_below=skip_below, group="world", exchange=exchange, backend="cpu",
        )  # fmt: skip
        (sums[0] * (rank == 0)).backward()
        gradients.append(refs.grad)
    error = (gradients[1] - gradients[0]).norm(dim=1).max()
    assert error <= share / 400 * formula.max_slope()


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_what_is_skipped_is_a_share_of_all_pairs(exchange: str) -> None:
    run_processes(2, _skip, exchange)


def _hook(rank: int) -> None:
    """What hooks on saved tensors give back of no rows has strides of 0."""
    rows, labels = side(Case((3,)), (3,), 0)
    for exchange in EXCHANGES:
        own = rows[: 3 * (rank == 0)].clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: tensor.numpy().copy(), torch.from_numpy
        ):
            loss = circle_loss(own, labels[: len(own)], group="world", exchange=exchange)
        loss.backward()
        assert own.grad.shape == own.shape


def test_hooks_on_saved_tensors_may_rebuild_them() -> None:
    run_processes(2, _hook)


def _have_no_rows(rank: int) -> None:
    """Rows of nobody need no gradient to take part in the backward pass of the others."""
    rows, labels = side(Case((4,)), (4,), 0)
    weight = torch.eye(6, dtype=torch.float64, requires_grad=True)
    mine = rows @ weight if rank == 0 else torch.empty(0, 6, dtype=torch.float64)
    refs = rows.clone().requires_grad_()
    for exchange in EXCHANGES:
        circle_loss(mine, labels[: len(mine)], group="world", exchange=exchange).backward(
            retain_graph=True
        )
        # Nobody's rows need one here, but all references do; and then nothing does.
        for each in (refs, refs.detach()):
            sides = mine.detach(), labels[: len(mine)], each, labels
            loss = circle_loss(*sides, group="world", exchange=exchange)
            if loss.requires_grad:
                loss.backward()
        with torch.no_grad():
            circle_loss(mine, labels[: len(mine)], group="world", exchange=exchange)
    if rank == 0:
        alone = torch.eye(6, dtype=torch.float64, requires_grad=True)
        circle_loss(rows @ alone, labels).backward()
        torch.testing.assert_close(weight.grad, 4 * alone.grad)  # two processes, two losses


def test_a_process_without_rows_needs_no_network() -> None:
    run_processes(2, _have_no_rows)


def _half_of_the_processes(rank: int) -> None:
    groups = [dist.new_group(each) for each in ([0, 2], [1, 3])]
    mesh = torch.distributed.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    with pytest.raises(ValueError, match=r"mesh of 2 dimensions.*mesh\['dp'\].*_flatten"):
        circle_loss(*side(Case((3,)), (3,), 0), group=mesh)
    pairs = {
        "new_group": groups[rank % 2],
        "mesh": mesh["dp"],
        "subgroup of a mesh": mesh["dp"].get_group(),
    }
    for group in pairs.values():
        place = dist.get_group_rank(
            group if isinstance(group, dist.ProcessGroup) else group.get_group(), rank
        )
        for exchange in EXCHANGES:
            case = Case((4, 5), None, {"group": group, "exchange": exchange})
            loss, (gradient,) = compute(case, place)
            dist.all_reduce(
                gradient, group=group if isinstance(group, dist.ProcessGroup) else group.get_group()
            )
            expected, (wanted,) = compute(case, None)
            torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(gradient / 2, wanted, rtol=1e-12, atol=1e-11)


def test_groups_and_meshes_are_some_of_the_processes() -> None:
    run_processes(4, _half_of_the_processes)
