"""No tensor that Python can construct ends the process, hangs it or silently gives wrong numbers.

Every kind of tensor as every tensor argument of every public function, as all of them at once, and
as the upstream gradient: the result is the float64 truth for the numbers that the tensor stands
for, or an error that names the argument.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import re
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import circle_kernels
from circle_kernels import (
    CircleFormula,
    CircleLoss,
    ClassCircleLoss,
    SparseSGD,
    circle_loss,
    circle_loss_from_similarity,
    class_circle_loss,
    class_unified_loss,
    pair_logsumexp,
    unified_loss,
)
from circle_kernels.arguments import (
    FLOATING_DTYPES,
)
from circle_kernels.operation.row_losses import softplus
from tests.support.apart import Ended, answers
from tests.support.raw_ops import call_op
from tests.support.targets import INTERPRETED
from tests.support.wrapper import Wrapper

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter lane is for kernels")

# ---------------------------------------------------------------------------------------- kinds


class Plain(Tensor):
    """A subclass that changes nothing."""


class Opaque(Wrapper):
    """Implements nothing but what makes a leaf of it."""

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].wrapped)
        raise NotImplementedError(f"Opaque does not implement {func}")


@functools.cache
def _fake_mode() -> FakeTensorMode:
    return FakeTensorMode()


@functools.cache
def _mesh() -> Any:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    return torch.distributed.device_mesh.init_device_mesh("cpu", (1,))


def _distributed(value: Tensor, sharded: bool) -> Tensor:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    return distribute_tensor(value, _mesh(), [Shard(0) if sharded else Replicate()])


def _bytes(value: Tensor) -> bytearray:
    return bytearray(value.reshape(-1).contiguous().view(torch.uint8).tolist())


def _mapped(value: Tensor) -> Tensor:
    with tempfile.NamedTemporaryFile() as file:
        file.write(_bytes(value))
        file.flush()
        flat = torch.from_file(file.name, size=value.numel(), dtype=value.dtype)
    return flat.view(value.shape)


def _loaded_mapped(value: Tensor) -> Tensor:
    with tempfile.NamedTemporaryFile() as file:
        torch.save(value, file.name)
        return torch.load(file.name, mmap=True)


def _misaligned(value: Tensor) -> Tensor:
    """At an address that its dtype does not divide."""
    data = bytearray(1) + _bytes(value)
    return torch.frombuffer(data, dtype=value.dtype, offset=1).view(value.shape)


def _freed(value: Tensor) -> Tensor:
    value = value.clone()
    value.untyped_storage().resize_(0)
    return value


def _in_inference_mode(value: Tensor) -> Tensor:
    with torch.inference_mode():
        return value.clone()


def _leaked(value: Tensor, transform: Callable[..., Any]) -> Tensor:
    """What a function under a transform of torch.func kept, which is over now."""
    kept = []

    def function(inside: Tensor) -> Tensor:
        kept.append(inside)
        return inside.sum()

    transform(function)(value)
    return kept[0]


def _interleaved(value: Tensor) -> Tensor:
    """Every other number in memory, in the other order of dimensions."""
    spread = value.new_full([2 * size for size in value.T.shape], 77)
    spread[(slice(None, None, 2),) * value.dim()] = value.T
    return spread[(slice(None, None, 2),) * value.dim()].T


def _same(value: Tensor) -> Tensor | None:
    return value


def _none(value: Tensor) -> Tensor | None:
    return None


@dataclass(frozen=True)
class Kind:
    """A kind of tensor.

    Args:
        make: a tensor of this kind from a plain one; raises where torch has none.
        numbers: what that tensor stands for; None where it stands for no numbers, so that there
            can be no result.
        shapes_only: no numbers, but results have shapes.
        within: the context of the call.
        names: what an error says; by default the argument.
        own_refusal: an error may be the tensor's own, which knows no arguments.
        leaf: it can be what gradients are asked for.
        works: there are no errors; in code that is not ours only a plain tensor works.
        torch_dies: ordinary operations of torch end the process, so that only what our code sees
            first is tried.
    """

    make: Callable[[Tensor], Tensor]
    numbers: Callable[[Tensor], Tensor | None] = _same
    shapes_only: bool = False
    within: Callable[[], AbstractContextManager[Any]] = nullcontext
    names: str = ""
    own_refusal: bool = False
    leaf: bool = True
    works: bool = False
    torch_dies: bool = False


def _cast(dtype: torch.dtype) -> Kind:
    return Kind(
        lambda value: value.to(dtype),
        lambda value: value.to(dtype).to(value.dtype),
        names="must be",
    )


def _reshaped(change: Callable[[Tensor], Tensor]) -> Kind:
    return Kind(change, change, names="must have|must be in")


KINDS = {
    "plain": Kind(_same, works=True),
    "fake": Kind(lambda value: _fake_mode().from_tensor(value), _none, shapes_only=True),
    "fake under its mode": Kind(
        lambda value: _fake_mode().from_tensor(value),
        _none,
        shapes_only=True,
        within=_fake_mode,
        own_refusal=True,
    ),
    "meta": Kind(lambda value: value.to("meta"), _none, shapes_only=True),
    "replicated": Kind(lambda value: _distributed(value, sharded=False)),
    "sharded": Kind(lambda value: _distributed(value, sharded=True)),
    "unwrapping": Kind(Wrapper),
    "opaque": Kind(Opaque, own_refusal=True),
    "subclass": Kind(lambda value: value.as_subclass(Plain), works=True),
    "masked": Kind(
        lambda value: torch.masked.masked_tensor(value, torch.ones_like(value, dtype=torch.bool)),
        own_refusal=True,
    ),
    "parameter": Kind(
        lambda value: nn.Parameter(value, requires_grad=value.is_floating_point()), works=True
    ),
    "buffer": Kind(nn.Buffer, works=True),
    "uninitialized": Kind(
        lambda value: nn.UninitializedParameter(dtype=value.dtype), _none, own_refusal=True
    ),
    "zero": Kind(
        lambda value: torch._efficientzerotensor(value.shape, dtype=value.dtype), torch.zeros_like
    ),
    "negated": Kind(lambda value: torch._neg_view(-value)),
    "imaginary part": Kind(
        lambda value: torch.complex(torch.zeros_like(value), -value).conj().imag
    ),
    "real part": Kind(lambda value: torch.complex(value, value).conj().real, works=True),
    "conjugated": Kind(lambda value: value.to(torch.complex64).conj()),
    "coo": Kind(Tensor.to_sparse),
    "csr": Kind(Tensor.to_sparse_csr),
    "mkldnn": Kind(Tensor.to_mkldnn),
    "quantised": Kind(
        lambda value: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint32),
        lambda value: (
            torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint32)
            .dequantize()
            .to(value.dtype)
        ),
    ),
    "nested": Kind(lambda value: torch.nested.nested_tensor(list(value))),
    "jagged": Kind(lambda value: torch.nested.nested_tensor(list(value), layout=torch.jagged)),
    "named": Kind(lambda value: value.rename(*"ab"[: value.dim()])),
    "expanded": _reshaped(lambda value: value[:1].expand(value.shape)),
    # More numbers than an address can count: only memory that it would take can be named.
    "wide": Kind(
        lambda value: value.new_zeros(1).expand(*value.shape[:-1], 2**58),
        _none,
        names="allocat|memory|must be",
    ),
    "long": Kind(
        lambda value: value.new_zeros(1).expand(2**58, *value.shape[1:]),
        _none,
        names="allocat|memory|must be",
    ),
    "interleaved": Kind(_interleaved, works=True),
    "misaligned": Kind(_misaligned, works=True),
    "mapped": Kind(_mapped, works=True),
    "loaded mapped": Kind(_loaded_mapped, works=True),
    "shared": Kind(lambda value: value.clone().share_memory_(), works=True),
    "freed": Kind(_freed, _none, torch_dies=True),
    "inference": Kind(_in_inference_mode, works=True),
    "functional": Kind(torch._to_functional_tensor, own_refusal=True),
    "leaked from grad": Kind(lambda value: _leaked(value, torch.func.grad), leaf=False),
    "leaked from vmap": Kind(
        lambda value: _leaked(value[None], torch.func.vmap), _none, own_refusal=True
    ),
    "with gradient": Kind(
        lambda value: value.to(torch.promote_types(value.dtype, torch.float16)).requires_grad_()
    ),
    "scalar": _reshaped(lambda value: value.flatten()[0]),
    "empty": _reshaped(lambda value: value[:0]),
    "shorter": _reshaped(lambda value: value[:-1]),
    "column": _reshaped(lambda value: value[..., None]),
    **{
        str(dtype).removeprefix("torch."): _cast(dtype)
        for dtype in (
            torch.float64,
            torch.float16,
            torch.bfloat16,
            torch.float8_e4m3fn,
            torch.complex64,
            torch.bool,
            torch.uint64,
            torch.int32,
            torch.int8,
        )
    },
}

# ------------------------------------------------------------------------------------ functions

PACKAGE = str(Path(circle_kernels.__file__).parent)
OPTIONS: dict[str, Any] = {"m": 0.25, "gamma": 16.0}
FORMULA = CircleFormula(**OPTIONS)
ROWS, REFERENCES, CLASSES, DEPTH = 18, 5, 7, 4


SELF = ("embeddings", "labels")
PAIRS = (*SELF, "ref_emb", "ref_labels")
HEAD = (*SELF, "weight")
LISTED = ("anchors_pos", "positives", "anchors_neg", "negatives")
FEW_LISTED = tuple(f"few_{name}" for name in LISTED)
KEPT = ("lse_pos", "lse_neg", "saved")  # what a backward pass gets of its forward pass


def _inputs(names: tuple[str, ...]) -> dict[str, Tensor]:
    """A plain tensor for each of these arguments."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    labels, ref_labels = torch.arange(ROWS) % 3, torch.arange(REFERENCES) % 3
    same = labels[:, None] == labels
    negative = (~same).nonzero().T.contiguous()
    pairs = [*same.fill_diagonal_(False).nonzero().T.contiguous(), *negative]
    inputs = {
        "embeddings": draw(ROWS, DEPTH),
        "labels": labels,
        "ref_emb": draw(REFERENCES, DEPTH),
        "ref_labels": ref_labels,
        "weight": draw(CLASSES, DEPTH),
        "sp": draw(8) / 4,
        "sn": draw(9) / 4,
        **dict(zip(LISTED, pairs, strict=True)),
        # Few enough to be worked off one by one.
        **{f"few_{name}": each[::40] for name, each in zip(LISTED, pairs, strict=True)},
        "parameter": draw(CLASSES, DEPTH),
        "values": draw(3, DEPTH),
        "grad_lse_pos": torch.full((ROWS,), 0.7),
        "grad_lse_neg": torch.full((ROWS,), -0.4),
    }
    if "saved" in names:
        made = _raw_forward("auto", **{name: inputs[name] for name in PAIRS})
        inputs.update(zip(KEPT, made, strict=True))
    return {name: inputs[name] for name in names}


@dataclass(frozen=True)
class Function:
    """A public function.

    Args:
        arguments: the tensors that it takes, by name.
        call: computes one output, or several.
        truth: the same for numbers in float64.
        called: what the user calls arguments that have no name of their own.
        own_refusal: an error may come from code that is not ours.
        differentiable: there is a backward pass.
    """

    arguments: tuple[str, ...]
    call: Callable[..., Any]
    truth: Callable[..., Any]
    called: str = ""
    own_refusal: bool = False
    differentiable: bool = True


def _with_reference(arguments: tuple[str, ...], call: Callable[..., Any]) -> Function:
    return Function(arguments, call, functools.partial(call, backend="reference"))


def _head(embeddings: Tensor, labels: Tensor, weight: Tensor, **options: Any) -> Tensor:
    head = ClassCircleLoss(CLASSES, DEPTH, **OPTIONS, **options)
    del head.weight
    head.weight = weight
    return head(embeddings, labels)


def _sampled(embeddings: Tensor, labels: Tensor, weight: Tensor, **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    options.update(OPTIONS, sample_rate=0.9, generator=generator)
    return class_circle_loss(embeddings, labels, weight, **options)


def _drop_in(
    embeddings: Tensor,
    labels: Tensor | None = None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    library: bool = False,
    **listed: Tensor,
) -> Tensor:
    from pytorch_metric_learning import losses

    from circle_kernels.integrations.pytorch_metric_learning import CircleLoss as DropIn

    loss = losses.CircleLoss if library else DropIn
    indices = tuple(listed.values()) or None
    return loss(**OPTIONS)(embeddings, labels, indices, ref_emb, ref_labels)


def _sgd(parameter: Tensor, values: Tensor) -> Tensor:
    rows = torch.tensor([[0, 2, 5]])
    parameter.grad = torch.sparse_coo_tensor(rows, values, parameter.shape)
    SparseSGD([parameter], lr=0.1, momentum=0.9).step()
    return parameter.detach()


def _sgd_by_hand(parameter: Tensor, values: Tensor) -> Tensor:
    return parameter.index_add(0, torch.tensor([0, 2, 5]), values, alpha=-0.1)


def _raw_forward(backend: str, **tensors: Tensor) -> Any:
    return call_op("pair_logsumexp_forward", FORMULA, backend=backend, **tensors)


def _raw_logsumexps(backend: str, **tensors: Tensor) -> Any:
    return _raw_forward(backend, **tensors)[:2]


def _raw_backward(backend: str, **tensors: Tensor) -> Any:
    return call_op("pair_logsumexp_backward", FORMULA, backend=backend, **tensors)


def _gradients_by_autograd(**tensors: Tensor) -> Any:
    inputs = [tensors[name] for name in PAIRS]
    leaves = [each.requires_grad_() for each in inputs[::2]]
    statistics = pair_logsumexp(*inputs, formula=FORMULA, backend="reference")
    return torch.autograd.grad(
        statistics, leaves, (tensors["grad_lse_pos"], tensors["grad_lse_neg"])
    )


FUNCTIONS = {
    **{
        f"circle_loss {backend}": _with_reference(
            PAIRS,
            lambda backend=backend, **t: circle_loss(*t.values(), **OPTIONS, backend=backend),
        )
        for backend in ("auto", "cpu", "tiled")
    },
    "circle_loss alone": _with_reference(
        SELF, lambda backend="auto", **t: circle_loss(*t.values(), **OPTIONS, backend=backend)
    ),
    "circle_loss rows": _with_reference(
        PAIRS,
        lambda backend="auto", **t: circle_loss(
            *t.values(), **OPTIONS, backend=backend, reduction="none"
        ),
    ),
    "circle_loss batch": _with_reference(
        PAIRS,
        lambda backend="auto", **t: circle_loss(
            *t.values(), **OPTIONS, backend=backend, scope="batch"
        ),
    ),
    "unified_loss": _with_reference(
        PAIRS, lambda backend="auto", **t: unified_loss(*t.values(), **OPTIONS, backend=backend)
    ),
    "CircleLoss": _with_reference(
        PAIRS, lambda backend="auto", **t: CircleLoss(**OPTIONS, backend=backend)(*t.values())
    ),
    "pair_logsumexp": _with_reference(
        PAIRS,
        lambda backend="auto", **t: pair_logsumexp(*t.values(), formula=FORMULA, backend=backend),
    ),
    "class_circle_loss": _with_reference(
        HEAD,
        lambda backend="auto", **t: class_circle_loss(*t.values(), **OPTIONS, backend=backend),
    ),
    "class_circle_loss sampled": _with_reference(
        HEAD, lambda backend="auto", **t: _sampled(*t.values(), backend=backend)
    ),
    "class_circle_loss sparse": _with_reference(
        HEAD,
        lambda backend="auto", **t: _sampled(*t.values(), backend=backend, sparse_grad=True),
    ),
    "class_unified_loss": _with_reference(
        HEAD,
        lambda backend="auto", **t: class_unified_loss(*t.values(), **OPTIONS, backend=backend),
    ),
    "ClassCircleLoss": _with_reference(
        HEAD, lambda backend="auto", **t: _head(*t.values(), backend=backend)
    ),
    "circle_loss_from_similarity": Function(
        ("sp", "sn"),
        lambda **t: circle_loss_from_similarity(*t.values(), **OPTIONS),
        lambda **t: circle_loss_from_similarity(*t.values(), **OPTIONS),
        own_refusal=True,
    ),
    "SparseSGD": Function(
        ("parameter", "values"), _sgd, _sgd_by_hand, own_refusal=True, differentiable=False
    ),
    **(
        {
            f"drop-in {name}": Function(
                arguments,
                _drop_in,
                functools.partial(_drop_in, library=True),
                called="indices_tuple",
                own_refusal=True,
            )
            for name, arguments in (
                ("with labels", SELF),
                ("with references", PAIRS),
                ("with many pairs", ("embeddings", *LISTED)),
                ("with few pairs", ("embeddings", *FEW_LISTED)),
            )
        }
        if importlib.util.find_spec("pytorch_metric_learning")
        else {}
    ),
    **{
        f"forward op {backend}": Function(
            PAIRS,
            functools.partial(_raw_logsumexps, backend),
            lambda **t: pair_logsumexp(*t.values(), formula=FORMULA, backend="reference"),
            own_refusal=True,
        )
        for backend in ("auto", "tiled")
    },
    **{
        f"backward op {backend}": Function(
            (*PAIRS, *KEPT, "grad_lse_pos", "grad_lse_neg"),
            functools.partial(_raw_backward, backend),
            _gradients_by_autograd,
            own_refusal=True,
            differentiable=False,
        )
        for backend in ("auto", "tiled")
    },
}
# ------------------------------------------------------------------------------------- attempts


class NoSuchTensorError(Exception):
    """Torch has no tensor of this kind."""


def _made(kind: Kind, value: Tensor) -> Tensor:
    try:
        return kind.make(value)
    except Exception as error:
        raise NoSuchTensorError from error


def _values_and_gradients(
    call: Callable[..., Any],
    tensors: dict[str, Tensor],
    leaves: list[str],
    make_upstream: Callable[[Tensor], Tensor] = _same,
) -> list[Tensor]:
    outputs = call(**tensors)
    outputs = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
    results = [each.detach() for each in outputs]
    if leaves and all(each.requires_grad for each in outputs):
        # Other numbers for every output, so that no mix-up can cancel.
        upstream = [
            make_upstream(torch.full_like(each.detach(), 0.7 - 0.3 * index))
            for index, each in enumerate(outputs)
        ]
        wanted = [tensors[name] for name in leaves]
        # torch would make a subclass of a sparse gradient, which it cannot.
        with torch._C.DisableTorchFunctionSubclass():
            results += torch.autograd.grad(outputs, wanted, upstream, allow_unused=True)
    return results


def _leaves(tensors: dict[str, Tensor], candidates: list[str]) -> list[str]:
    """Which of these tensors require a gradient, after asking all that can to do so."""
    for name in candidates:
        with contextlib.suppress(RuntimeError, ValueError):
            tensors[name].requires_grad_()
    return [name for name in candidates if tensors[name].requires_grad and tensors[name].is_leaf]


def _plain(value: Tensor) -> Tensor:
    """The numbers of a result, which may be of the kind of an argument."""
    if isinstance(value, torch.masked.MaskedTensor):
        value = value.get_data()
    if hasattr(value, "full_tensor"):
        value = value.full_tensor()
    if torch._is_functional_tensor(value):
        torch._sync(value)
        value = torch._from_functional_tensor(value)
    value = getattr(value, "wrapped", value)
    if value.layout is not torch.strided:
        value = value.to_dense()
    if any(name is not None for name in getattr(value, "names", ())):
        value = value.rename(None)
    return value.detach().resolve_conj().resolve_neg().as_subclass(Tensor)


def _difference(ours: list[Tensor], expected: list[Tensor], digits: float) -> str | None:
    """What is wrong with results; None where they are the truth."""
    for place, (value, truth) in enumerate(zip(ours, expected, strict=True)):
        if value is None or truth is None:
            if value is not truth and (truth if value is None else _plain(value)).any():
                return f"result {place} is {value}, the truth {truth}"
            continue
        value, truth = _plain(value), _plain(truth)
        if value.shape != truth.shape:
            return f"result {place} has the shape {tuple(value.shape)}, not {tuple(truth.shape)}"
        scale = truth[truth.isfinite()].abs().sum().item() + 0.1  # where terms cancel to nothing
        if not torch.allclose(
            value.double(), truth.double(), rtol=0, atol=digits * scale, equal_nan=True
        ):
            return f"result {place} is {value.flatten()[:4]}, the truth {truth.flatten()[:4]}"
    return None


def _unnamed(error: Exception, names: str) -> str | None:
    """What is wrong with an error; None where it names the argument, or did not pass our code."""
    frames = traceback.extract_tb(error.__traceback__)
    if re.search(names, str(error)) or not any(f.filename.startswith(PACKAGE) for f in frames):
        return None
    words = (str(error).strip() or "no words").splitlines()[0][:120]
    where = f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}"
    return f"no {names} in {type(error).__name__} of {where}: {words}"


def _attempt(
    function: Function, kind: Kind, of_kind: tuple[str, ...], upstream: bool = False
) -> str | None:
    """What is wrong with a function given these arguments as this kind; None if nothing is."""
    if kind.torch_dies and (function.own_refusal or upstream):
        return None
    plain = _inputs(function.arguments)
    try:
        made = {name: _made(kind, plain[name]) for name in of_kind}
    except NoSuchTensorError:
        return None
    numbers = {name: kind.numbers(plain[name]) for name in of_kind}
    unlike = [name for name in of_kind if numbers[name] is not plain[name]]
    wide = {
        name: value.detach().double() if value.is_floating_point() else value.detach().clone()
        for name, value in {**plain, **numbers}.items()
        if value is not None
    }
    tensors: dict[str, Any] = {**plain, **made}
    leaves = []
    if function.differentiable:
        floating = [name for name, value in plain.items() if value.is_floating_point()]
        leaves = _leaves(tensors, [x for x in floating if kind.leaf or x not in of_kind])
    make_upstream = functools.partial(_made, kind) if upstream else _same
    try:
        with kind.within():
            ours = _values_and_gradients(function.call, tensors, leaves, make_upstream)
    except NoSuchTensorError:
        return None
    except Exception as error:
        if kind.works and (not function.own_refusal or kind is KINDS["plain"]):
            return f"no result, but {error}"
        if function.own_refusal or kind.own_refusal:
            return None
        names = (*of_kind, "grad" if upstream else "", function.called, kind.names, "backend=")
        return _unnamed(error, "|".join(filter(None, names)))
    if unlike and "saved" in function.arguments:
        return None  # a backward pass of what no forward pass left has no truth
    if kind.shapes_only:
        for name in leaves:
            plain[name].requires_grad_()
        shapes = [
            [x if x is None else (x.shape, x.dtype) for x in results]
            for results in (ours, _values_and_gradients(function.call, plain, leaves))
        ]
        return None if shapes[0] == shapes[1] else f"shapes {shapes[0]}, not {shapes[1]}"
    if None in numbers.values() or (upstream and kind.numbers(torch.zeros(3)) is None):
        return "a result of numbers that are none"
    try:
        for name in leaves:
            wide[name].requires_grad_()
        expected = _values_and_gradients(
            function.truth, wide, leaves, kind.numbers if upstream else _same
        )
    except Exception as error:
        return f"a result, where there is none: {error}"
    if len(ours) != len(expected):
        return f"{len(ours)} results, not {len(expected)}: no gradient of what has one"
    dtypes = {each.dtype for each in (*tensors.values(), *ours) if each is not None}
    rounding = [8 * torch.finfo(each).eps for each in dtypes if each in FLOATING_DTYPES]
    return _difference(ours, expected, max([1e-4, *rounding]))


def _attempts(kind: Kind) -> Iterator[tuple[str, Callable[[], str | None]]]:
    """Everything to try with one kind, each under a name."""
    for name, function in FUNCTIONS.items():
        for argument in function.arguments:
            yield f"{name}: {argument}", functools.partial(_attempt, function, kind, (argument,))
        yield f"{name}: all", functools.partial(_attempt, function, kind, function.arguments)
        if function.differentiable:
            passed = functools.partial(_attempt, function, kind, (), upstream=True)
            yield f"{name}: upstream", passed


def _search(send: Callable[[Any], None], kind: str, first: int) -> None:
    """All attempts from one on: its name before each, what is wrong with it after it."""
    warnings.simplefilter("ignore")
    for name, attempt in list(_attempts(KINDS[kind]))[first:]:
        send(name)
        send((attempt(),))


@pytest.mark.parametrize("kind", KINDS)
def test_result_is_the_truth_or_an_error_names_the_argument(kind: str) -> None:
    wrong: dict[str, list[str]] = {}
    tried, name, finished = 0, "", False
    while not finished:
        finished = True
        for answer in answers(_search, kind, tried):
            if isinstance(answer, str):
                name, tried = answer, tried + 1
            elif isinstance(answer, Ended):
                wrong.setdefault(answer.how, []).append(name)
                finished = False  # a new process goes on behind it
            elif answer[0] is not None:
                wrong.setdefault(answer[0], []).append(name)
    assert tried == len(list(_attempts(KINDS[kind])))
    if wrong:
        text = "\n".join(f"{what}\n    {'; '.join(names)}" for what, names in wrong.items())
        pytest.fail(f"{sum(map(len, wrong.values()))} of {tried}:\n{text}", pytrace=False)


def test_the_search_sees_a_wrong_number_an_unnamed_error_and_a_death() -> None:
    right, kind = FUNCTIONS["circle_loss alone"], KINDS["expanded"]

    def found(call: Callable[..., Any], truth: Callable[..., Any]) -> str:
        function = Function(right.arguments, call, truth)
        return str(_attempt(function, kind, ("embeddings",)))

    assert found(right.call, right.truth) == "None"
    assert "the truth" in found(right.call, lambda **t: 2 * right.truth(**t))
    assert "where there is none" in found(right.call, lambda **t: [][1])
    assert "no embeddings" in found(lambda **t: softplus(None), right.truth)
    assert list(answers(_die)) == [Ended("SIGSEGV")]


def _die(send: Callable[[Any], None]) -> None:
    ctypes.string_at(0)
