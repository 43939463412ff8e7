"""Tell whether two pictures show the same letter, of classes never seen in training.

    python examples/glyph_classification.py          # train three losses, about two minutes
    python examples/glyph_classification.py --quick  # see that it runs, a few seconds
    python examples/glyph_classification.py --choose --steps 120  # how the rates were chosen

The data and the network are those of glyph_retrieval.py, with a batch normalisation at its end.
Here it is trained to classify the training letters, as in face recognition: with softmax
cross-entropy, with AM-Softmax (``ClassUnifiedLoss``) and with circle loss (``ClassCircleLoss``).
All three start from the same network and see the same batches. Margins and scales are those of the
circle loss paper's face experiments.

Then the class weights are thrown away, and the embeddings of the test letters are compared:

* accuracy of telling pairs of the same letter from pairs of different ones: ten folds without
  common letters, each with the threshold that is best on the other nine; mean and standard
  deviation over the folds;
* TAR@FAR over all pairs of test pictures: which share of the positive pairs is accepted, where the
  threshold accepts at most that share of the negative pairs;
* Recall@1, each test picture being a query and all others its gallery.

The learning rate of each loss's class weights is what ``--choose`` chose among the same five by
TAR at FAR 1e-3 on the validation classes. Nothing else was tuned.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from glyphs import packages_of_the_examples

with packages_of_the_examples():
    import torch
    import torch.nn.functional as F
    from glyphs import command_line, report
    from glyphs.data import ClassSplit, render_glyphs, split_classes
    from glyphs.evaluation import all_pairs, draw_pairs
    from glyphs.figures import save_verification_figure
    from glyphs.network import EMBEDDING_SIZE, GlyphNetwork, embed
    from glyphs.report import VerificationRow
    from glyphs.training import Schedule, Step, new_network, train
    from rich.console import Console
    from torch import Tensor, nn

    from circle_kernels import ClassCircleLoss, ClassUnifiedLoss
    from circle_kernels.evaluation import retrieval_metrics


class SoftmaxLoss(nn.Module):
    """Cross-entropy of a linear layer; neither its weights nor the embeddings are normalised."""

    def __init__(self, num_classes: int, embedding_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embedding_dim, num_classes)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.linear(embeddings), labels)


# By name: number of classes and size of the embeddings to the loss, which holds the class weights.
LOSSES: dict[str, Callable[[int, int], nn.Module]] = {
    "softmax": SoftmaxLoss,
    "AM-Softmax": lambda classes, size: ClassUnifiedLoss(classes, size, m=0.35, gamma=64),
    "circle": lambda classes, size: ClassCircleLoss(classes, size, m=0.25, gamma=256),
}

# Of the class weights. Chosen on the validation classes by:
# python examples/glyph_classification.py --choose --steps 120
CLASS_RATES = {"softmax": 1e-2, "AM-Softmax": 2e-3, "circle": 1e-2}
# The network's learning rate is that of glyph_retrieval.py. No two pictures of a class are needed.
DEFAULTS = Schedule(steps=400, learning_rate=2e-3, classes_per_batch=256, pictures_per_class=1)

FARS = (1e-2, 1e-3, 1e-4)
CHOSEN_BY = 1e-3  # a FAR
CANDIDATES = (1e-4, 5e-4, 2e-3, 1e-2, 5e-2)  # of --choose; the same for every loss

PAIRS_SEED = 0  # not the run's seed: every run is measured on the same pairs
QUICK_LETTERS = 120
QUICK_STEPS = 20

CAVEATS = (
    "Synthetic data from one font family, one seed; the pairs overlap in their pictures, so that "
    "they are far from independent. Most pairs of different letters are easy to tell apart, some "
    "differ in a pixel: compare the losses here, not these numbers with others."
)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked; ends the program with a message where it makes no sense."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--choose",
        action="store_true",
        help="search the learning rates of the class weights on the validation classes and stop",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"only {QUICK_LETTERS} letters and at most {QUICK_STEPS} steps, to see that it runs",
    )
    return command_line.parse(parser, arguments, DEFAULTS, fewest_pictures=1)


def train_with(
    name: str, schedule: Schedule, split: ClassSplit, **options: object
) -> tuple[GlyphNetwork, list[Step]]:
    """A network trained with the loss of that name, and the steps of its training."""
    network = new_network(schedule.seed, batch_norm=True)
    criterion = LOSSES[name](len(split.train.characters), EMBEDDING_SIZE)
    history = train(network, split, schedule, criterion, **options)
    return network, history.steps


def choose(schedule: Schedule, split: ClassSplit, console: Console) -> None:
    """Search the class weights' learning rate of each loss and print all that was tried."""
    images, labels = split.validation.images_and_labels()

    def validation_tar(name: str, rate: float) -> float:
        tried = replace(schedule, class_learning_rate=rate)
        network, _ = train_with(name, tried, split, validations=1, title=f"{name}, {rate:g}")
        return all_pairs(embed(network, images), labels).tars([CHOSEN_BY])[0]

    tars = {name: {rate: validation_tar(name, rate) for rate in CANDIDATES} for name in LOSSES}
    rows = (
        (name, f"{rate:g}", report.rate(tar))
        for name, of_loss in tars.items()
        for rate, tar in of_loss.items()
    )
    columns = ("loss", "class weights' learning rate", f"TAR@{report.short(CHOSEN_BY)}")
    console.print(report.table(report.VALIDATION, *columns, rows=rows))
    for name, of_loss in tars.items():
        console.print(f"Chosen for {name}: {max(of_loss, key=of_loss.__getitem__):g}")


def run(
    schedules: Mapping[str, Schedule], split: ClassSplit, folder: Path, console: Console
) -> Path:
    """Train with each loss, verify on the test classes, print the table, write the figure.

    ``schedules`` are by the name of the loss, all with the same seed and batches. Returns the
    figure's path, in ``folder``, which is made if missing.
    """
    images, labels = split.test.images_and_labels()
    pairs = draw_pairs(labels, torch.Generator().manual_seed(PAIRS_SEED))

    def measured(name: str, embeddings: Tensor, steps: Sequence[Step] = ()) -> VerificationRow:
        accuracies, every_pair = pairs.accuracies(embeddings), all_pairs(embeddings, labels)
        recall_at_1 = retrieval_metrics(embeddings, labels)["recall@1"]
        return VerificationRow(name, accuracies, every_pair, recall_at_1, steps)

    baseline = measured("raw pixels", images.flatten(1))
    trained = []
    for name, schedule in schedules.items():
        network, steps = train_with(name, schedule, split, title=name)
        trained.append(measured(name, embed(network, images), steps))

    rows = [baseline, *trained]
    console.print(report.verification_table(report.unseen(split.test), rows, FARS))
    console.print(
        f"Accuracy on {len(pairs.same):,} pairs in ten folds. TAR@FAR on all pairs: "
        f"{report.resolution_note(baseline.pairs, FARS)}",
        highlight=False,
    )
    console.print(CAVEATS, style="dim", highlight=False)

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "glyph_classification.png"
    save_verification_figure(
        path,
        {row.name: row.pairs for row in trained},
        (baseline.name, baseline.pairs),
        f"Same letter or not: all {sum(map(len, baseline.pairs)):,} pairs of "
        f"{len(split.test.characters)} unseen letters",
        FARS,
    )
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    parsed = parse_arguments(arguments)
    start = time.perf_counter()
    console = Console()
    glyphs = render_glyphs()
    if parsed.quick:
        glyphs = glyphs.select(torch.arange(QUICK_LETTERS))
        parsed.steps = min(parsed.steps, QUICK_STEPS)
    split = split_classes(glyphs)
    if parsed.quick:
        train_classes = len(split.train.characters)
        parsed.classes_per_batch = min(parsed.classes_per_batch, train_classes)
    schedule = command_line.schedule(parsed, DEFAULTS, split)
    console.print(str(split))
    if parsed.choose:
        choose(schedule, split, console)
        return
    schedules = {
        name: replace(schedule, class_learning_rate=rate) for name, rate in CLASS_RATES.items()
    }
    path = run(schedules, split, parsed.out, console)
    console.print(f"Figure: {path}\nTime: {time.perf_counter() - start:.0f} s", highlight=False)


if __name__ == "__main__":
    main()
