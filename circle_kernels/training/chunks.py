"""``in_chunks``: a network over a large batch, with the activations of one chunk at a time."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, SupportsIndex, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from circle_kernels.arguments import describe
from circle_kernels.options import check_integer
from circle_kernels.training.second_run import SecondRuns

# What an output may have beside tensors, where it is the same for all chunks.
_PLAIN_VALUES = (type(None), bool, int, float, str)


_Output = TypeVar("_Output")


def in_chunks(
    network: Callable[..., _Output],
    *inputs: Any,
    chunk_size: SupportsIndex,
    **keyword_inputs: Any,
) -> _Output:
    """``network(*inputs, **keyword_inputs)`` a chunk of rows at a time, recomputed in the backward
    pass, so that the activations of one chunk are alive at a time and not those of the batch.

    Outputs, losses, gradients, buffers and the state of the random number generators are bit by bit
    those of ``torch.cat([network(chunk) for chunk in chunks])``: what is random is drawn again as
    it was, and buffers such as running statistics are updated once for each chunk. Batch
    normalisation sees chunks, not the batch. It takes one more forward pass. With gradients
    disabled the network is run in chunks and nothing else.

    The method is gradient checkpointing (Chen et al., arXiv 1604.06174), by
    ``torch.utils.checkpoint``, over rows instead of layers; the memory and the gradient are those
    of GradCache (Gao et al., arXiv 2101.06983). See docs/large-batches.md.

    Args:
        network: a module, a method of one, or a ``functools.partial`` of either, which carries what
            every chunk gets whole. Of a ``DistributedDataParallel`` module all chunks are one
            forward pass, and its processes need not have equally many.
        *inputs, **keyword_inputs: what the network takes. All tensors with a dimension, also those
            in tuples, lists, dictionaries and whatever else torch's pytrees know, are cut along
            their first, (N, ...), which has to be the same for all of them. Each chunk gets tensors
            of no dimension and everything else as they are.
        chunk_size: the most rows of a chunk, at least 1. There are as many chunks as that takes, of
            sizes that differ by at most one; a batch without rows is one chunk.

    Returns:
        What the network returns, a tensor or any pytree of tensors, each with one entry for each
        row first: those of the chunks one after the other. Numbers, strings and None among them
        have to be the same for all chunks.

    Raises:
        TypeError, ValueError: ``chunk_size`` or ``network`` is something else; inputs have no rows
            or different numbers of them; an output has something else than the chunk's rows first.
        RuntimeError: ``DistributedDataParallel`` is inside of the network; or, in the backward
            pass, an input was modified in place since.
    """
    run = run_in_chunks
    # Also where a compiler looks at the frames that this one calls, though not at this one.
    if torch.compiler.is_compiling() or "torch._dynamo" in sys.modules:
        from circle_kernels.training.untraced import run_in_chunks_untraced

        run = run_in_chunks_untraced
    return run(network, inputs, keyword_inputs, chunk_size)


def run_in_chunks(
    network: Callable[..., Any],
    inputs: tuple[Any, ...],
    keyword_inputs: dict[str, Any],
    chunk_size: SupportsIndex,
) -> Any:
    """:func:`in_chunks`."""
    most = check_integer("chunk_size", chunk_size, smallest=1)
    module = _module_of(network)
    if isinstance(network, DistributedDataParallel):
        # Once for all chunks.
        with in_place_of_module(network, _InChunks(network.module, most)):
            return network(*inputs, **keyword_inputs)
    _refuse_ddp_inside(module)
    leaves, structure = pytree.tree_flatten((inputs, keyword_inputs))
    sizes = _chunk_sizes(_number_of_rows(leaves, structure), most)

    def run(*chunk: Any) -> Any:
        # Containers are made anew for each run: networks add to dictionaries that they are given.
        arguments, named = pytree.tree_unflatten(chunk[: len(leaves)], structure)
        return network(*arguments, **named)

    # One operation cuts a tensor, whose gradient then is put together once.
    parts = [leaf.split(sizes) if _has_rows(leaf) else [leaf] * len(sizes) for leaf in leaves]
    chunks = zip(*parts, strict=True)
    if torch.is_grad_enabled():
        second_runs, devices = SecondRuns(module), _on_devices_of(module)
        outputs = [
            checkpoint(second_runs.prepared(run), *chunk, *devices, use_reentrant=False)
            for chunk in chunks
        ]
    else:
        outputs = [run(*chunk) for chunk in chunks]
    return _joined(outputs, sizes)


def _module_of(network: object) -> nn.Module:
    """The one whose buffers a call of ``network`` may update."""
    module = network
    while not isinstance(module, nn.Module):
        if isinstance(module, functools.partial):
            module = module.func
        elif inspect.ismethod(module):
            module = module.__self__
        else:
            raise TypeError(
                "network must be a torch.nn.Module, a method of one or a functools.partial of "
                f"these, whose buffers in_chunks can find, got {describe(network)}; make a "
                "function the forward of a module"
            )
    return module


@contextmanager
def in_place_of_module(wrapper: DistributedDataParallel, module: nn.Module) -> Iterator[None]:
    """What the wrapper does before and after its module, it does for another one that calls it.

    What is recomputed must not go through the wrapper, which would begin another iteration.
    """
    before = vars(wrapper).get("module")
    vars(wrapper)["module"] = module  # in front of the submodule
    try:
        yield
    finally:
        del vars(wrapper)["module"]
        if before is not None:
            vars(wrapper)["module"] = before


class _InChunks(nn.Module):
    def __init__(self, network: nn.Module, chunk_size: int) -> None:
        super().__init__()
        self.network, self.chunk_size = network, chunk_size

    def forward(self, *inputs: Any, **keyword_inputs: Any) -> Any:
        return run_in_chunks(self.network, inputs, keyword_inputs, self.chunk_size)


def _refuse_ddp_inside(module: nn.Module) -> None:
    for name, inner in module.named_modules():
        if isinstance(inner, DistributedDataParallel):
            place = f"network.{name}" if name else "what network calls"
            raise RuntimeError(
                f"{place} is a DistributedDataParallel module, which cannot be run again in the "
                "backward pass: give in_chunks that module itself, or wrap with it a module that "
                "calls in_chunks; compile what is inside of it"
            )


def _on_devices_of(module: nn.Module) -> list[Tensor]:
    """Tensors of nothing that tell checkpointing which devices draw random numbers: it keeps the
    states of those that its arguments are on, and the network may move what it is given."""
    devices = {each.device for each in itertools.chain(module.parameters(), module.buffers())}
    return [torch.empty(0, device=each) for each in devices if each.type not in ("cpu", "meta")]


def _has_rows(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0


def _number_of_rows(leaves: Sequence[Any], structure: Any) -> int:
    """Of the batch, on which all tensors have to agree."""
    for leaf in leaves:
        if isinstance(leaf, Mapping) or (
            dataclasses.is_dataclass(leaf) and not isinstance(leaf, type)
        ):
            raise TypeError(
                f"inputs must be tensors or containers that torch's pytrees know, got a "
                f"{type(leaf).__name__}, whose tensors no chunk would get a part of; give its "
                "tensors by name or as a dict"
            )
    rows = [leaf.shape[0] for leaf in leaves if _has_rows(leaf)]
    if not rows:
        raise ValueError(
            "inputs must have a tensor with rows to be cut, of shape (N, ...), got "
            f"{', '.join(map(describe, leaves)) or 'nothing'}"
        )
    if len(set(rows)) > 1:
        named, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(leaves, structure))
        shapes = ", ".join(
            f"{_name_of_input(path)} of shape {tuple(leaf.shape)}"
            for path, leaf in named
            if _has_rows(leaf)
        )
        raise ValueError(
            f"inputs must have the same number of rows, since each chunk gets some of them; got "
            f"{shapes}; what every chunk needs whole is given by functools.partial(network, "
            "name=tensor)"
        )
    return rows[0]


def _name_of_input(path: Any) -> str:
    """``path`` is one in (inputs, keyword_inputs)."""
    place, *within = path
    if place.idx == 0:
        return f"inputs{pytree.keystr(tuple(within))}"
    return f"{within[0].key}{pytree.keystr(tuple(within[1:]))}"


def _chunk_sizes(rows: int, most: int) -> list[int]:
    """As even as can be: a last chunk of one row would have no variance."""
    chunks = max(1, -(-rows // most))
    smallest, larger = divmod(rows, chunks)
    return [smallest + 1] * larger + [smallest] * (chunks - larger)


def _joined(outputs: Sequence[Any], sizes: Sequence[int]) -> Any:
    """The outputs of chunks as that of the batch."""
    named, structure = pytree.tree_flatten_with_path(outputs[0])
    of_chunks = [pytree.tree_flatten(output) for output in outputs]
    for _, other in of_chunks:
        if other != structure:
            raise ValueError(
                "network must return the same structure for all chunks, got "
                f"{structure} and {other}"
            )
    columns = zip(*(leaves for leaves, _ in of_chunks), strict=True)
    joined = [
        _joined_leaves(f"output{pytree.keystr(path)}", leaves, sizes)
        for (path, _), leaves in zip(named, columns, strict=True)
    ]
    return pytree.tree_unflatten(joined, structure)


def _joined_leaves(name: str, leaves: Sequence[Any], sizes: Sequence[int]) -> Any:
    if all(isinstance(leaf, Tensor) for leaf in leaves):
        for leaf, size in zip(leaves, sizes, strict=True):
            if leaf.dim() == 0 or leaf.shape[0] != size:
                raise ValueError(
                    "network must return tensors with one entry for each row first: for a chunk "
                    f"of {size} rows its {name} is {describe(leaf)}"
                )
        return torch.cat(list(leaves))
    for leaf in leaves:
        if not isinstance(leaf, _PLAIN_VALUES):
            raise TypeError(
                "network must return tensors, or containers of tensors that torch's pytrees know; "
                f"its {name} is {describe(leaf)}"
            )
        if leaf != leaves[0]:
            raise ValueError(
                "network must return the same for all chunks beside tensors; its "
                f"{name} is {leaves[0]!r} and {leaf!r}"
            )
    return leaves[0]
