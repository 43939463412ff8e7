"""Bad arguments: every error names the argument, what came and what was wanted."""

from __future__ import annotations

import inspect
import re

import pytest
import torch

from circle_kernels import (
    CircleFormula,
    CircleLoss,
    circle_loss,
    circle_loss_from_similarity,
    pair_logsumexp,
    unified_loss,
)
from circle_kernels.arguments import FLOATING_DTYPES, INTEGER_DTYPES, label_numbers
from circle_kernels.operation.batch import operation_of

X = torch.randn(4, 3)
Y = torch.arange(4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[1.0]], Y), TypeError, "embeddings must be a tensor of shape (rows, D), got list"),
        ((X.int(), Y), TypeError, "embeddings must be float16, bfloat16, float32 or float64, got"),
        ((X[0], Y), ValueError, "embeddings must have shape (rows, D) with D >= 1, got a"),
        ((X[:, :0], Y), ValueError, "embeddings must have shape (rows, D) with D >= 1"),
        ((X[None], Y), ValueError, "of shape (1, 4, 3) on cpu"),
        ((X, None), TypeError, "wants labels, or pair_mask in their place; got None for both"),
        ((X, Y.tolist()), TypeError, "labels must be an integer tensor"),
        ((X, Y.float()), TypeError, "labels must be integers (one class number per row)"),
        ((X, Y.float()), TypeError, "class numbers that came as floats need .long()"),
        ((X, Y[:, None]), ValueError, "labels of shape (rows, 1) need .squeeze(1)"),
        ((X, torch.eye(4).long()), ValueError, "one-hot labels need .argmax(1)"),
        ((X, torch.eye(4)), TypeError, "one-hot labels need .argmax(1)"),
        ((X[:, :, None, None], Y), ValueError, "feature maps have to be pooled to one vector"),
        ((X[:, :, None, None], Y), ValueError, "for example .mean((2, 3))"),
        ((X[:, None], Y), ValueError, "sequences have to be pooled to one vector per row first"),
        ((Y, X), TypeError, "embeddings and labels are swapped: got a torch.int64 tensor of shape"),
        ((X, Y, (Y, Y, Y)), TypeError, "ref_emb must be a tensor of shape (rows, D), got a tuple"),
        ((X, Y, (Y, Y, Y)), TypeError, "circle_kernels.integrations.pytorch_metric_learning"),
        (
            (X, Y.to(torch.uint64), X, Y),
            TypeError,
            "labels and ref_labels must both be signed or both unsigned where one is uint64",
        ),
        ((X, Y[:3]), ValueError, "one entry per row of embeddings: wanted 4, got 3"),
        ((X, Y, X), ValueError, "ref_emb was given without ref_labels"),
        ((X, Y, None, Y), ValueError, "ref_labels was given without ref_emb"),
        ((X, Y, X[:, :2], Y), ValueError, "as many columns as embeddings: wanted 3, got 2"),
        ((X, Y, X.to("meta"), Y), ValueError, "ref_emb must be on the device of embeddings"),
        ((X, Y, X, Y[:2]), ValueError, "one entry per row of ref_emb: wanted 4, got 2"),
        ((X, Y, X, Y.float()), TypeError, "ref_labels must be integers"),
        ((X, Y, X, Y[:, None]), ValueError, "ref_labels must have shape (rows,)"),
        ((X, Y, X[0], Y), ValueError, "ref_emb must have shape (rows, D)"),
    ],
)
def test_bad_tensors_are_named(arguments: tuple, error: type[Exception], message: str) -> None:
    for function in (
        lambda *tensors: circle_loss(*tensors),
        lambda *tensors: CircleLoss()(*tensors),
        lambda *tensors: unified_loss(*tensors, m=0.1, gamma=8),
        lambda *tensors: pair_logsumexp(*tensors, formula=CircleFormula()),
    ):
        with pytest.raises(error, match=re.escape(message)):
            function(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"m": float("nan")}, ValueError, "m must be finite, got nan"),
        ({"m": -2}, ValueError, "m must be greater than -1 and less than 1, got -2"),
        ({"m": 1.0}, ValueError, "m must be greater than -1 and less than 1, got 1.0"),
        ({"gamma": 10**400}, ValueError, "gamma must be finite as a float, got an integer of 1329"),
        ({"gamma": -(10**5000)}, ValueError, "gamma must be finite as a float"),
        (
            {"gamma": torch.tensor(80)},
            TypeError,
            "gamma must be a number or a floating-point tensor with one, got a torch.int64",
        ),
        ({"normalize": "false"}, TypeError, "normalize must be True or False, got str 'false'"),
        ({"normalize": 1}, TypeError, "normalize must be True or False, got int 1"),
        ({"detach_weights": None}, TypeError, "detach_weights must be True or False, got NoneType"),
        ({"scale": 64}, TypeError, "() takes no scale: it is called gamma here"),
        ({"gamma": 64, "margin": 0.1}, TypeError, "() takes no margin: it is called m here"),
        ({"gamma": float("inf")}, ValueError, "gamma must be finite, got inf"),
        ({"gamma": 0}, ValueError, "gamma must be greater than 0, got 0"),
        ({"gamma": True}, TypeError, "gamma must be a real number, got bool True"),
        ({"scope": "rows"}, ValueError, "scope must be one of 'anchor', 'batch'; got 'rows'"),
        ({"reduction": "avg"}, ValueError, "reduction must be one of 'mean', 'mean_all', 'sum'"),
        ({"reduction": None}, ValueError, "reduction must be one of"),
        ({"skip_below": 1.0}, ValueError, "skip_below must be in [0, 1), got 1.0"),
        ({"skip_below": -0.1}, ValueError, "skip_below must be in [0, 1)"),
        ({"skip_below": "1"}, TypeError, "skip_below must be a real number, got str"),
        (
            {"backend": "cuda"},
            ValueError,
            "backend must be one of 'auto', 'triton', 'cpu', 'tiled'",
        ),
    ],
)
def test_bad_options_are_named_at_the_call_and_at_construction(
    options: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        circle_loss(X, Y, **options)
    with pytest.raises(error, match=re.escape(message)):
        CircleLoss(**options)


def test_formula_of_another_type_is_named() -> None:
    with pytest.raises(
        TypeError, match=r"formula must be a CircleFormula or UnifiedFormula, or of .*, got st"
    ):
        pair_logsumexp(X, Y, formula="circle")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X[0], Y), TypeError, "sn must be a floating-point tensor"),
        (([0.1], X[0]), TypeError, "sp must be a floating-point tensor, got list"),
        ((X, X[0]), ValueError, "sp must have shape (pairs,)"),
        ((X[0], X[0].to("meta")), ValueError, "sn must be on the device of sp"),
    ],
)
def test_bad_similarities_are_named(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        circle_loss_from_similarity(*arguments, m=0.25, gamma=80)


def test_words_of_other_libraries_are_translated() -> None:
    for function, tensors in (
        (circle_loss, (X, Y)),
        (unified_loss, (X, Y)),
        (circle_loss_from_similarity, (X[0], X[1])),
    ):
        with pytest.raises(TypeError, match=rf"{function.__name__}\(\) takes no scale.* gamma"):
            function(*tensors, m=0.25, scale=64)
    for function in (circle_loss, CircleLoss()):
        with pytest.raises(
            TypeError, match=r"circle_kernels\.integrations\.pytorch_metric_learning"
        ):
            function(X, Y, indices_tuple=(Y, Y, Y))
    with pytest.raises(TypeError, match="unexpected keyword argument 'gama'"):
        circle_loss(X, Y, gama=80)


def test_decorated_functions_keep_their_signatures() -> None:
    for function in (circle_loss, CircleLoss, CircleLoss().forward):
        parameters = inspect.signature(function).parameters
        assert "m" in parameters or "embeddings" in parameters
        assert "options" not in parameters


@pytest.mark.parametrize("integer", [True, False])
def test_number_that_formulas_hold_is_a_python_number(integer: bool) -> None:
    numpy = pytest.importorskip("numpy")
    m = numpy.float32(0.4)
    formula = CircleFormula(m=m, gamma=numpy.int32(80) if integer else numpy.float64(80))
    assert formula == CircleFormula(m=float(m), gamma=80)
    assert all(type(value) is float for value in formula.parameters())
    assert type(formula.m) is float
    assert float(formula.constants[0]) == 1 + float(m)  # in double precision
    assert CircleFormula(detach_weights=numpy.False_).detach_weights is False
    # Where optima and margins are given, m says nothing.
    CircleFormula(m=5, optimum_pos=1, optimum_neg=0, margin_pos=0.7, margin_neg=0.3)


@pytest.mark.parametrize("dtype", INTEGER_DTYPES, ids=str)
@pytest.mark.parametrize("scope", ["anchor", "batch"])
def test_labels_of_any_integer_dtype_are_taken(dtype: torch.dtype, scope: str) -> None:
    embeddings = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12) % 2
    for references in ((), (embeddings.flip(0), labels)):
        converted = [each.to(dtype) if each.dtype == torch.int64 else each for each in references]
        expected = circle_loss(embeddings, labels, *references, scope=scope)
        assert torch.equal(
            circle_loss(embeddings, labels.to(dtype), *converted, scope=scope), expected
        )


def test_integers_from_2_to_the_63_are_told_apart() -> None:
    large = torch.tensor([2**63, 2**64 - 1, 2**64 - 1, 2**63, 2**63 + 1, 0], dtype=torch.uint64)
    embeddings = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    expected = circle_loss(embeddings, torch.tensor([0, 1, 1, 0, 2, 3]))
    assert torch.equal(circle_loss(embeddings, large), expected)


@pytest.mark.parametrize("dtypes", [(a, b) for a in FLOATING_DTYPES for b in FLOATING_DTYPES])
def test_class_numbers_are_equal_where_floats_are(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    values = [0.0, -0.0, 1.0, -1.0, 1.001, 65504.0, float("inf"), float("-inf"), float("nan")]
    labels = torch.tensor(values + values).to(dtypes[0])
    ref_labels = torch.tensor([*values, 3.0]).to(dtypes[1])
    numbers, ref_numbers = label_numbers(labels, ref_labels)
    assert numbers.dtype == ref_numbers.dtype == torch.int64
    for (a, b), (c, d) in (
        ((labels, labels), (numbers, numbers)),
        ((labels, ref_labels), (numbers, ref_numbers)),
    ):
        wanted = a[:, None] == b[None, :]
        if a is b:  # a NaN is not equal to itself, but a row is
            wanted.fill_diagonal_(True)
        assert torch.equal(c[:, None] == d[None, :], wanted)


def test_class_numbers_of_integers_beside_floats_are_what_equality_makes_of_them() -> None:
    """Equality rounds integers to the other's dtype."""
    integers = torch.tensor([2**24, 2**24 + 1, 3, 2047, 2049])
    for dtype in FLOATING_DTYPES:
        floats = integers.to(dtype)
        numbers, others = label_numbers(integers, floats)
        assert torch.equal(numbers[:, None] == others, integers[:, None] == floats)


def test_hyper_parameter_that_changes_its_value_is_read_at_each_call() -> None:
    share = torch.tensor(0.0)
    operation_of(CircleFormula, m=0.4, gamma=80.0, skip_below=share)
    share.fill_(0.5)
    assert operation_of(CircleFormula, m=0.4, gamma=80.0, skip_below=share).skip_below == 0.5


def test_bad_hyper_parameter_is_told_once() -> None:
    with pytest.raises(TypeError) as raised:
        circle_loss(X, Y, gamma="80")
    assert raised.value.__context__ is None
