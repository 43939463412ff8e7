"""The C++ kernel in csrc/: one pass over tiles that stay in cache, on CPU tensors.

This module checks nothing that arguments.py has checked; it allocates, and hands addresses to the
extension ``circle_kernels._cpu``, which knows nothing of torch. The instruction set is chosen at
run time; ``CIRCLE_KERNELS_CPU_LEVEL`` forces a lower one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from circle_kernels.backends.cpu_arguments import (
    bytes_to_save,
    describe,
    has_code_for,
    reduction_of,
    tiles_of,
)
from circle_kernels.backends.problem import Needs, PairProblem, Passed
from circle_kernels.backends.saved_bytes import with_padding
from circle_kernels.formula import PairFormula

LEVEL_VARIABLE = "CIRCLE_KERNELS_CPU_LEVEL"  # read by the extension, at every call

# Tiles that a forward pass may keep, so that the backward pass need not compute them again.
KEPT_BYTES = 64 * 2**20
_MOST_BUDGETS = 10  # that the tiles may fill, if any are to be kept


@functools.cache
def _extension() -> ModuleType | str:
    """The compiled module, or why there is none and what to do."""
    try:
        from circle_kernels import _cpu
    except ImportError as error:
        return _why_missing(error)
    return _cpu


def _why_missing(error: ImportError) -> str:
    package = Path(__file__).parents[1]
    built = sorted(path.name for path in package.glob("_cpu.*") if path.suffix in (".so", ".pyd"))
    if any(name.removeprefix("_cpu") in EXTENSION_SUFFIXES for name in built):
        return (
            f"the C++ kernel does not load ({error}); 'pip install .' compiles it for this machine"
        )
    if (package.parent / "csrc").is_dir():
        other = f" but for another Python ({', '.join(built)})" if built else ""
        return (
            f"circle_kernels is imported from the checkout {package.parent}, in which the kernel "
            f"is not built{other}: run 'pip install -e .' there, or start Python in another folder "
            "to take the installed package"
        )
    return (
        "circle_kernels was installed without the C++ kernel: install it again with a C++ compiler "
        "and without CIRCLE_KERNELS_NO_CPU_KERNEL ('pip install --force-reinstall --no-deps .')"
    )


def status() -> str:
    """A sentence that begins with ``"usable"`` or ``"not usable"``."""
    extension = _extension()
    if isinstance(extension, str):
        return f"not usable: {extension}"
    try:
        words = f"usable: C++ kernel for CPU tensors, instruction set {extension.level()}"
    except ValueError as error:
        return f"not usable: {error}"
    if extension.has_openmp:
        return words
    return f"{words}; one thread, since the compiler that built it had no OpenMP"


def supported_levels() -> list[str]:
    """Instruction sets that this machine runs, the lowest first; none without the extension."""
    extension = _extension()
    return [] if isinstance(extension, str) else extension.supported_levels()


def unusable_reason(device: torch.device, dtype: torch.dtype, formula: PairFormula) -> str | None:
    """Why the kernel cannot take these tensors with this formula; None where it can.

    Raises:
        RuntimeError: an instruction set asked for that this machine does not run.
    """
    if device.type != "cpu":
        return "the C++ kernel takes CPU tensors"
    if not has_code_for(formula):
        return f"the C++ kernel has no code for {type(formula).__name__}"
    extension = _extension()
    if isinstance(extension, str):
        return extension
    try:
        extension.level()
    except ValueError as error:
        raise RuntimeError(str(error)) from error
    return None


def saved_shape(problem: PairProblem) -> tuple[int]:
    """``SavedLayout`` of csrc/common/problem.h in bytes; sizes may be symbolic."""
    return (_plan_saved(problem)[1],)


def saves_labels(problem: PairProblem) -> bool:
    """The backward pass orders rows and columns by their labels again."""
    return False


def _plan_saved(problem: PairProblem) -> tuple[int, int]:
    """Tiles that are kept for the backward pass, which recomputes the others, and bytes to save:

    what these belong to, as many tiles as the budget allows, both log-sum-exps in base 2, and each
    kept tile's two shifts, or with ``skip_below`` every tile's highest logit.
    """
    if not problem.keep_for_backward:
        return 0, 0
    extension = loaded()
    panel, itemsize = extension.PANEL, problem.result_dtype.itemsize
    tiles = tiles_of(extension, problem)
    budget = int(KEPT_BYTES * problem.kept_part) // (panel**2 * itemsize)
    # Where the budget holds a small part of the tiles, it is not worth its memory. Written so that
    # sizes may be symbolic: compilers cannot branch on them.
    budgets_more = tiles // (_MOST_BUDGETS * budget + 1)
    if isinstance(tiles, int):
        kept = max(min(tiles, budget) - budgets_more * budget, 0)
    else:
        kept = torch.sym_max(torch.sym_min(tiles, budget) - budgets_more * budget, 0)
    return kept, bytes_to_save(extension, problem, kept)


def _complete(problem: PairProblem) -> PairProblem:
    """The same problem with labels of class weights and with padding, which the extension wants."""
    if problem.listed is not None:
        return problem._replace(listed=with_padding(problem.listed))
    return problem.with_column_labels()


def forward(problem: PairProblem) -> tuple[Tensor, Tensor, Tensor]:
    """Both log-sum-exps of every anchor, and what the backward pass can use."""
    problem = _complete(problem)
    extension = loaded()
    anchors, dtype = problem.num_anchors, problem.result_dtype
    lse_pos = torch.empty(anchors, dtype=dtype, device="cpu")
    lse_neg = torch.empty(anchors, dtype=dtype, device="cpu")
    kept_tiles, size = _plan_saved(problem)
    saved = _new_saved(extension, size)
    extension.forward(
        *describe(extension, problem, kept_tiles),
        (
            lse_pos.data_ptr(),
            lse_neg.data_ptr(),
            saved.data_ptr() if problem.keep_for_backward else 0,
            saved.nbytes,
        ),
    )
    return lse_pos, lse_neg, saved


def save(problem: PairProblem, lse_pos: Tensor, lse_neg: Tensor) -> Tensor:
    """What :func:`forward` would have left with no tiles kept, had it found these."""
    problem = _complete(problem)
    extension = loaded()
    saved = _new_saved(extension, bytes_to_save(extension, problem, 0))
    lse_pos, lse_neg = lse_pos.contiguous(), lse_neg.contiguous()
    extension.save(
        *describe(extension, problem),
        (lse_pos.data_ptr(), lse_neg.data_ptr(), saved.data_ptr(), saved.nbytes),
    )
    return saved


def backward(
    problem: PairProblem, passed: Passed, needs: Needs
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of both sides, on the instruction set of the forward pass.

    Raises:
        RuntimeError: ``saved`` is not what :func:`forward` returned for this problem.
    """
    problem = _complete(problem)
    gradients = _new_gradients(problem, needs)
    _run_with(loaded().backward, problem, passed, gradients)
    return gradients


def scale_gradients(problem: PairProblem, passed: Passed) -> Tensor:  # (2,)
    """Of each kind of pair ``sum_i grad_lse_i sum_j softmax_ij z_ij`` over all that count pairs.

    Raises:
        RuntimeError: as :func:`backward` does.
    """
    gradients = torch.empty(2, dtype=problem.result_dtype, device="cpu")
    _run_with(loaded().scale_gradients, _complete(problem), passed, (gradients,))
    return gradients


def _run_with(
    run: Callable[..., None],
    problem: PairProblem,
    passed: Passed,
    results: tuple[Tensor | None, ...],
) -> None:
    """Run a pass of the extension that wants what the forward pass left."""
    extension = loaded()
    # Bound to names: the extension sees addresses only, which do not keep a tensor alive.
    saved, grad_lse_pos, grad_lse_neg = (tensor.contiguous() for tensor in passed[:3])
    column_statistics = passed.column_statistics
    if column_statistics is not None:
        column_statistics = column_statistics.contiguous()
    if saved.data_ptr() % extension.SAVED_HEADER_BYTES != 0:  # a hook on saved tensors has moved it
        saved = saved.clone()
    run(
        *describe(extension, problem),  # what was kept says itself how much it is
        (
            saved.data_ptr(),
            saved.nbytes,
            grad_lse_pos.data_ptr(),
            grad_lse_neg.data_ptr(),
            *map(_address, (column_statistics, *results)),
        ),
    )


def row_losses(lse_pos: Tensor, lse_neg: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    """What :func:`circle_kernels.operation.reductions.row_losses` returns, in one call."""
    extension = loaded()
    lse_pos, lse_neg = lse_pos.contiguous(), lse_neg.contiguous()
    slopes = torch.empty_like(lse_pos)
    loss = torch.empty_like(lse_pos) if reduction == "none" else lse_pos.new_empty(())
    extension.row_losses(
        lse_pos.dtype == torch.float64,
        (lse_pos.data_ptr(), lse_neg.data_ptr(), loss.data_ptr(), slopes.data_ptr()),
        len(lse_pos),
        reduction_of(extension, reduction),
    )
    return loss, slopes


def loss_and_gradients(
    problem: PairProblem, reduction: str, needs: Needs
) -> tuple[Tensor, tuple[Tensor | None, Tensor | None]]:
    """What both passes and :func:`row_losses` between them return, in one call."""
    problem = _complete(problem)
    extension = loaded()
    gradients = _new_gradients(problem, needs)
    loss = torch.empty((), dtype=problem.result_dtype, device="cpu")
    kept_tiles, size = _plan_saved(problem)
    extension.loss_and_gradients(
        *describe(extension, problem, kept_tiles),
        reduction_of(extension, reduction),
        (
            size,
            loss.data_ptr(),
            *map(_address, gradients),
        ),
    )
    return loss, gradients


def mark_pairs(rows: Tensor, columns: Tensor, kind: int, kinds: Tensor) -> bool | None:
    """Add ``kind`` to the (N, M) uint8 entries at (P,) indices; None without the extension.

    Returns:
        False where an index is out of range.
    """
    extension = _extension()
    if isinstance(extension, str):
        return None
    rows, columns = (each.to(torch.int64).contiguous() for each in (rows, columns))
    return extension.mark_pairs(
        (rows.data_ptr(), columns.data_ptr(), len(rows)),
        kind,
        (kinds.data_ptr(), *kinds.shape, kinds.stride(0)),
        torch.get_num_threads(),
    )


def _new_saved(extension: ModuleType, size: int) -> Tensor:
    """Memory that the extension keeps when the tensor is freed, so that pages are cleared once."""
    if size == 0:  # not possible as a buffer
        return torch.empty(0, dtype=torch.uint8, device="cpu")
    return torch.frombuffer(extension.Block(size), dtype=torch.uint8)


def _new_gradients(problem: PairProblem, needs: Needs) -> tuple[Tensor | None, Tensor | None]:
    """Memory for the gradients of both sides; None where there is none to compute."""

    def of(side: Tensor) -> Tensor:
        return torch.empty_like(side, memory_format=torch.contiguous_format)

    return (
        of(problem.embeddings) if needs.embeddings else None,
        of(problem.ref_emb) if needs.references and problem.ref_emb is not None else None,
    )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def loaded() -> ModuleType:
    """The extension.

    Raises:
        RuntimeError: there is none; says why.
    """
    extension = _extension()
    if isinstance(extension, str):
        raise RuntimeError(extension)
    return extension
