"""Train the network with circle loss on batches of P entities x K names."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from circle_kernels import CircleLoss
from names.data import NameSet
from names.network import code_points


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The hyper-parameters of a run."""

    m: float = 0.25
    gamma: float = 16.0
    steps: int = 300
    learning_rate: float = 6e-3  # the highest
    entities_per_batch: int = 128
    names_per_entity: int = 4


class Batches:
    """Random batches of P entities with K names each."""

    def __init__(self, names: NameSet) -> None:
        all_names, labels = names.names_and_labels(None)
        self.codes = code_points(all_names)  # (N, L)
        self.of_entity = [torch.nonzero(labels == i).flatten() for i in range(len(names))]

    def draw(
        self, entities_per_batch: int, names_per_entity: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """P different entities, and K different names of each.

        Returns (P * K, L) code points and (P * K,) labels, the indices of the entities.
        """
        entities = torch.randperm(len(self.of_entity), generator=generator)[:entities_per_batch]
        rows = []
        for entity in entities.tolist():
            own = self.of_entity[entity]
            rows.append(own[torch.randperm(len(own), generator=generator)[:names_per_entity]])
        codes = self.codes[torch.cat(rows)]
        longest = int((codes != 0).sum(dim=1).max())
        return codes[:, :longest], entities.repeat_interleave(names_per_entity)


def train(
    network: nn.Module, names: NameSet, settings: Settings, seed: int, title: str = "training"
) -> list[float]:
    """Train ``network`` in place, by Adam with one cycle of its rate; returns the losses."""
    generator = torch.Generator().manual_seed(seed)
    batches = Batches(names)
    criterion = CircleLoss(m=settings.m, gamma=settings.gamma)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    rates = OneCycleLR(
        optimizer,
        settings.learning_rate,
        # One step more than are taken: at the last of them the rate would be 0.
        total_steps=settings.steps + 1,
        pct_start=0.1,
        cycle_momentum=False,
    )
    losses = []
    network.train()
    progress = tqdm(range(settings.steps), desc=title, unit="step")
    for _ in progress:
        codes, labels = batches.draw(
            settings.entities_per_batch, settings.names_per_entity, generator
        )
        loss = criterion(network(codes), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        losses.append(loss.item())
        progress.set_postfix(loss=f"{losses[-1]:.2f}")
    return losses
