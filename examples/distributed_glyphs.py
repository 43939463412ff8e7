"""Train the glyph network with several processes, and show that it is the training of one process.

    torchrun --nproc-per-node 2 examples/distributed_glyphs.py    # two processes, half a minute
    python examples/distributed_glyphs.py                         # the same with one

Every process draws the same batch of letters and takes its own part of it; the parts differ in
size. ``DistributedDataParallel`` averages the gradients of the network, ``CircleLoss`` with
``group="world"`` compares each letter with those of all processes. These two lines are all that
differs from a training in one process.

Beside it, the first process trains a second network on the whole batches, without a group. Both
runs start from the same weights and see the same batches, so they have to agree step by step. The
table shows the losses of both and the largest differences of losses and of the network's
gradients; where these are above the tolerance, the program ends with exit code 1. Everything is
computed in float64: in float32, rounding would hide a small mistake.

Batch normalisation sees one process's part of the batch. The network of the second run therefore
takes the whole batch part by part, too; its loss takes all of it at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from glyphs import packages_of_the_examples

with packages_of_the_examples():
    import torch
    import torch.distributed as dist
    from glyphs import command_line, report
    from glyphs.batches import pk_batch
    from glyphs.data import ClassSplit, render_glyphs, split_classes
    from glyphs.network import GlyphNetwork
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
    from torch.nn.parallel import DistributedDataParallel
    from tqdm import tqdm

    from circle_kernels import CircleLoss

DEFAULTS = Schedule(steps=40, learning_rate=2e-3)
M, GAMMA = 0.25, 8.0  # those of glyph_retrieval.py
HINT = (
    "This is one process. Start several on this machine with\n"
    "    torchrun --nproc-per-node 2 examples/distributed_glyphs.py"
)


@dataclass
class Training:
    """A network on its way, with one way to compute its loss."""

    network: nn.Module
    criterion: CircleLoss
    schedule: Schedule

    def __post_init__(self) -> None:
        self.optimizer, self.falling_rate = optimizer_of(self.network.parameters(), self.schedule)
        self.network.train()

    def step(self, parts: Sequence[Tensor], labels: Tensor) -> LossResult:
        """One step on images, given in parts, and their labels; the network's gradient as one."""
        start = time.perf_counter()
        embeddings = torch.cat([self.network(images) for images in parts])
        loss = self.criterion(embeddings, labels)
        self.optimizer.zero_grad()
        loss.backward()
        gradient = torch.cat([each.grad.flatten() for each in self.network.parameters()])
        self.optimizer.step()
        self.falling_rate.step()
        return LossResult(loss.item(), gradient, time.perf_counter() - start)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-9,
        help="how far losses and gradients may differ at any step, relatively",
    )
    parser.add_argument(
        "--without-group",
        action="store_true",
        help="leave out group='world', to see that the comparison notices it",
    )
    return command_line.parse(parser, arguments, DEFAULTS, fewest_pictures=2, draws=False)


def sizes_of_parts(rows: int, processes: int) -> list[int]:
    """How many rows of a batch each process takes: rank 1 about twice as many as rank 0."""
    shares = torch.arange(1, processes + 1).cumsum(0).double()
    ends = (rows * shares / shares[-1]).round().long()
    return ends.diff(prepend=ends.new_zeros(1)).tolist()


def train(split: ClassSplit, schedule: Schedule, *, shared: bool) -> tuple[list[Step], nn.Module]:
    """The steps of this process, in the first one compared with a training in one process.

    Args:
        split: the letters.
        schedule: batches, steps and rate.
        shared: whether processes share their batches.
    """
    rank, processes = dist.get_rank(), dist.get_world_size()
    network = new_network(schedule.seed).double()
    ours = Training(
        DistributedDataParallel(network),
        CircleLoss(m=M, gamma=GAMMA, group="world" if shared else None),
        schedule,
    )
    alone = None
    if rank == 0:
        whole_batch = CircleLoss(m=M, gamma=GAMMA)
        alone = Training(new_network(schedule.seed).double(), whole_batch, schedule)
    generator = torch.Generator().manual_seed(schedule.seed)  # the same batches everywhere
    steps = []
    title = f"training in a group of {processes}"
    for _ in tqdm(range(schedule.steps), desc=title, unit="step", disable=rank != 0):
        images, labels = pk_batch(
            split.train, schedule.classes_per_batch, schedule.pictures_per_class, generator
        )
        sizes = sizes_of_parts(len(labels), processes)
        parts = images.double().split(sizes)
        result = ours.step([parts[rank]], labels.split(sizes)[rank])
        if alone is not None:
            compared = compare(result, alone.step(parts, labels))
            steps.append(Step(result.value, result.seconds, 0.0, compared))
    return steps, network


def largest_difference(steps: Sequence[Step]) -> float:
    """Of losses and gradients over all steps; NaN where anything is."""
    differences = [
        difference
        for step in steps
        for difference in (step.compared.loss_difference, step.compared.gradient_difference)
    ]
    return torch.tensor(differences, dtype=torch.float64).max().item()


def show(
    steps: Sequence[Step], before: GlyphNetwork, after: GlyphNetwork, split: ClassSplit
) -> None:
    """Print what the network retrieves before and after, and both losses."""
    console = Console()
    networks = {"network, untrained": before, "network, trained": after}
    metrics = {name: evaluate(each.float(), split.test) for name, each in networks.items()}
    console.print(report.retrieval_table(report.unseen(split.test), metrics))
    console.print(report.agreement_table(steps, f"group of {dist.get_world_size()}", "no group"))


def run(parsed: argparse.Namespace) -> str | None:
    """Train, compare and print; what is wrong with the result, if anything."""
    split = split_classes(render_glyphs())
    schedule = command_line.schedule(parsed, DEFAULTS, split)
    steps, network = train(split, schedule, shared=not parsed.without_group)
    if dist.get_rank() > 0:
        return None
    show(steps, new_network(schedule.seed), network, split)
    difference = largest_difference(steps)
    if difference <= parsed.tolerance:  # which NaN is not
        print(f"Both runs agree to {difference:.1e} at every step.")
        return None
    return f"The runs differ by {difference:.1e}, more than --tolerance {parsed.tolerance:g} allows"


def main(arguments: Sequence[str] | None = None) -> None:
    parsed = parse_arguments(arguments)
    if "RANK" in os.environ:  # torchrun says who is who
        dist.init_process_group("gloo")
    else:
        print(HINT)
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrong = run(parsed)
    finally:
        dist.destroy_process_group()
    sys.exit(wrong)


if __name__ == "__main__":
    main()
