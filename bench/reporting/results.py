"""Results files: what was measured, and on what, so that a number can be judged later."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import circle_kernels
from bench.places import RESULTS, ROOT
from bench.reporting.errors import UserError

SCHEMA = 1
FOLDER = RESULTS

# Paths from the top of the repository; a results file written before this run changes nothing.
_CODE = (":/circle_kernels", ":/csrc", ":/bench", ":(exclude,top)bench/results")


@dataclass
class Results:
    """One run of one command.

    Args:
        command: the subcommand, which is also how tables know what the rows are.
        device: ``"cpu"`` or ``"cuda"``.
        settings: what the run was asked to do.
        rows: one dict per measurement.
        machine, versions, git, torch_threads, created: where the numbers come from; see
            :func:`describe_machine`, :func:`describe_versions` and :func:`describe_git`.
    """

    command: str
    device: str
    settings: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str | None] = field(default_factory=dict)
    git: dict[str, Any] = field(default_factory=dict)
    torch_threads: int = 0
    created: str = ""
    schema: int = SCHEMA


def start_results(command: str, device: str, settings: dict[str, Any]) -> Results:
    """Results without rows yet, stamped with this machine, its versions, the commit and now."""
    return Results(
        command=command,
        device=torch.device(device).type,
        settings=settings,
        machine=describe_machine(),
        versions=describe_versions(),
        git=describe_git(ROOT),
        torch_threads=torch.get_num_threads(),
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def describe_machine() -> dict[str, Any]:
    """CPU model, its vector instructions, cores, memory and GPU."""
    return {
        "cpu": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": _physical_cores() or os.cpu_count(),
        "logical_cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def describe_versions() -> dict[str, str | None]:
    """Versions of everything whose speed is compared; None for what is not installed."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
        "pytorch-metric-learning": _version("pytorch-metric-learning"),
        "circle_kernels": circle_kernels.__version__,
    }


def describe_git(folder: Path) -> dict[str, Any]:
    """The commit checked out there, and whether what can change a number differs from it.

    Empty outside git.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--", *_CODE)),
        }
    except (OSError, subprocess.CalledProcessError):
        return {}


@dataclass(frozen=True)
class Destination:
    """Where a run writes, so that tables are never made from a part of what they are to show.

    Args:
        path: what to write while the run goes on.
        replaces: what a whole run replaces once it has come to its end; None for a partial run.
    """

    path: Path
    replaces: Path | None = None

    def finish(self) -> Path:
        """The run has ended: where its results are from now on."""
        if self.replaces is None:
            return self.path
        return self.path.replace(self.replaces)


def destination(name: str, out: Path | None, *, whole: bool) -> Destination:
    """The file or folder ``name`` among the results for a whole run, and one beside it until then.

    Args:
        name: of what whole runs of this command leave in ``FOLDER``.
        out: what the user wants written in its place.
        whole: nothing of what the command measures is left out; see :func:`is_whole`.

    Raises:
        UserError: a partial run is to be written over the results of whole ones.
    """
    usual = FOLDER / name
    if out is not None and out.resolve() != usual.resolve():
        return Destination(out)
    if out is not None and not whole:
        raise UserError(f"--out {out} is for whole runs, which this is not: name another file")
    partial = usual.with_name(f"{usual.stem}-partial{usual.suffix}")
    return Destination(partial, usual) if whole else Destination(partial)


def slug(name: str) -> str:
    """A device's name as it can stand in a path: ``NVIDIA H100 80GB HBM3`` is nvidia-h100-..."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def is_whole(
    arguments: argparse.Namespace, add_arguments: Callable[[argparse.ArgumentParser], None]
) -> bool:
    """Whether a command was given none of its options but where to run and to write.

    Every other option leaves something out, or measures it with other effort.
    """
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    defaults = vars(parser.parse_args([]))
    return all(
        getattr(arguments, option) == default
        for option, default in defaults.items()
        if option not in ("device", "out")
    )


def save(results: Results, path: Path) -> None:
    """Write a results file, making its folder where needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = dataclasses.asdict(results)
    rows = content.pop("rows")
    # One row per line: a file that a person can read and a diff can show.
    head = json.dumps(content, indent=1, allow_nan=False).removesuffix("\n}")
    lines = ",\n".join("  " + json.dumps(row, allow_nan=False) for row in rows)
    write_whole(path, f'{head},\n "rows": [\n{lines}\n ]\n}}\n')


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there as a whole, as it was or as it is to be, wherever this is cut."""
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def same_source(one: Results, other: Results) -> bool:
    """Whether two runs are of the same code, versions, device and settings, but for time spent."""

    def source(results: Results) -> tuple[Any, ...]:
        settings = {**results.settings, "seconds_spent": None}
        as_read = json.loads(json.dumps(settings))
        return results.device, results.machine["gpu"], results.versions, results.git, as_read

    return source(one) == source(other)


def load(path: Path, within: str | None = None) -> Results:
    """Read a results file, or what stands under a name in another one.

    Raises:
        UserError: there is no such file, or it is not one of ours or of another schema.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if within is not None and isinstance(content, dict):
        content = content.get(within)
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise UserError(f"{path} is not a results file of schema {SCHEMA} (it has {schema!r})")
    try:
        return Results(**content)
    except TypeError as error:
        raise UserError(f"{path} is not a results file: {error}") from error


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _physical_cores() -> int | None:
    try:
        import psutil
    except ImportError:
        return None
    return psutil.cpu_count(logical=False)


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
