"""Train a small SentenceTransformer on the names of name_retrieval.py with circle loss.

    python examples/name_sentences.py  # about half a minute

The model is made here of modules, with nothing to download: the network of name_retrieval.py as
the module that takes texts. The rest is sentence-transformers as anywhere: its trainer, batches in
which every class has several sentences, and ``model.encode``. Only the loss is from here.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from typing import Any

from glyphs import packages_of_the_examples

with packages_of_the_examples():
    from datasets import Dataset
    from names import report
    from names.data import EntitySplit, load_locales, name_set, split_entities
    from names.network import code_points, new_network
    from rich.console import Console
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer.modules import InputModule
    from sentence_transformers.sentence_transformer.training_args import (
        BatchSamplers,
        SentenceTransformerTrainingArguments,
    )
    from torch import Tensor

    from circle_kernels.evaluation import retrieval_metrics
    from circle_kernels.integrations.sentence_transformers import CircleLoss


class Characters(InputModule):
    """Texts to embeddings by the network over characters."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.network = new_network(seed)

    def preprocess(self, inputs: Sequence[str], **_: Any) -> dict[str, Tensor]:
        return {"input_ids": code_points(inputs)}  # a name that the trainer knows

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**features, "sentence_embedding": self.network(features["input_ids"])}

    def save(self, output_path: str, *_: Any, **options: Any) -> None:
        """The weights; what they belong to is this module."""
        self.save_torch_weights(output_path, **options)


def train(model: SentenceTransformer, split: EntitySplit, steps: int, seed: int) -> None:
    """Train the model in place on all names of the training entities."""
    names, labels = split.train.names_and_labels(None)
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=512,
            batch_sampler=BatchSamplers.GROUP_BY_LABEL,
            learning_rate=6e-3,
            warmup_steps=steps // 10,
            weight_decay=0.0,
            max_grad_norm=0.0,
            seed=seed,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        )
        trainer = SentenceTransformerTrainer(
            model,
            arguments,
            train_dataset=Dataset.from_dict({"sentence": names, "label": labels.tolist()}),
            loss=CircleLoss(model, m=0.25, gamma=16),
        )
        trainer.train()


def run(split: EntitySplit, steps: int, seed: int, console: Console) -> None:
    """Train, and print the metrics of the test entities before and after."""
    model = SentenceTransformer(modules=[Characters(seed)], device="cpu")
    names, labels = split.test.names_and_labels()

    def metrics() -> list[dict[str, float]]:
        embeddings = model.encode(names, batch_size=512, convert_to_tensor=True)
        return [retrieval_metrics(embeddings, labels)]

    rows = {"untrained": metrics()}
    train(model, split, steps, seed)
    console.print(report.metrics_table(split.test, {**rows, "circle loss": metrics()}))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150, help="training steps")
    parser.add_argument("--seed", type=int, default=0, help="of the network and the batches")
    parsed = parser.parse_args(arguments)
    if parsed.steps < 1:
        parser.error(f"argument --steps: must be at least 1, got {parsed.steps}")
    if not 0 <= parsed.seed < 2**32:
        parser.error(f"argument --seed: must be in 0 to 2**32 - 1, got {parsed.seed}")
    run(split_entities(name_set(load_locales())), parsed.steps, parsed.seed, Console())


if __name__ == "__main__":
    main()
