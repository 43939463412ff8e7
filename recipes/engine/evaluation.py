"""What a network's embeddings are worth, by the exact metrics of the package."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from circle_kernels.evaluation import (
    reid_metrics,
    retrieval_metrics,
    tar_at_far,
    verification_accuracy,
)
from recipes.configuration import Recipe
from recipes.data.images import EvaluatedPictures, batches_of
from recipes.data.pictures import (
    DataSet,
    Pictures,
    Reidentification,
    Retrieval,
    Task,
    Verification,
)
from recipes.engine.processes import Processes
from recipes.engine.sampling import evaluated_batches
from recipes.models import Embedder

_FOLDS = 10
_PAIRS_AT_ONCE = 2**18


def measure(
    network: Embedder, dataset: DataSet, recipe: Recipe, processes: Processes
) -> dict[str, float]:
    """Every metric of every task of a data set, in [0, 1], the same in every process."""
    network.eval()
    processes.take_buffers_of_first(network)
    found: dict[str, float] = {}
    for task in dataset.tasks:
        found |= _measured(task, network, recipe, processes)
    return found


def _measured(
    task: Task, network: Embedder, recipe: Recipe, processes: Processes
) -> dict[str, float]:
    settings = recipe.evaluation

    def embedded(pictures: Pictures) -> Tensor:
        return embed_pictures(network, pictures, recipe, processes)

    if isinstance(task, Retrieval):
        labels = task.pictures.labels
        return retrieval_metrics(embedded(task.pictures), labels, recall_at=settings.recall_at)
    if isinstance(task, Reidentification):
        query, gallery = task.query, task.gallery
        return reid_metrics(
            *(embedded(query), query.labels, task.cameras[0]),
            *(embedded(gallery), gallery.labels, task.cameras[1]),
            rank_at=settings.rank_at,
        )
    if isinstance(task, Verification):
        embeddings = F.normalize(embedded(task.pictures), dim=1)
        similarity = (embeddings[::2] * embeddings[1::2]).sum(1)
        folds = min(_FOLDS, len(task.same))
        return {task.name: verification_accuracy(similarity, task.same, folds).mean}
    templates = template_embeddings(embedded(task.pictures), task.pictures.labels, task.media)
    similarity = pair_similarities(templates, task.pairs)
    rates = tar_at_far(similarity, task.same, settings.fars)
    return {f"{task.name} TAR@{far:g}": rates[far] for far in settings.fars}


@torch.no_grad()
def embed_pictures(
    network: Embedder, pictures: Pictures, recipe: Recipe, processes: Processes
) -> Tensor:  # (N, D) float32, on the CPU
    """Of all pictures; each process runs the network over some of them."""
    rows = range(processes.rank, len(pictures), processes.count)
    batches = evaluated_batches(rows, recipe.evaluation.batch)
    dataset = EvaluatedPictures(pictures, recipe.data)
    loader = batches_of(dataset, batches, recipe.run.workers, processes.device)
    size = recipe.model.embedding
    embeddings = torch.zeros(len(pictures), size, device=processes.device)
    bar = tqdm(loader, "evaluating", unit="batch", leave=False, disable=not processes.is_first)
    for batch, images in zip(batches, bar, strict=True):
        images = images.to(processes.device)
        with autocast(recipe, processes):
            values = network(images).float()
            if recipe.evaluation.mirrored:
                values = values + network(images.flip(3)).float()
        embeddings[batch] = values
    return processes.sum(embeddings).cpu()


def template_embeddings(
    embeddings: Tensor,  # (N, D)
    templates: Tensor,  # (N,): from 0 on
    media: Tensor,  # (N,)
) -> Tensor:  # (T, D), of norm 1
    """The mean over the media of each template, of each medium the mean over its pictures.

    So that a video's many frames count as one picture does (IJB-C: Maze et al., 2018).
    """
    both = torch.stack([templates, media], dim=1)
    of_medium, medium = torch.unique(both, dim=0, return_inverse=True)
    return F.normalize(_means(_means(embeddings, medium), of_medium[:, 0]), dim=1)


def _means(values: Tensor, groups: Tensor) -> Tensor:
    """Of the rows of each group, whose numbers are from 0 on."""
    counts = groups.bincount()
    sums = values.new_zeros(len(counts), values.shape[1]).index_add_(0, groups, values)
    return sums / counts[:, None]


def pair_similarities(embeddings: Tensor, pairs: Tensor) -> Tensor:  # (T, D), (P, 2) to (P,)
    """Inner products of the listed pairs, of some millions without their embeddings beside it."""
    return torch.cat(
        [
            (embeddings[first] * embeddings[second]).sum(1)
            for first, second in (each.unbind(1) for each in pairs.split(_PAIRS_AT_ONCE))
        ]
    )


def autocast(recipe: Recipe, processes: Processes) -> AbstractContextManager[object]:
    """bfloat16 where the configuration wants it."""
    return torch.autocast(processes.device.type, torch.bfloat16, enabled=recipe.run.amp)
