"""The training loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from circle_kernels import average_gradients, in_chunks
from recipes.configuration import Recipe
from recipes.data.images import TrainingPictures, batches_of
from recipes.data.pictures import DataSet
from recipes.engine.checkpoint import State
from recipes.engine.evaluation import autocast, measure
from recipes.engine.objective import Objective, make_optimizer, set_rates
from recipes.engine.processes import Processes
from recipes.engine.sampling import drawn_batches, step_seed
from recipes.engine.scalars import Scalars
from recipes.models import Embedder


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    loss: float  # of the last step
    network: Embedder


def train(
    recipe: Recipe, dataset: DataSet, folder: Path, processes: Processes, resume: bool
) -> Outcome:
    """Train, from the checkpoint in ``folder`` on where ``resume``, and leave checkpoints there.

    On the CPU, with the same number of threads and processes, an interrupted and resumed training
    has bit by bit the losses and weights of one that was not.

    Raises:
        ConfigurationError, FileNotFoundError: what is to be resumed is not there or is of other
            settings; batches are too large for the data or no multiple of the processes.
        FloatingPointError: a loss is not finite.
    """
    training, device = recipe.training, processes.device
    part = processes.part(training.batch)
    torch.manual_seed(training.seed)
    network = Embedder(recipe.model).to(device)
    objective = Objective(recipe.loss, dataset.classes, recipe.model.embedding, processes.count)
    objective.to(device)
    optimizer = make_optimizer(network, objective, training)
    state = State(network, objective, optimizer)
    first, loss = state.load(folder, recipe) if resume else (0, math.nan)
    embed = _embedding_function(network, recipe, processes)
    loader = batches_of(
        TrainingPictures(dataset.train, recipe.data, training.seed),
        drawn_batches(dataset.train.labels, training, first, part),
        recipe.run.workers,
        device,
    )
    network.train()
    bar = tqdm(
        loader,
        desc=recipe.title,
        initial=first,
        total=training.steps,
        unit="step",
        disable=not processes.is_first,
    )
    with Scalars(folder if recipe.run.tensorboard and processes.is_first else None) as scalars:
        for step, (images, labels) in enumerate(bar, first):
            share = set_rates(optimizer, training, step)
            torch.manual_seed(step_seed(training, step, processes.rank))
            value = objective(embed(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            value.backward()
            if processes.count > 1:
                average_gradients(objective.parameters())
            optimizer.step()
            done = step + 1
            loss = float(processes.sum(value.detach().clone())) / processes.count
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss of step {done} is {loss}")
            bar.set_postfix(loss=f"{loss:.3f}")
            scalars.add({"loss": loss, "rate": share * training.learning_rate}, done)
            if processes.is_first and (
                done % recipe.run.checkpoint_every == 0 or done == training.steps
            ):
                state.save(folder, done, loss, recipe)
            every = recipe.run.evaluate_every
            if every and done % every == 0 and done < training.steps:
                scalars.add(measure(network, dataset, recipe, processes), done)
                network.train()
    return Outcome(loss, network)


def _embedding_function(
    network: Embedder, recipe: Recipe, processes: Processes
) -> Callable[[Tensor], Tensor]:
    """From images to embeddings, in the way that was asked for."""
    wrapped = DistributedDataParallel(network) if processes.count > 1 else network

    def embed(images: Tensor) -> Tensor:
        with autocast(recipe, processes):
            if recipe.run.chunk:
                embeddings = in_chunks(wrapped, images, chunk_size=recipe.run.chunk)
            else:
                embeddings = wrapped(images)
        return embeddings.float()

    return embed
