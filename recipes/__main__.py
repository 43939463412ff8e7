"""Train and evaluate as a configuration says.

    python -m recipes CONFIG --data DIR [--set section.key=value ...] [--resume]
    torchrun --nproc-per-node 8 -m recipes CONFIG --data DIR

Writes a checkpoint and, at the end, ``results.json`` to the folder ``--out``, and prints a table of
what was measured beside what the paper reports.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from recipes import data, report
from recipes.configuration import ConfigurationError, names, read
from recipes.data.layout import BrokenData
from recipes.engine.checkpoint import NAME
from recipes.engine.evaluation import measure
from recipes.engine.processes import processes
from recipes.engine.training import train

INTERRUPTED = 130  # as shells have it


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; ends the program with a message where it makes no sense."""
    parser = argparse.ArgumentParser("python -m recipes", description=__doc__.splitlines()[0])
    parser.add_argument("config", help=f"a TOML file, or one of {', '.join(names())}")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="with the data set")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="for checkpoint and results (runs/CONFIG)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="changes",
        metavar="SECTION.KEY=VALUE",
        help="change the configuration; can be given several times",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--amp", action="store_true", help="bfloat16; the same as run.amp=true")
    parsed = parser.parse_args(arguments)
    if parsed.amp:
        parsed.changes.append("run.amp=true")
    parsed.out = parsed.out or Path("runs") / Path(parsed.config).stem
    return parsed


def run(parsed: argparse.Namespace) -> dict[str, float]:
    """Train and measure; returns the metrics, in [0, 1]."""
    recipe = read(parsed.config, parsed.changes)
    if (parsed.out / NAME).exists() and not parsed.resume:
        raise FileExistsError(
            f"{parsed.out / NAME} is there already: go on with --resume, or give another --out"
        )
    dataset = data.load(recipe.data, parsed.data)
    with processes(recipe.run.device) as group:
        if group.is_first:
            parsed.out.mkdir(parents=True, exist_ok=True)
        group.wait()  # so that all see the folder as it was before anything is written
        outcome = train(recipe, dataset, parsed.out, group, parsed.resume)
        found = measure(outcome.network, dataset, recipe, group)
        if group.is_first:
            results = {"loss": outcome.loss, **found}
            (parsed.out / "results.json").write_text(json.dumps(results, indent=2) + "\n", "utf-8")
            Console().print(report.table(recipe, found))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The program. Errors of the user are one line; others show where they come from."""
    parsed = parse_arguments(arguments)
    try:
        run(parsed)
    except KeyboardInterrupt:
        print(f"interrupted: go on with --resume (checkpoint in {parsed.out})", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (ConfigurationError, BrokenData, OSError, ModuleNotFoundError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
