"""Every path of the kernels on small problems beside float64 on the CPU, each in a row of its own.

A path is a kind of problem under limits: as they are, with every limit at 1, which puts rows in
label order and cuts the work as small as it can be cut, and with one limit at 1. What a path
launched stands in its row, so that a path that no longer takes the kernels it is for is seen.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.gpu.tasks import Rows, Task
from bench.measuring.cases import Case
from bench.measuring.sweep import BuiltFunctions
from circle_kernels import CircleFormula, UnifiedFormula, circle_loss
from circle_kernels.backends import trial
from circle_kernels.backends.choice import BACKENDS
from circle_kernels.backends.problem import COLUMN_POSITIVE, ROW_POSITIVE, PairProblem
from circle_kernels.backends.saved_bytes import with_padding
from circle_kernels.formula import PairFormula

# No multiple of a tile's depth, whatever the tile.
_DEPTH = 72
_SMALL_ROWS = 200
_FORMULA = CircleFormula(gamma=16.0)
_UNDETACHED = CircleFormula(gamma=16.0, detach_weights=False)
_UNIFIED = UnifiedFormula(m=0.35, gamma=16.0)
# A similarity of two tf32 factors is wrong by up to 2^-10, a logit, which is about a square of it,
# by twice that share; weights are wrong by what logits are, which is about what bfloat16 costs.
_OF_TF32_SUMS = 2.0**-9
_OF_TF32_GRADIENTS = trial.OF_GRADIENTS[torch.bfloat16]


@dataclass(frozen=True)
class Path:
    """A kind of problem.

    Args:
        sides: ``"self"``, ``"references"``, ``"both sides"``, ``"classes"`` or ``"listed"``.
        formula: with a small gamma, or rounding would hide mistakes.
        normalize: whether rows are normalised; otherwise their norms are around 1.
        small: few rows.
    """

    sides: str = "self"
    formula: PairFormula = _FORMULA
    normalize: bool = True
    small: bool = False

    def problem(self, rows: int, depth: int, dtype: torch.dtype) -> PairProblem:
        """In float64, with numbers that the dtype has; some rows have no positive."""
        generator = torch.Generator().manual_seed(0)

        def side(length: int) -> tuple[Tensor, Tensor]:
            values = torch.randn(length, depth, generator=generator, dtype=torch.float64)
            labels = torch.randint(0, max(2, rows // 4), (length,), generator=generator)
            return (values / depth**0.5).to(dtype).double(), labels

        problem = PairProblem(*side(rows), None, None, self.formula, self.normalize)
        if self.sides in ("references", "both sides"):
            ref_emb, ref_labels = side(rows + 70)
            both_sides = self.sides == "both sides"
            return problem._replace(ref_emb=ref_emb, ref_labels=ref_labels, both_sides=both_sides)
        if self.sides == "classes":
            return problem._replace(ref_emb=side(2 * rows)[0])
        if self.sides == "listed":
            kinds = torch.randint(0, 3, (rows, rows), generator=generator, dtype=torch.uint8)
            # Both rows of a pair list it; none lists itself.
            kinds = kinds.triu(1) + kinds.triu(1).T
            kinds *= 1 + COLUMN_POSITIVE // ROW_POSITIVE
            labels = torch.zeros_like(problem.labels)
            return problem._replace(labels=labels, listed=with_padding(kinds))
        return problem


PATHS = {
    "self": Path(),
    "circle_loss": Path(),
    "blocks": Path(),
    "learned gamma": Path(),
    "small batch": Path(small=True),
    "small blocks": Path(small=True),
    "references": Path("references"),
    "both sides": Path("both sides", _UNIFIED, small=True),
    "classes": Path("classes"),
    "listed pairs": Path("listed"),
    "unified": Path(formula=_UNIFIED),
    "unified references": Path("references", _UNIFIED),
    "undetached": Path(formula=_UNDETACHED),
    "undetached references": Path("references", _UNDETACHED),
    "unnormalised": Path(normalize=False),
    "unnormalised references": Path("references", normalize=False),
    "small unified batch": Path(formula=_UNIFIED, small=True),
    "small unnormalised batch": Path(normalize=False, small=True),
}
USUAL = "usual limits"
EACH_ONE = "every limit 1"


@dataclass(frozen=True)
class PathTask(Task):
    """One path in one dtype."""

    path: Path = PATHS["self"]
    limits: tuple[tuple[str, int], ...] = ()  # that are not as usual
    precision: str = "highest"
    backend: str = "triton"

    @property
    def expected_seconds(self) -> float:
        """Compiling half a dozen kernels."""
        return 10.0

    @property
    def longest_seconds(self) -> float:
        """The same beside others that do so, after a process has started."""
        return 120.0

    def run(self, built: BuiltFunctions) -> Rows:
        """Its row: errors, launches, and a status that says what is wrong."""
        from circle_kernels.backends.triton.conditions import Limits, assuming
        from circle_kernels.backends.triton.launch import Launch, observe_launches

        launched: Counter[str] = Counter()

        def count(launch: Launch, proceed: Callable[[Launch], Any]) -> Any:
            launched[launch.kernel.__name__] += 1
            return proceed(launch)

        problem = self.path.problem(self.case.rows, self.case.dim, self.case.torch_dtype)
        limits = dataclasses.replace(Limits(), **dict(self.limits))
        usual = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.precision)  # which the products of torch go by
        try:
            with assuming(limits=limits), observe_launches(count):
                problem = problem._replace(precision=self.precision)
                errors = self.errors(problem)
        finally:
            torch.set_float32_matmul_precision(usual)
        (row,) = self.rows_without_result(self._status(errors))
        # JSON has no infinity.
        row["errors"] = {
            name: float(f"{error:.3g}") if math.isfinite(error) else None
            for name, error in errors.items()
        }
        return [{**row, "launched": dict(launched)}]

    def errors(self, problem: PairProblem) -> dict[str, float]:
        """By result, as a share of its largest entry."""
        module = importlib.import_module(BACKENDS[self.backend].module)
        return trial.errors(module, problem, torch.device(self.case.device), self.case.torch_dtype)

    def _status(self, errors: dict[str, float]) -> str:
        of_sums, of_gradients = trial.OF_SUMS, trial.OF_GRADIENTS[self.case.torch_dtype]
        if self.precision != "highest":
            of_sums, of_gradients = _OF_TF32_SUMS, _OF_TF32_GRADIENTS
        for name, error in errors.items():
            most = of_gradients if name.endswith("gradient") else of_sums
            if not error <= most:
                return f"wrong: {name} by {error:.2g}, where {most:.2g} is allowed"
        return "ok"


@dataclass(frozen=True)
class LossTask(PathTask):
    """The loss as users call it, which has the kernels checked before it takes them."""

    def errors(self, problem: PairProblem) -> dict[str, float]:
        """Of the loss and of its gradient."""

        def results(backend: str, *to: Any) -> list[Tensor]:
            embeddings = problem.embeddings.detach().to(*to).requires_grad_()
            loss = circle_loss(
                embeddings,
                problem.labels.to(embeddings.device),
                m=problem.formula.m,
                gamma=problem.formula.gamma,
                backend=backend,
            )
            loss.backward()
            return [loss.detach().double().cpu(), embeddings.grad.double().cpu()]

        truth = results("reference", torch.float64)
        ours = results(self.backend, self.case.device, self.case.torch_dtype)
        names = ("the loss", "the embeddings' gradient")
        return {
            name: ((value - true).abs().max() / true.abs().max()).item()
            for name, value, true in zip(names, ours, truth, strict=True)
        }


@dataclass(frozen=True)
class BlocksTask(PathTask):
    """A batch in blocks, as processes compute it that share it."""

    def errors(self, problem: PairProblem) -> dict[str, float]:
        """Of the gradient of half of the rows."""
        module = importlib.import_module(BACKENDS[self.backend].module)
        device = torch.device(self.case.device)
        return trial.errors_in_blocks(module, problem, device, self.case.torch_dtype)


@dataclass(frozen=True)
class ScaleTask(PathTask):
    """The gradient of a gamma that is learned."""

    def errors(self, problem: PairProblem) -> dict[str, float]:
        """Of it."""
        module = importlib.import_module(BACKENDS[self.backend].module)
        device = torch.device(self.case.device)
        return trial.errors_of_scales(module, problem, device, self.case.torch_dtype)


KINDS = {
    "circle_loss": LossTask,
    "blocks": BlocksTask,
    "small blocks": BlocksTask,
    "learned gamma": ScaleTask,
}


def smoke_tasks(device: str, backend: str = "triton") -> list[Task]:
    """All paths, those of the limits as they are first."""
    from circle_kernels.backends.triton.conditions import Limits, conditions_on

    multiprocessors = conditions_on(torch.device(device)).hardware.multiprocessors
    # Tiles of 128 for each multiprocessor and some left over: enough for label order at a limit of
    # one tile for each, and no whole number of tiles.
    rows = 128 * math.ceil(math.sqrt(multiprocessors)) + 33
    names = [field.name for field in dataclasses.fields(Limits)]

    def task(
        name: str, limits: str, changed: list[str], dtype: str, precision: str = "highest"
    ) -> PathTask:
        path = PATHS[name]
        case = Case(_SMALL_ROWS if path.small else rows, _DEPTH, "random", dtype, device)
        tf32 = "" if precision == "highest" else ", tf32"
        kind = KINDS.get(name, PathTask)
        return kind(
            "smoke",
            case,
            (f"{name}, {limits}{tf32}",),
            path=path,
            limits=tuple((each, 1) for each in changed),
            precision=precision,
            backend=backend,
        )

    dtypes = ("bfloat16", "float32", "float16")
    found: list[Task] = [task(name, USUAL, [], dtype) for dtype in dtypes for name in PATHS]
    found += [task(name, USUAL, [], "float32", "high") for name in PATHS]
    found += [task(name, EACH_ONE, names, dtype) for dtype in dtypes for name in PATHS]
    for name in ("self", "classes"):
        found += [task(name, f"{limit} 1", [limit], "bfloat16") for limit in names]
    return found


def kernel_names() -> list[str]:
    """Every kernel that the Triton backend can launch on a device."""
    from circle_kernels.backends import triton as backend

    found = set()
    for module in pkgutil.walk_packages(backend.__path__, f"{backend.__name__}."):
        if module.name.endswith(".interpreted"):
            continue
        members = vars(importlib.import_module(module.name))
        found |= {name for name, member in members.items() if _is_kernel(name, member)}
    return sorted(found)


def _is_kernel(name: str, member: Any) -> bool:
    return name.endswith("_kernel") and hasattr(member, "arg_names")
