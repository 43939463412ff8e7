"""What every backend does with the inputs that break other implementations."""

from __future__ import annotations

import math

import pytest
import torch

from circle_kernels import (
    CircleFormula,
    UnifiedFormula,
    available_backends,
    circle_loss,
    pair_logsumexp,
    unified_loss,
)
from tests.support.cases import Case
from tests.support.targets import INTERPRETED, Target, for_every_backend
from tests.support.yardstick import gradients

pytestmark = pytest.mark.backends


def batch(target: Target, n: int = 12, d: int = 8, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(n * d)
    embeddings = torch.randn(n, d, generator=generator).to(target.device, dtype)
    return embeddings.requires_grad_(), (torch.arange(n) % 3).to(target.device)


@for_every_backend
def test_row_without_positives_has_zero_loss_and_gradient(target: Target) -> None:
    embeddings, labels = batch(target)
    references, ref_labels = embeddings.detach()[:5], torch.full((5,), 0, device=target.device)
    ref_labels[0] = 1
    losses = circle_loss(
        embeddings, labels, references, ref_labels, reduction="none", backend=target.backend
    )
    losses.sum().backward()
    without_positives = labels == 2
    assert (losses[without_positives] == 0).all()
    assert (embeddings.grad[without_positives] == 0).all()
    assert (losses[~without_positives] > 0).all()
    mean = circle_loss(embeddings, labels, references, ref_labels, backend=target.backend)
    torch.testing.assert_close(mean, losses[~without_positives].mean())
    mean_all = circle_loss(
        embeddings, labels, references, ref_labels, reduction="mean_all", backend=target.backend
    )
    torch.testing.assert_close(mean_all, losses.mean())


@for_every_backend
def test_row_without_negatives_has_zero_loss_and_gradient(target: Target) -> None:
    embeddings, labels = batch(target)
    labels = torch.zeros_like(labels)
    losses = circle_loss(embeddings, labels, reduction="none", backend=target.backend)
    losses.sum().backward()
    assert (losses == 0).all()
    assert (embeddings.grad == 0).all()


@for_every_backend
@pytest.mark.parametrize("reduction", ["mean", "mean_all", "sum"])
@pytest.mark.parametrize("scope", ["anchor", "batch"])
@pytest.mark.parametrize(("n", "m"), [(0, None), (1, None), (2, None), (0, 3), (3, 0), (0, 0)])
def test_nothing_to_compare_is_zero_attached_to_the_graph(
    target: Target, n: int, m: int | None, scope: str, reduction: str
) -> None:
    embeddings = torch.randn(n, 4, device=target.device, requires_grad=True)
    labels = torch.arange(n, device=target.device)
    references = None if m is None else torch.randn(m, 4, device=target.device, requires_grad=True)
    ref_labels = None if m is None else torch.arange(10, 10 + m, device=target.device)
    loss = circle_loss(
        embeddings,
        labels,
        references,
        ref_labels,
        scope=scope,
        reduction=reduction,
        backend=target.backend,
    )
    assert loss.shape == ()
    assert loss == 0
    loss.backward()
    assert embeddings.grad.shape == (n, 4)
    assert (embeddings.grad == 0).all()
    if references is not None:
        assert (references.grad == 0).all()


@for_every_backend
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("formula", [CircleFormula(), UnifiedFormula(m=0.2)], ids=lambda f: f.name)
def test_bad_numbers_make_every_loss_that_saw_them_nan(
    target: Target, bad: float, normalize: bool, formula: CircleFormula | UnifiedFormula
) -> None:
    loss = circle_loss if formula.name == "circle" else unified_loss
    for dtype in target.dtypes:
        # A width of 1 leaves an infinity no second coordinate to become NaN with.
        for width in (1, 5):
            embeddings, labels = batch(target, d=width, dtype=dtype)
            embeddings = embeddings.detach().clone()
            embeddings[4, 0] = bad
            options = {
                "m": formula.m,
                "gamma": formula.gamma,
                "normalize": normalize,
                "reduction": "none",
                "backend": target.backend,
            }
            assert loss(embeddings, labels, **options).isnan().all()
            clean, ref_labels = batch(target, n=9, d=width, dtype=dtype)
            rows = loss(embeddings, labels, clean.detach(), ref_labels, **options)
            assert rows[4].isnan()
            assert rows[torch.arange(12) != 4].isfinite().all()
            assert loss(clean.detach(), ref_labels, embeddings, labels, **options).isnan().all()


@for_every_backend
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bad", [1.0, math.nan, math.inf])
@pytest.mark.parametrize(("n", "m"), [(1, None), (2, None), (40, None), (12, 1), (12, 40)])
def test_set_without_pairs_is_empty_whatever_its_row_holds(
    target: Target, n: int, m: int | None, bad: float, normalize: bool
) -> None:
    for dtype in target.dtypes:
        embeddings, _ = batch(target, n=n, dtype=dtype)
        embeddings = embeddings.detach().clone()
        labels = torch.zeros(n, dtype=torch.int64, device=target.device)
        rows = sorted({0, n // 2, n - 1})
        for row in rows:
            embeddings[row, 0] = bad
            labels[row] = 1 + row  # in a class of its own
        references: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
        if m is not None:
            references = (batch(target, n=m, dtype=dtype)[0].detach(), labels.new_zeros(m))
        lse_pos, lse_neg = pair_logsumexp(
            embeddings,
            labels,
            *references,
            formula=CircleFormula(),
            normalize=normalize,
            backend=target.backend,
        )
        assert (lse_pos[rows] == -math.inf).all()
        without_negatives = torch.ones_like(labels, dtype=torch.bool)
        without_negatives[rows] = False
        if m is None:
            without_negatives[:] = n == 1
        assert torch.equal(lse_neg == -math.inf, without_negatives)
        losses = circle_loss(
            embeddings,
            labels,
            *references,
            normalize=normalize,
            reduction="none",
            backend=target.backend,
        )
        if n == 1:
            assert (losses == 0).all()
        else:
            # Nothing plus what saw a bad number is not nothing.
            assert torch.equal(losses[rows].isnan(), torch.full_like(losses[rows], bad != 1) == 1)


def scaled_by_powers(values: torch.Tensor, powers: torch.Tensor) -> torch.Tensor:
    """Rows times powers of two, in two steps since a power may be beyond the dtype."""
    first = powers // 2
    for half in (2.0 ** first.double(), 2.0 ** (powers - first).double()):
        values = values * half.to(values.dtype)[:, None]
    return values


@for_every_backend
@pytest.mark.parametrize("sides", ["batch", "embeddings", "references", "both"])
@pytest.mark.parametrize("highest", [0.49, 0.7, 0.97, 1])  # of the exponents there are
@pytest.mark.parametrize("d", [5, 16])  # copied by the Triton kernels, and not
def test_power_of_two_in_a_row_only_divides_its_gradient(
    target: Target, d: int, highest: float, sides: str, request: pytest.FixtureRequest
) -> None:
    """Also where squares overflow and, at the end of the exponents, where the norm does."""
    if highest == 1 and target.backend == "cpu":
        reason = "the C++ kernel takes a norm beyond its type, and squares beyond float64, for inf"
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    for dtype in target.dtypes:
        if dtype == torch.float16 or (dtype == torch.float64 and highest < 1):
            continue  # norms of float16 are far from the end of float32
        largest = int(highest * math.frexp(torch.finfo(dtype).max)[1])
        with_references = sides != "batch"
        inputs = Case("random", n=24, m=20 if with_references else None, d=d).tensors(
            dtype, target.device
        )
        powers, results = [], []
        for place in (0, 2):
            if inputs[place] is None:
                continue
            values = inputs[place].detach()
            # Entries below 1, the largest of each row at least a half.
            values = scaled_by_powers(values, -values.abs().amax(1).float().frexp().exponent)
            power = torch.zeros(len(values), device=target.device)
            if sides in ("batch", "both", ("embeddings", "references")[place // 2]):
                power[::2] = largest
                power[1::4] = largest // 2
                power[3::8] = -20
            inputs[place] = values
            powers.append(power.to(torch.int32))
        for scaled in (False, True):
            leaves, arguments = [], list(inputs)
            for place, power in zip((0, 2), powers, strict=False):
                values = inputs[place]
                leaves.append(
                    (scaled_by_powers(values, power) if scaled else values).requires_grad_()
                )
                assert leaves[-1].isfinite().all()
                arguments[place] = leaves[-1]
            losses = circle_loss(*arguments, reduction="none", backend=target.backend)
            assert losses.isfinite().all()
            results.append((losses, torch.autograd.grad(losses.sum(), leaves)))
        (losses, grads), (scaled_losses, scaled_grads) = results
        assert torch.equal(scaled_losses, losses)
        for grad, scaled_grad, power in zip(grads, scaled_grads, powers, strict=True):
            expected = scaled_by_powers(grad.double(), -power)
            smallest = torch.finfo(dtype).smallest_normal
            # What lies well above the subnormal numbers is the same to the last bit.
            normal = expected.abs() >= 2.0**24 * smallest
            assert normal.any()
            assert torch.equal(scaled_grad[normal].double(), expected[normal])
            # Near them sums were rounded like subnormal numbers before the projection.
            eps = torch.finfo(dtype).eps
            allowed = eps * (64 * smallest + expected.abs().amax(1, keepdim=True))
            assert ((scaled_grad.double() - expected).abs() <= allowed).all()


@for_every_backend
@pytest.mark.parametrize("formula", [CircleFormula(), UnifiedFormula(m=0.2)], ids=lambda f: f.name)
def test_unnormalised_rows_may_be_as_large_as_their_products_allow(
    target: Target, formula: CircleFormula | UnifiedFormula
) -> None:
    for dtype in target.dtypes:
        if torch.finfo(dtype).max < 2.0**100:
            continue
        case = Case("random", n=24, m=20, d=16, formula=formula, normalize=False)
        embeddings, labels, references, ref_labels = case.tensors(dtype, target.device)
        results = [
            pair_logsumexp(
                embeddings.detach() * factor,
                labels,
                references.detach() / factor,
                ref_labels,
                formula=formula,
                normalize=False,
                backend=target.backend,
            )
            for factor in (1.0, 2.0**-80, 2.0**80)
        ]
        for result in results[1:]:
            for statistic, expected in zip(result, results[0], strict=True):
                assert torch.equal(statistic, expected)


@for_every_backend
def test_product_beyond_the_dtype_is_no_finite_loss(target: Target) -> None:
    """Its sign may be that of a partial sum: clamped it would pass as a good pair."""
    for dtype in target.dtypes:
        if dtype == torch.float16:
            continue
        half = 2.0 ** (math.frexp(torch.finfo(dtype).max)[1] - 1)
        embeddings = torch.tensor([[half, -half, -half, -half]], dtype=dtype, device=target.device)
        for sign in (1, -1):
            references = torch.tensor([[2, 1, 1.5, 1], [0, 0, 1, 0]], dtype=dtype)
            losses = circle_loss(
                embeddings * sign,
                torch.zeros(1, dtype=torch.int64, device=target.device),
                references.to(target.device),
                torch.tensor([0 if sign == 1 else 1, 1 if sign == 1 else 0], device=target.device),
                normalize=False,
                reduction="none",
                backend=target.backend,
            )
            assert not losses.isfinite().any()


@for_every_backend
@pytest.mark.parametrize("m", [None, 40])
@pytest.mark.parametrize("gamma", [80.0, 512.0])
@pytest.mark.parametrize("octaves", [-100, -40, 33, 40, 100])
def test_gradient_is_as_large_as_what_arrives_from_above(
    target: Target, octaves: int, gamma: float, m: int | None
) -> None:
    for dtype in target.dtypes:
        if dtype == torch.float16:
            continue  # test_loss_scaling_does_not_overflow
        case = Case("random", n=150, m=m, d=16, formula=CircleFormula(m=0.25, gamma=gamma))
        inputs = case.tensors(dtype, target.device)
        statistics = pair_logsumexp(*inputs, formula=case.formula, backend=target.backend)
        wanted = [value for value in inputs[::2] if value is not None]
        upstream = [torch.linspace(-0.3, 0.7, 150, dtype=s.dtype).to(s.device) for s in statistics]
        expected, scaled = (
            torch.autograd.grad(
                statistics, wanted, [value * factor for value in upstream], retain_graph=True
            )
            for factor in (1.0, 2.0**octaves)
        )
        for one, other in zip(expected, scaled, strict=True):
            size = one.abs().max().item()
            torch.testing.assert_close(
                other.double() * 2.0**-octaves,
                one.double(),
                rtol=0,
                atol=torch.finfo(dtype).eps * (16 + 2 * gamma) * size,
            )


@for_every_backend
@pytest.mark.parametrize("m", [None, 9])
def test_zero_vector_has_similarity_zero_and_a_finite_gradient(
    target: Target, m: int | None
) -> None:
    for dtype in target.dtypes:
        embeddings, labels = batch(target, dtype=dtype)
        embeddings = embeddings.detach().clone()
        embeddings[3] = 0
        embeddings.requires_grad_()
        references = (None, None) if m is None else batch(target, n=m, dtype=dtype)
        losses = circle_loss(
            embeddings, labels, *references, reduction="none", backend=target.backend
        )
        losses.sum().backward()
        assert embeddings.grad.isfinite().all()
        truth = circle_loss(
            embeddings.detach().double(),
            labels,
            *(value.double() if value is references[0] and m else value for value in references),
            reduction="none",
            backend="reference",
        )
        torch.testing.assert_close(losses.double(), truth, rtol=1e-4, atol=1e-3)


@for_every_backend
@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded", "sliced"])
def test_layout_of_the_inputs_does_not_matter(target: Target, layout: str) -> None:
    for dtype in target.dtypes:
        generator = torch.Generator().manual_seed(3)
        base = torch.randn(48, 48, generator=generator).to(target.device, dtype)
        embeddings = {
            "transposed": base.T[:20, :12],
            "strided": base[::2, ::3][:20, :12],
            "expanded": base[:1, :12].expand(20, 12),
            "sliced": base[3:23, 5:17],
        }[layout]
        labels = (torch.arange(40, device=target.device) % 5)[::2]
        results = []
        for value, value_labels in (
            (embeddings, labels),
            (embeddings.contiguous(), labels.contiguous()),
        ):
            value = value.detach().requires_grad_()
            loss = circle_loss(value, value_labels, backend=target.backend)
            results.append((loss, *torch.autograd.grad(loss, value)))
        (loss, grad), (expected, expected_grad) = results
        # Not bitwise: matrix products may add up differently for another layout.
        eps = 1024 * torch.finfo(dtype).eps
        torch.testing.assert_close(loss, expected, rtol=eps, atol=0)
        torch.testing.assert_close(
            grad, expected_grad, rtol=0, atol=eps * expected_grad.abs().max().item()
        )


@for_every_backend
@pytest.mark.parametrize("side", ["embeddings", "ref_emb"])
def test_gradient_to_one_side_only(target: Target, side: str) -> None:
    inputs = Case("random", n=20, m=14, d=6).tensors(torch.float32, target.device)
    both = gradients(
        *pair_logsumexp(*inputs, formula=CircleFormula(), backend=target.backend), inputs
    )
    frozen = 2 if side == "embeddings" else 0
    inputs[frozen] = inputs[frozen].detach()
    one = gradients(
        *pair_logsumexp(*inputs, formula=CircleFormula(), backend=target.backend), inputs
    )
    assert len(one) == 1
    assert torch.equal(one[0], both[0 if side == "embeddings" else 1])


@for_every_backend
def test_without_gradients_nothing_is_kept(target: Target) -> None:
    embeddings, labels = batch(target)
    with torch.no_grad():
        loss = circle_loss(embeddings, labels, backend=target.backend)
    assert not loss.requires_grad
    torch.testing.assert_close(
        loss, circle_loss(embeddings, labels, backend=target.backend).detach(), rtol=0, atol=0
    )


@for_every_backend
def test_second_derivative_is_a_clear_error(target: Target) -> None:
    embeddings, labels = batch(target)
    loss = circle_loss(embeddings, labels, backend=target.backend)
    (grad,) = torch.autograd.grad(loss, embeddings, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        grad.sum().backward()


@pytest.mark.parametrize("scope", ["anchor", "batch"])
def test_reference_backend_has_the_second_derivative(scope: str) -> None:
    embeddings, labels = batch(Target("reference", "cpu", ()), dtype=torch.float64)
    assert torch.autograd.gradgradcheck(
        lambda leaf: circle_loss(
            leaf, labels, gamma=8, scope=scope, detach_weights=False, backend="reference"
        ),
        embeddings,
    )


@for_every_backend
@pytest.mark.parametrize("d", [8, 300])
def test_results_are_bitwise_the_same_from_run_to_run(target: Target, d: int) -> None:
    for dtype in target.dtypes:
        embeddings, labels = batch(target, n=150, d=d, dtype=dtype)
        runs = []
        for _ in range(3):
            loss = circle_loss(embeddings, labels, backend=target.backend)
            runs.append((loss, *torch.autograd.grad(loss, embeddings)))
        for loss, grad in runs[1:]:
            assert torch.equal(loss, runs[0][0])
            assert torch.equal(grad, runs[0][1])


@for_every_backend
@pytest.mark.parametrize("autocast_dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_nothing_down(target: Target, autocast_dtype: torch.dtype) -> None:
    embeddings, labels = batch(target, n=40, d=16)
    expected = circle_loss(embeddings, labels, backend=target.backend)
    (expected_grad,) = torch.autograd.grad(expected, embeddings)
    with torch.autocast(target.device, dtype=autocast_dtype):
        loss = circle_loss(embeddings, labels, backend=target.backend)
        assert loss.dtype == torch.float32
        (grad,) = torch.autograd.grad(loss, embeddings)
    assert torch.equal(loss, expected)
    assert torch.equal(grad, expected_grad)


@for_every_backend
def test_loss_scaling_does_not_overflow(target: Target) -> None:
    """Gradients at a loss scale of 65536 are those without it, times 65536, in range or not."""
    for dtype in target.dtypes:
        embeddings, labels = batch(target, n=64, d=16, dtype=dtype)
        loss = circle_loss(embeddings, labels, gamma=256, m=0.25, backend=target.backend)
        (grad,) = torch.autograd.grad(loss, embeddings, retain_graph=True)
        (scaled,) = torch.autograd.grad(loss * 65536, embeddings)
        expected = (grad.double() * 65536).clamp(-torch.inf, torch.inf)
        in_range = expected.abs() < torch.finfo(dtype).max / 2
        assert in_range.any()
        scale = expected[in_range].abs().max().item()
        torch.testing.assert_close(
            scaled[in_range].double(),
            expected[in_range],
            rtol=2 * torch.finfo(dtype).eps,
            atol=8 * torch.finfo(dtype).eps * scale,
        )


@for_every_backend
@pytest.mark.parametrize("m", [None, 40])
@pytest.mark.parametrize(
    ("regime", "gamma"), [("random", 16.0), ("clusters", 80.0), ("clusters", 512.0)]
)
@pytest.mark.parametrize("exponent", [-100, 33, 45, 100])
def test_gradients_are_in_proportion_to_upstream_gradients_of_any_size(
    target: Target, m: int | None, regime: str, gamma: float, exponent: int
) -> None:
    """Neither out of the exponent's range on the way, nor into nothing."""
    formula = CircleFormula(m=0.25, gamma=gamma)
    for dtype in target.dtypes:
        if dtype == torch.float16:
            continue  # has no such gradients
        # Spread out: a tile's exponentials then fill the exponent's range.
        inputs = Case(regime, n=130, m=m, d=12).tensors(dtype, target.device)
        statistics = pair_logsumexp(*inputs, formula=formula, backend=target.backend)
        wanted = [value for value in inputs[::2] if value is not None]
        upstream = torch.linspace(-0.5, 1, 2 * 130, dtype=statistics[0].dtype, device=target.device)
        ones, scaled = (
            torch.autograd.grad(
                statistics, wanted, tuple(factor * upstream.view(2, -1)), retain_graph=True
            )
            for factor in (1.0, 2.0**exponent)
        )
        for value, of_ones in zip(scaled, ones, strict=True):
            eps, expected = torch.finfo(dtype).eps, of_ones.double()
            torch.testing.assert_close(
                value.double() * 2.0**-exponent,
                expected,
                rtol=2 * eps,
                atol=(16 + 2 * gamma) * eps * expected.abs().max().item(),  # as cases.Yardstick
            )


@for_every_backend
@pytest.mark.parametrize("skip_below", [0.0, 0.5])
@pytest.mark.parametrize("m", [None, 40])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_upstream_gradients_that_are_not_finite_reach_whoever_they_reach_in_eager(
    target: Target, bad: float, m: int | None, skip_below: float
) -> None:
    formula = CircleFormula(m=0.25, gamma=256)
    for dtype in target.dtypes:
        for kind in (0, 1):
            broken = []
            for backend, skipped in (("reference", 0.0), (target.backend, skip_below)):
                inputs = Case("random", n=130, m=m, d=12).tensors(dtype, target.device)
                statistics = pair_logsumexp(
                    *inputs, formula=formula, skip_below=skipped, backend=backend
                )
                upstream = torch.ones(2, 130, dtype=statistics[0].dtype, device=target.device)
                row = int((statistics[0] + statistics[1]).isfinite().nonzero()[0])
                upstream[kind, row] = bad
                wanted = [value for value in inputs[::2] if value is not None]
                grads = torch.autograd.grad(statistics, wanted, tuple(upstream))
                broken.append([~grad.isfinite().all(1) for grad in grads])
            for ours, eager in zip(broken[1], broken[0], strict=True):
                assert eager.any()
                assert torch.equal(ours, eager)


@for_every_backend
def test_labels_of_any_integer_dtype(target: Target) -> None:
    embeddings, labels = batch(target)
    expected = circle_loss(embeddings, labels, backend=target.backend)
    for dtype in (torch.int8, torch.uint8, torch.int16, torch.int32):
        assert torch.equal(
            circle_loss(embeddings, labels.to(dtype), backend=target.backend), expected
        )


@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
def test_bfloat16_is_not_interpreted_and_the_error_says_what_is() -> None:
    embeddings, labels = torch.randn(12, 8, dtype=torch.bfloat16), torch.arange(12) % 3
    with pytest.raises(RuntimeError, match=r"'triton' cannot serve torch\.bfloat16 .* float16"):
        circle_loss(embeddings, labels, backend="triton")
    assert "float32 and float16" in available_backends()["triton"]
    expected = circle_loss(embeddings.double(), labels, backend="reference")
    loss = circle_loss(embeddings, labels)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
