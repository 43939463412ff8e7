"""Retrieve letters of classes never seen in training, with an embedding learned by circle loss.

    python examples/glyph_retrieval.py                  # train and evaluate, about a minute
    python examples/glyph_retrieval.py --loss naive     # the same run with the naive loss
    python examples/glyph_retrieval.py --choose         # how m, gamma, lr and steps were chosen

The data are the letters of the DejaVu fonts that matplotlib ships: about 1,200 classes with 12
pictures each, one per face (see glyphs/data.py for what counts as a class). Half of the classes
are for testing only. Of the other half a sixth are validation classes, the rest is trained on:
random batches of 64 classes x 4 pictures, with a random affine map and noise. Every test picture
is then a query, and all other test pictures are its gallery.

The default m, gamma, learning rate and number of steps are what ``--choose`` chose by MAP@R on the
validation classes: m and gamma together (300 steps), then the learning rate, then the steps. The
choice is flat: gamma 8 to 32 with either m lie within 0.02. The split of the classes is the same
for every ``--seed``, so that no test class has taken part in the choice.

``--loss naive`` trains with the backend ``"reference"``, which builds the similarity matrix, and
at each step computes the fused loss and its gradient on the same embeddings as well. The tables
then show how well both agree and what share of a step each takes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from glyphs import packages_of_the_examples

with packages_of_the_examples():
    from glyphs import command_line, report
    from glyphs.data import ClassSplit, render_glyphs, split_classes
    from glyphs.figures import save_retrieval_figure
    from glyphs.network import embed
    from glyphs.training import Schedule, evaluate, new_network, train
    from rich.console import Console
    from sklearn.model_selection import ParameterGrid

    from circle_kernels import CircleLoss
    from circle_kernels.evaluation import retrieval_metrics


@dataclass(frozen=True, kw_only=True)
class Settings(Schedule):
    """The hyper-parameters of a run."""

    m: float
    gamma: float


# Chosen on the validation classes by: python examples/glyph_retrieval.py --choose
DEFAULTS = Settings(m=0.25, gamma=8.0, steps=600, learning_rate=2e-3)

# What --choose tries, stage by stage: of each stage, everything with the best of those before.
FIRST_TRY = Settings(m=0.25, gamma=16.0, steps=300, learning_rate=2e-3)
STAGES = (
    {"m": (0.25, 0.4), "gamma": (4.0, 8.0, 16.0, 32.0)},  # m: the paper's two
    {"learning_rate": (1e-3, 2e-3, 4e-3)},
    {"steps": (150, 300, 600)},  # what about a minute allows
)

BACKEND_OF = {"fused": "auto", "naive": "reference"}

CAVEATS = (
    "Synthetic data from one font family, test pictures not distorted, one seed. Letters that look "
    "alike but differ in a pixel, as some of Latin, Greek and Cyrillic, are different classes and "
    "may stand on both sides of the split."
)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked; ends the program with a message where it makes no sense."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--loss",
        choices=tuple(BACKEND_OF),
        default="fused",
        help="which loss drives the training; with naive, the fused one is computed on the same "
        "embeddings for comparison",
    )
    add(
        "--choose",
        action="store_true",
        help="search m, gamma, learning rate and steps on the validation classes and stop",
    )
    add("--m", type=float, help="relaxation margin")
    add("--gamma", type=float, help="scale of the logits")
    add("--lr", type=float, dest="learning_rate", metavar="LR", help="Adam's first learning rate")
    # A positive pair takes two pictures.
    parsed = command_line.parse(parser, arguments, DEFAULTS, fewest_pictures=2)
    try:
        CircleLoss(m=parsed.m, gamma=parsed.gamma)
    except ValueError as error:
        parser.error(f"argument --m or --gamma: {error}")
    if not 0 < parsed.learning_rate < float("inf"):
        parser.error(f"argument --lr: must be positive and finite, got {parsed.learning_rate}")
    return parsed


def validation_metrics(settings: Settings, split: ClassSplit) -> dict[str, float]:
    """Train on the training classes and evaluate on the validation classes."""
    network = new_network(settings.seed)
    criterion = CircleLoss(m=settings.m, gamma=settings.gamma)
    title = f"m={settings.m:g} gamma={settings.gamma:g} lr={settings.learning_rate:g}"
    history = train(network, split, settings, criterion, validations=1, title=title)
    return history.validations[-1][1]


def choose(
    split: ClassSplit,
    console: Console,
    seed: int,
    score: Callable[[Settings, ClassSplit], dict[str, float]] = validation_metrics,
) -> None:
    """Search the settings of largest MAP@R on the validation classes and print all tried."""
    chosen = replace(FIRST_TRY, seed=seed)
    tried: dict[Settings, dict[str, float]] = {}
    for stage in STAGES:
        candidates = [replace(chosen, **values) for values in ParameterGrid(stage)]
        tried |= {new: score(new, split) for new in candidates if new not in tried}
        chosen = max(candidates, key=lambda settings: tried[settings]["map@r"])
    columns = ("m", "gamma", "steps", "learning rate", *report.METRICS.values())
    rows = (
        (f"{s.m:g}", f"{s.gamma:g}", str(s.steps), f"{s.learning_rate:g}", *report.rates(found))
        for s, found in tried.items()
    )
    console.print(report.table(report.VALIDATION, *columns, rows=rows, names=False))
    console.print(
        f"Chosen by MAP@R: m={chosen.m:g} gamma={chosen.gamma:g} steps={chosen.steps} "
        f"learning rate={chosen.learning_rate:g}"
    )


def run(settings: Settings, loss: str, split: ClassSplit, folder: Path, console: Console) -> Path:
    """Train, evaluate on the test classes before and after, print the tables, write the figure.

    ``loss`` is ``"fused"``, or ``"naive"`` to compare both. Returns the figure's path, in
    ``folder``, which is made if missing.
    """

    def criterion(name: str) -> CircleLoss:
        return CircleLoss(m=settings.m, gamma=settings.gamma, backend=BACKEND_OF[name])

    compared_name = "fused" if loss == "naive" else None
    images, labels = split.test.images_and_labels()
    network = new_network(settings.seed)
    metrics = {
        "raw pixels": retrieval_metrics(images.flatten(1), labels),
        "network, untrained": evaluate(network, split.test),
    }
    history = train(
        network,
        split,
        settings,
        criterion(loss),
        compared=criterion(compared_name) if compared_name else None,
        title=f"training with the {loss} loss",
    )
    embeddings = embed(network, images)
    trained = metrics[f"network, {loss} circle loss"] = retrieval_metrics(embeddings, labels)

    console.print(report.retrieval_table(report.unseen(split.test), metrics))
    console.print(CAVEATS, style="dim", highlight=False)
    console.print(report.time_table(history.steps, loss, compared_name))
    if compared_name:
        console.print(report.agreement_table(history.steps, loss, compared_name))

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "glyph_retrieval.png"
    names = (loss, compared_name)
    save_retrieval_figure(path, history, names, split.test, embeddings, trained, settings.seed)
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    parsed = parse_arguments(arguments)
    start = time.perf_counter()
    console = Console()
    split = split_classes(render_glyphs())
    console.print(str(split))
    if parsed.choose:
        choose(split, console, parsed.seed)
        return
    settings = command_line.schedule(parsed, DEFAULTS, split)
    path = run(settings, parsed.loss, split, parsed.out, console)
    console.print(f"Figure: {path}\nTime: {time.perf_counter() - start:.0f} s", highlight=False)


if __name__ == "__main__":
    main()
