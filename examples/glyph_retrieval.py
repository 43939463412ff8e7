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
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from glyphs import packages_of_the_examples

with packages_of_the_examples():
    from glyphs import report, search
    from glyphs.command_line import add_arguments, check_arguments, check_classes_per_batch
    from glyphs.data import ClassSplit, render_glyphs, split_classes
    from glyphs.figure import save_figure
    from glyphs.metrics import retrieval_metrics
    from glyphs.network import embed
    from glyphs.training import Settings, evaluate, new_network, train
    from rich.console import Console

    from circle_kernels import CircleLoss

# Chosen on the validation classes by: python examples/glyph_retrieval.py --choose
DEFAULTS = Settings(m=0.25, gamma=8.0, steps=600, learning_rate=2e-3)

BACKEND_OF = {"fused": "auto", "naive": "reference"}

CAVEATS = (
    "Synthetic data from one font family, test pictures not distorted, one seed. Letters that look "
    "alike but differ in a pixel, as some of Latin, Greek and Cyrillic, are different classes and "
    "may stand on both sides of the split."
)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked; ends the program with a message where it makes no sense."""
    parser = argparse.ArgumentParser(
        description="Train an embedding of letters with circle loss and report retrieval metrics "
        "on letters never seen in training.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--loss",
        choices=tuple(BACKEND_OF),
        default="fused",
        help="which loss drives the training; with naive, the fused one is computed on the same "
        "embeddings for comparison",
    )
    parser.add_argument(
        "--choose",
        action="store_true",
        help="search m, gamma, learning rate and steps on the validation classes and stop",
    )
    parser.add_argument("--m", type=float, default=DEFAULTS.m, help="relaxation margin")
    parser.add_argument("--gamma", type=float, default=DEFAULTS.gamma, help="scale of the logits")
    parser.add_argument(
        "--lr", type=float, default=DEFAULTS.learning_rate, help="Adam's first learning rate"
    )
    add_arguments(parser, DEFAULTS, "glyph_retrieval.png")
    parsed = parser.parse_args(arguments)
    try:
        CircleLoss(m=parsed.m, gamma=parsed.gamma)
    except ValueError as error:
        parser.error(f"argument --m or --gamma: {error}")
    if not 0 < parsed.lr < float("inf"):
        parser.error(f"argument --lr: must be positive and finite, got {parsed.lr}")
    # A positive pair takes two.
    check_arguments(parser, parsed, fewest_pictures=2)
    return parsed


def choose(split: ClassSplit, console: Console, seed: int) -> None:
    """Search the hyper-parameters on the validation classes and print all that was tried."""
    chosen, results = search.choose_settings(
        lambda settings: search.validation_metrics(settings, split),
        replace(search.FIRST_TRY, seed=seed),
    )
    console.print(report.search_table(list(results.items())))
    console.print(
        f"Chosen by MAP@R: m={chosen.m:g} gamma={chosen.gamma:g} steps={chosen.steps} "
        f"learning rate={chosen.learning_rate:g}"
    )


def run(settings: Settings, loss: str, split: ClassSplit, folder: Path, console: Console) -> Path:
    """Train, evaluate on the test classes before and after, print the tables, write the figure.

    Args:
        settings: hyper-parameters.
        loss: ``"fused"``, or ``"naive"`` to compare both.
        split: the classes.
        folder: where the figure goes; made if missing.
        console: where the tables go.

    Returns:
        The figure's path.
    """
    name = loss
    compared_name = "fused" if loss == "naive" else None
    criterion, compared = (
        CircleLoss(m=settings.m, gamma=settings.gamma, backend=BACKEND_OF[which]) if which else None
        for which in (name, compared_name)
    )
    images, labels = split.test.images_and_labels()
    network = new_network(settings.seed)
    rows = [
        ("raw pixels", retrieval_metrics(images.flatten(1), labels)),
        ("network, untrained", evaluate(network, split.test)),
    ]
    history = train(
        network,
        split.train,
        split.validation,
        settings,
        criterion,
        compared=compared,
        title=f"training with the {name} loss",
    )
    embeddings = embed(network, images)
    metrics = retrieval_metrics(embeddings, labels)
    rows.append((f"network, {name} circle loss", metrics))

    title = f"{len(split.test.characters)} letters never seen in training, {len(labels):,} pictures"
    console.print(report.metrics_table(title, rows))
    console.print(CAVEATS, style="dim", highlight=False)
    console.print(report.time_table(history.steps, name, compared_name))
    if compared_name is not None:
        console.print(report.agreement_table(history.steps, name, compared_name))

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "glyph_retrieval.png"
    save_figure(
        path,
        history,
        (name, compared_name),
        split.test,
        embeddings,
        metrics,
        seed=settings.seed,
    )
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    parsed = parse_arguments(arguments)
    start = time.perf_counter()
    console = Console()
    glyphs = render_glyphs()
    split = split_classes(glyphs)
    train_classes = len(split.train.characters)
    console.print(
        f"{len(glyphs.characters):,} letters x {len(glyphs.faces)} faces: {train_classes} to train "
        f"on, {len(split.validation.characters)} to validate, {len(split.test.characters)} to test"
    )
    if parsed.choose:
        choose(split, console, parsed.seed)
        return
    check_classes_per_batch(parsed.classes_per_batch, split)
    settings = Settings(
        m=parsed.m,
        gamma=parsed.gamma,
        steps=parsed.steps,
        learning_rate=parsed.lr,
        classes_per_batch=parsed.classes_per_batch,
        pictures_per_class=parsed.pictures_per_class,
        seed=parsed.seed,
    )
    path = run(settings, parsed.loss, split, parsed.out, console)
    console.print(f"Figure: {path}\nTime: {time.perf_counter() - start:.0f} s", highlight=False)


if __name__ == "__main__":
    main()
