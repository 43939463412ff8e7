"""Draw the figures of the circle loss paper from this package's own code.

    python examples/paper_figures.py                      # all five, about ten minutes
    python examples/paper_figures.py --figures 1 2        # those that need no training: seconds
    python examples/paper_figures.py --figures 3 --from-results docs/paper/sweep.json

The paper is Sun et al., "Circle Loss: A Unified Perspective of Pair Similarity Optimization", CVPR
2020 (arXiv 2002.10857). What it shows of faces, these figures show of letters: the data and the
network are those of glyph_classification.py, trained shortly, so that trends can be compared and
numbers cannot. docs/paper.md says what came out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from glyphs import packages_of_the_examples

with packages_of_the_examples():
    import torch
    from glyphs.data import ClassSplit, render_glyphs, split_classes
    from glyphs.training import Schedule
    from matplotlib.figure import Figure
    from paper import curves, planes
    from paper.curves import Cloud
    from paper.trainings import (
        SCHEDULE,
        Recording,
        Setting,
        converged,
        sweep,
        sweep_settings,
        trained,
    )

OUTPUT = Path(__file__).parent / "output" / "paper"
QUICK_LETTERS, QUICK_STEPS = 60, 3
LONGER = 4  # times as many steps for figures 4 and 5, which show where a training ends
CIRCLE, AM_SOFTMAX = Setting("circle", 0.25, 256.0), Setting("AM-Softmax", 0.35, 64.0)
# Of Fig. 5: the boundaries of the first two touch.
SCATTERED = (AM_SOFTMAX, Setting("circle", 0.325, 256.0), CIRCLE)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--figures", type=int, nargs="+", default=[1, 2, 3, 4, 5], choices=range(1, 6))
    add("--out", type=Path, default=OUTPUT, help="folder for the figures and sweep.json")
    add("--seeds", type=int, default=3, help="trainings of each setting of figure 3")
    add(
        "--steps",
        type=int,
        default=SCHEDULE.steps,
        help=f"of each training of figure 3; {LONGER} times as many for 4 and 5",
    )
    add("--class-rate", type=float, help="one learning rate of class weights for all losses")
    add("--from-results", type=Path, help="a sweep.json to draw figure 3 from")
    add("--quick", action="store_true", help="few letters and steps, to see that it runs")
    parsed = parser.parse_args(arguments)
    for name in ("seeds", "steps"):
        if getattr(parsed, name) < 1:
            parser.error(f"argument --{name}: must be at least 1, got {getattr(parsed, name)}")
    if parsed.class_rate is not None and parsed.class_rate <= 0:
        parser.error(f"argument --class-rate: must be greater than 0, got {parsed.class_rate}")
    if parsed.from_results is not None and not parsed.from_results.is_file():
        parser.error(f"argument --from-results: there is no file {parsed.from_results}")
    return parsed


def swept_figure(parsed: argparse.Namespace, split: ClassSplit, schedule: Schedule) -> Figure:
    """Figure 3, from trainings, which leave sweep.json, or from such a file."""
    if parsed.from_results is not None:
        return curves.sweep_figure(json.loads(parsed.from_results.read_text("utf-8")))
    seeds = 1 if parsed.quick else parsed.seeds
    rows = list(sweep(split, schedule, sweep_settings(), seeds))
    lines = ",\n".join(json.dumps(row) for row in rows)
    (parsed.out / "sweep.json").write_text(f"[\n{lines}\n]\n", "utf-8")
    return curves.sweep_figure(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parsed = parse_arguments(arguments)
    parsed.out.mkdir(parents=True, exist_ok=True)
    glyphs = render_glyphs()
    schedule = replace(SCHEDULE, steps=parsed.steps, class_learning_rate=parsed.class_rate)
    if parsed.quick:
        glyphs = glyphs.select(torch.arange(QUICK_LETTERS))
        schedule = replace(schedule, steps=QUICK_STEPS, classes_per_batch=16)
    split = split_classes(glyphs)
    longer = replace(schedule, steps=LONGER * schedule.steps)

    @cache
    def long_training(setting: Setting) -> tuple[Recording, Cloud]:
        network, recorded = trained(setting, split, longer)
        ended = converged(network, recorded, split.train)
        return recorded, Cloud(torch.cat(recorded.crossings), ended)

    draw = {
        1: planes.boundaries_figure,
        2: planes.gradients_figure,
        3: lambda: swept_figure(parsed, split, schedule),
        4: lambda: curves.histories_figure(
            {each: long_training(each)[0].means for each in (CIRCLE, AM_SOFTMAX)}
        ),
        5: lambda: curves.scatter_figure({each: long_training(each)[1] for each in SCATTERED}),
    }
    for number in sorted(set(parsed.figures)):
        path = parsed.out / f"figure_{number}.png"
        draw[number]().savefig(path, dpi=110)
        print(path)


if __name__ == "__main__":
    main()
