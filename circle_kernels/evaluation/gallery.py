"""Queries and what is searched for them: checked, gathered from all processes, on the grid."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from circle_kernels.arguments import (
    beside,
    check_kinds,
    check_labels,
    check_numbers,
    check_pair_inputs,
    label_numbers,
)
from circle_kernels.distributed.collectives import gather_rows
from circle_kernels.distributed.columns import Spread
from circle_kernels.distributed.groups import Group, check_group, resolve_group
from circle_kernels.distributed.headers import CALL, check_together, exchange_headers
from circle_kernels.evaluation.counting import Counter, counter
from circle_kernels.evaluation.exact import on_grid
from circle_kernels.evaluation.progress import check_progress
from circle_kernels.options import (
    COUNTING_BACKENDS,
    TIES,
    CountingBackend,
    Ties,
    check_choice,
    check_flag,
    check_integer,
)


class SearchOptions(TypedDict, total=False):
    """What every search takes; :func:`circle_kernels.evaluation.positive_ranks` says what it is."""

    ignore_label: int | None
    normalize: bool
    ties: Ties
    backend: CountingBackend
    group: Group | None
    progress: bool


class RankOptions(SearchOptions, total=False):
    """The same, and cameras."""

    cameras: Tensor | None
    ref_cameras: Tensor | None


@dataclass(frozen=True)
class Side:
    """Some embeddings, and what is known of each."""

    embeddings: Tensor  # (N, D)
    labels: Tensor  # (N,) int64
    cameras: Tensor | None  # (N,) int64

    def map(self, change: Callable[[Tensor], Tensor]) -> Side:
        """All of it, changed."""
        cameras = None if self.cameras is None else change(self.cameras)
        return Side(change(self.embeddings), change(self.labels), cameras)

    def gathered(self, spread: Spread) -> Side:
        """Those of all processes."""
        return self.map(lambda own: gather_rows(own.contiguous(), spread.sizes, spread.group))


@dataclass(frozen=True)
class Gallery:
    """The queries of this process, and what they are compared with: references of all processes."""

    rows: Tensor  # (N, D) float64, on the grid
    labels: Tensor  # (N,) int64
    cameras: Tensor | None  # (N,) int64
    own: Tensor | None  # (N,) int64: which reference is each query's own copy, if it is one
    columns: Tensor  # (M, D) float64, on the grid, without those that are ignored
    column_labels: Tensor  # (M,) int64
    column_cameras: Tensor | None  # (M,) int64
    counter: Counter
    spread: Spread | None  # of the queries


def gallery_of(
    call: str,
    embeddings: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    references: tuple[Tensor | None, Tensor | None],  # (M, D) and (M,), or neither
    options: RankOptions,
) -> Gallery:
    """Check everything, in all processes of a group alike, and bring it where it is compared.

    Raises:
        TypeError, ValueError: an argument that is not as it has to be; the message names it.
    """
    group = options.get("group")
    check_group(group)

    def check() -> tuple[Side, Side | None, Counter]:
        _check_options(options)
        sides = _checked_sides(embeddings, labels, *references, options)
        return *sides, counter(options.get("backend", "auto"), sides[0].labels.device)

    queries, given, counts = check() if group is None else check_together(check, call, group, False)
    rows, columns, own, spread = queries, given or queries, None, None
    if given is None:
        own = torch.arange(len(rows.labels), device=rows.labels.device)
    if group is not None:
        spread, of_columns = _spreads(call, rows, columns, group, options)
        columns = columns.gathered(of_columns)
        own = None if own is None else own + spread.own.start
    normalize = options.get("normalize", True)
    ignored = options.get("ignore_label")
    if ignored is not None:
        # Which leaves queries with this label without a positive.
        kept = columns.labels != ignored
        if own is not None:
            own = (kept.cumsum(0) - 1)[own]
        columns = columns.map(lambda given: given[kept])
    on_columns = on_grid(columns.embeddings, normalize, alike=True)
    # The same tensor where it can be: the C++ kernel computes each pair once then.
    same = normalize and columns.embeddings is rows.embeddings
    return Gallery(
        rows=on_columns if same else on_grid(rows.embeddings, normalize, alike=False),
        labels=rows.labels,
        cameras=rows.cameras,
        own=own,
        columns=on_columns,
        column_labels=columns.labels,
        column_cameras=columns.cameras,
        counter=counts,
        spread=spread,
    )


def check_known(options: Mapping[str, object], known: Container[str]) -> None:
    """Require names of options that there are.

    Raises:
        TypeError: another one.
    """
    for name in options:
        if name not in known:
            raise TypeError(f"unexpected keyword argument {name!r}")


def _check_options(options: RankOptions) -> None:
    check_known(options, RankOptions.__optional_keys__)
    check_choice("ties", options.get("ties", "pessimistic"), TIES)
    check_choice("backend", options.get("backend", "auto"), COUNTING_BACKENDS)
    check_flag("normalize", options.get("normalize", True))
    check_progress(options.get("progress", False))
    ignored = options.get("ignore_label")
    if ignored is not None:
        check_integer("ignore_label", ignored)


def _checked_sides(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    options: RankOptions,
) -> tuple[Side, Side | None]:
    cameras, ref_cameras = options.get("cameras"), options.get("ref_cameras")
    check_kinds(embeddings=embeddings, ref_emb=ref_emb, cameras=cameras, ref_cameras=ref_cameras)
    embeddings, labels, ref_emb, ref_labels, _ = check_pair_inputs(
        embeddings, labels, ref_emb, ref_labels
    )
    check_finite("embeddings", embeddings)
    if ref_emb is None or ref_labels is None:
        if ref_cameras is not None:
            raise ValueError("ref_cameras was given without ref_emb")
        if cameras is not None:
            check_labels("cameras", cameras, len(labels), of="embeddings")
            (cameras,) = label_numbers(beside("cameras", cameras, embeddings))
        return Side(embeddings.detach(), labels, cameras), None
    check_finite("ref_emb", ref_emb)
    if (cameras is None) != (ref_cameras is None):
        given, missing = ("cameras", "ref_cameras")[:: 1 if ref_cameras is None else -1]
        raise ValueError(f"{given} was given without {missing}; give both or neither")
    if cameras is not None and ref_cameras is not None:
        check_labels("cameras", cameras, len(labels), of="embeddings")
        check_labels("ref_cameras", ref_cameras, len(ref_labels), of="ref_emb")
        cameras, ref_cameras = label_numbers(
            beside("cameras", cameras, embeddings), beside("ref_cameras", ref_cameras, embeddings)
        )
    return (
        Side(embeddings.detach(), labels, cameras),
        Side(ref_emb.detach(), ref_labels, ref_cameras),
    )


def check_finite(name: str, embeddings: Tensor) -> None:
    """Require rows (N, D) without NaN and infinity."""
    check_numbers(name, embeddings)
    if embeddings.numel() == 0:
        return
    smallest, largest = embeddings.detach().aminmax(dim=1)  # NaN where one is
    wrong = (~(smallest.isfinite() & largest.isfinite())).nonzero()
    if len(wrong):
        raise ValueError(
            f"{name} must be finite, since NaN ranks nowhere: row {int(wrong[0])} holds NaN or "
            f"infinity, and {len(wrong) - 1} rows more do"
        )


def _spreads(
    call: str, rows: Side, columns: Side, group: Group, options: RankOptions
) -> tuple[Spread, Spread]:
    processes = resolve_group(group)
    alike = {
        CALL: call,
        "references or none": columns is not rows,
        "cameras or none": rows.cameras is not None,
        "the dtype of embeddings": rows.embeddings.dtype,
        "the columns of embeddings": rows.embeddings.shape[1],
        **{name: options.get(name) for name in ("ignore_label", "normalize", "ties")},
    }
    headers = exchange_headers((len(rows.labels), len(columns.labels)), alike, processes)
    queries, references = zip(*headers, strict=True)
    return Spread(queries, processes, False), Spread(references, processes, False)
