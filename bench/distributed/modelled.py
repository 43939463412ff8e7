"""What the model of costs says, as rows for a results file, and as tables."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, fields

from bench.distributed.cost import (
    CLASS_METHODS,
    FEWEST_ROWS,
    MOST_ROWS,
    PAIR_METHODS,
    Assumptions,
    Cluster,
    class_shards,
    faster_from,
    gather,
    replicated_classes,
    ring,
    whole_batch,
)
from bench.reporting.results import Results, start_results
from bench.reporting.tables import Table, number

COMMAND = "distributed-model"  # that results of this kind are stored under

GPUS = (8, 64, 256, 1024)
ROWS_PER_GPU = (256, 1024, 4096)

_MODELLED = "modelled, not measured"


def model(assumed: Assumptions, gpus: Sequence[int], rows_per_gpu: Sequence[int]) -> Results:
    """The cost of every method at every size, and from where on which one is the fastest."""
    results = start_results(COMMAND, "cuda", {"assumptions": asdict(assumed)})
    for number_of_gpus in gpus:
        cluster = Cluster(number_of_gpus, assumed)
        for (kind, methods), rows in itertools.product(
            (("pairs", PAIR_METHODS), ("classes", CLASS_METHODS)), rows_per_gpu
        ):
            costs = {name: asdict(method(cluster, rows)) for name, method in methods.items()}
            results.rows.append({"kind": kind, "gpus": number_of_gpus, "rows": rows, **costs})
        found = {
            "gather": faster_from(cluster, gather, whole_batch),
            "ring": faster_from(cluster, ring, gather),
            "replicated": faster_from(cluster, replicated_classes, class_shards),
        }
        results.rows.append({"kind": "crossing", "gpus": number_of_gpus, **found})
    return results


def model_tables(results: Results) -> list[Table]:
    """Pairs, from which sizes on which method is the fastest, class heads."""
    return [_pairs(results), _crossings(results), _classes(results)]


def _costs(results: Results, kind: str, methods: Sequence[str], table: Table) -> Table:
    """A line for each size: milliseconds of all methods, then megabytes of all."""
    table.columns += [f"{name}, ms" for name in methods]
    table.columns += [f"{name}, MB" for name in methods]
    for row in results.rows:
        if row["kind"] != kind:
            continue
        seconds = [row[name]["seconds"] for name in methods]
        cells = [number(each * 1e3) for each in seconds]
        fastest = seconds.index(min(seconds))
        cells[fastest] = f"**{cells[fastest]}**"
        cells += [number(row[name]["memory_bytes"] / 1e6) for name in methods]
        total = row["gpus"] * row["rows"]
        table.rows.append([str(row["gpus"]), f"{row['rows']:,}", f"{total:,}", *cells])
    return table


def _pairs(results: Results) -> Table:
    table = Table(
        COMMAND,
        f"A step of circle loss on a shared batch, {_MODELLED}: time, the fastest in bold, and "
        "memory of a GPU beside its own rows",
        ["GPUs", "rows per GPU", "N"],
        keys=3,
    )
    return _costs(results, "pairs", list(PAIR_METHODS), table)


def _classes(results: Results) -> Table:
    classes = results.settings["assumptions"]["classes"]
    table = Table(
        f"{COMMAND}-classes",
        f"A step of a class head with {classes:,.0f} classes, {_MODELLED}: time, the fastest in "
        "bold, and memory of a GPU, weight and its gradient included",
        ["GPUs", "rows per GPU", "N"],
        keys=3,
    )
    return _costs(results, "classes", list(CLASS_METHODS), table)


def _crossings(results: Results) -> Table:
    table = Table(
        f"{COMMAND}-sizes",
        f"Rows per GPU from which on a method is faster, {_MODELLED}; powers of two from "
        f"{FEWEST_ROWS} to {MOST_ROWS:,}",
        [
            "GPUs",
            "gather before whole batch",
            "ring before gather",
            "replicated classes before class shards",
        ],
        keys=1,
    )
    names = ("gather", "ring", "replicated")
    for row in results.rows:
        if row["kind"] == "crossing":
            cells = ("never" if row[name] is None else f"{row[name]:,}" for name in names)
            table.rows.append([str(row["gpus"]), *cells])
    return table


def model_environment(results: Results) -> str:
    """What was assumed, in place of what was measured on."""
    assumed = results.settings["assumptions"]
    said = ", ".join(
        f"`--{each.name.replace('_', '-')} {assumed[each.name]:.9g}` ({each.metadata['meaning']})"
        for each in fields(Assumptions)
    )
    return f"Modelled, not measured: no GPU took part. Assumed: {said}."
