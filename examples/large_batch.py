"""Train the glyph network with a batch of 16,384 letters and the activations of 512.

    python examples/large_batch.py          # two minutes on two cores
    python examples/large_batch.py --quick  # see that it runs, a few seconds

What the loss takes for 16,384 embeddings is tens of megabytes. What would not fit are the network's
activations, 140 kB for each picture of 4 kB. ``in_chunks`` computes them for a chunk at a time and
again in the backward pass, so that those of one chunk are alive at a time:

    embeddings = in_chunks(network, images, chunk_size=512)  # for: embeddings = network(images)

First, at a size that fits both, the network is trained for some steps in this way and, from the
same weights and with the same batches, with all activations alive. Both runs have to agree in every
loss and every gradient; where they do not, the program ends with exit code 1. Batch normalisation
sees chunks, so the other run goes through the network chunk by chunk, too. Then a table compares
memory and time of a step, and the network is trained with the large batch.

A large batch has some letters several times in one face, distorted in different ways.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from glyphs import packages_of_the_examples

with packages_of_the_examples():
    import torch
    from glyphs import command_line, report
    from glyphs.batches import pk_batch
    from glyphs.data import ClassSplit, GlyphSet, render_glyphs, split_classes
    from glyphs.memory import LiveBytes
    from glyphs.training import (
        LossResult,
        Schedule,
        Step,
        compare,
        evaluate,
        new_network,
        optimizer_of,
    )
    from rich.console import Console
    from torch import Tensor, nn
    from tqdm import tqdm

    from circle_kernels import CircleLoss, in_chunks


@dataclass(frozen=True, kw_only=True)
class Settings(Schedule):
    """Sizes of a run; those of the schedule are of a part of the batch."""

    parts: int  # of P x K pictures, in a batch
    chunk_size: int
    compared_parts: int = 1  # in a batch of the comparison
    compared_steps: int = 5

    @property
    def part_size(self) -> int:
        return self.classes_per_batch * self.pictures_per_class

    @property
    def batch_size(self) -> int:
        return self.parts * self.part_size


DEFAULTS = Settings(
    steps=16,
    learning_rate=5e-3,  # of three the best on the validation classes, at 2,048
    classes_per_batch=256,
    pictures_per_class=4,
    parts=16,
    chunk_size=512,
)
QUICK = {"steps": 2, "parts": 2, "chunk_size": 256, "compared_steps": 2}
M, GAMMA = 0.25, 8.0  # those of glyph_retrieval.py

# A network and images to embeddings.
Embed = Callable[[nn.Module, Tensor], Tensor]


def untrained(settings: Settings) -> nn.Module:
    """A batch normalisation at the network's end has it learn in few steps."""
    return new_network(settings.seed, batch_norm=True)


class Training:
    """A network on its way, with one way to compute its embeddings."""

    def __init__(self, settings: Settings, embed: Embed) -> None:
        self.network = untrained(settings)
        self.embed = embed
        self.criterion = CircleLoss(m=M, gamma=GAMMA)
        self.optimizer, self.falling_rate = optimizer_of(self.network.parameters(), settings)

    def gradient(self, images: Tensor, labels: Tensor) -> LossResult:
        """The loss and the network's gradient, left in its parameters and here as one vector."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = self.criterion(self.embed(self.network, images), labels)
        loss.backward()
        seconds = time.perf_counter() - start
        gradient = torch.cat([each.grad.flatten() for each in self.network.parameters()])
        return LossResult(loss.item(), gradient, seconds)

    def step(self, images: Tensor, labels: Tensor) -> LossResult:
        """One step of training."""
        result = self.gradient(images, labels)
        self.optimizer.step()
        self.falling_rate.step()
        return result


def chunked(settings: Settings) -> Embed:
    """With the activations of one chunk."""
    return lambda network, images: in_chunks(network, images, chunk_size=settings.chunk_size)


def plain(settings: Settings) -> Embed:
    """With all activations, through the same chunks."""

    def embed(network: nn.Module, images: Tensor) -> Tensor:
        chunks = images.tensor_split(-(-len(images) // settings.chunk_size))
        return torch.cat([network(chunk) for chunk in chunks])

    return embed


def large_batch(
    glyphs: GlyphSet, settings: Settings, parts: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Images and labels of so many parts, each P different classes with K different pictures."""
    sizes = settings.classes_per_batch, settings.pictures_per_class
    drawn = [pk_batch(glyphs, *sizes, generator) for _ in range(parts)]
    images, labels = zip(*drawn, strict=True)
    return torch.cat(images), torch.cat(labels)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--parts", type=int, help="of P x K pictures each, in a batch")
    add("--chunk-size", type=int, help="pictures whose activations are alive at a time")
    add("--quick", action="store_true", help="small batches and few steps, to see that it runs")
    parsed = command_line.parse(parser, arguments, DEFAULTS, fewest_pictures=2, draws=False)
    for name in ("parts", "chunk_size"):
        if getattr(parsed, name) < 1:
            option = name.replace("_", "-")
            parser.error(f"argument --{option}: must be at least 1, got {getattr(parsed, name)}")
    return parsed


def compare_runs(split: ClassSplit, settings: Settings) -> list[Step]:
    """Steps of training in chunks, each compared with that of plain training."""
    short = replace(settings, steps=settings.compared_steps, chunk_size=settings.part_size // 8)
    ours, theirs = Training(short, chunked(short)), Training(short, plain(short))
    generator = torch.Generator().manual_seed(short.seed)
    steps = []
    for _ in tqdm(range(short.steps), desc="training both ways", unit="step"):
        batch = large_batch(split.train, short, short.compared_parts, generator)
        result = ours.step(*batch)
        compared = compare(result, theirs.step(*batch))
        steps.append(Step(result.value, result.seconds, 0.0, compared))
    return steps


def measured(settings: Settings, embed: Embed, images: Tensor, labels: Tensor) -> tuple[str, str]:
    """Megabytes and seconds of forward and backward pass."""
    training = Training(settings, embed)
    seconds = training.gradient(images, labels).seconds
    with LiveBytes() as live:
        training.gradient(images, labels)
    return f"{live.peak / 1e6:,.0f} MB", f"{seconds:.2f} s"


def memory_table(split: ClassSplit, settings: Settings) -> report.Table:
    """Memory and time at growing sizes: with all activations for as long as that is modest."""
    rows = []
    generator = torch.Generator().manual_seed(settings.seed)
    parts = sorted({1, min(4, settings.parts), settings.parts})
    for count in tqdm(parts, desc="measuring memory", unit="size"):
        batch = large_batch(split.train, settings, count, generator)
        ways = {"in_chunks": chunked(settings)}
        if count <= 4:
            ways = {"all activations": plain(settings), **ways}
        rows += [
            (f"{len(batch[1]):,}", name, *measured(settings, embed, *batch))
            for name, embed in ways.items()
        ]
    columns = ("batch", "how", "peak of live tensors", "forward, backward")
    title = f"One step in chunks of {settings.chunk_size}, beside images of 4 kB each"
    return report.table(title, *columns, rows=rows, names=False)


def train(split: ClassSplit, settings: Settings) -> tuple[nn.Module, list[float]]:
    """The network trained with the large batch, and the seconds of each step."""
    training = Training(settings, chunked(settings))
    generator = torch.Generator().manual_seed(settings.seed)
    seconds = []
    progress = tqdm(range(settings.steps), desc=f"batch of {settings.batch_size:,}", unit="step")
    for _ in progress:
        batch = large_batch(split.train, settings, settings.parts, generator)
        result = training.step(*batch)
        seconds.append(result.seconds)
        progress.set_postfix(loss=f"{result.value:.2f}")
    return training.network, seconds


def largest_difference(steps: Sequence[Step]) -> float:
    """Of losses and gradients over all steps; NaN where anything is."""
    differences = [
        difference
        for step in steps
        for difference in (step.compared.loss_difference, step.compared.gradient_difference)
    ]
    return torch.tensor(differences, dtype=torch.float64).max().item()


def run(settings: Settings, split: ClassSplit, console: Console) -> str | None:
    """Compare, measure, train and print; what is wrong with the comparison, if anything."""
    steps = compare_runs(split, settings)
    console.print(report.agreement_table(steps, "in_chunks", "all activations"))
    console.print(memory_table(split, settings))
    metrics: dict[str, dict[str, float]] = {
        "network, untrained": evaluate(untrained(settings), split.test)
    }
    network, seconds = train(split, settings)
    metrics["network, trained"] = evaluate(network, split.test)
    console.print(report.retrieval_table(report.unseen(split.test), metrics))
    console.print(
        f"{settings.steps} steps with {settings.batch_size:,} letters each, "
        f"{fmean(seconds):.1f} s a step",
        highlight=False,
    )
    difference = largest_difference(steps)
    if difference <= 0:  # which NaN is not
        console.print("Both ways agree bit by bit at every step.")
        return None
    return f"The runs differ by {difference:.1e}"


def main(arguments: Sequence[str] | None = None) -> None:
    parsed = parse_arguments(arguments)
    start = time.perf_counter()
    console = Console()
    split = split_classes(render_glyphs())
    console.print(str(split))
    settings = command_line.schedule(parsed, DEFAULTS, split)
    if parsed.quick:
        smaller = {name: min(getattr(settings, name), most) for name, most in QUICK.items()}
        settings = replace(settings, **smaller)
    wrong = run(settings, split, console)
    console.print(f"Time: {time.perf_counter() - start:.0f} s", highlight=False)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
