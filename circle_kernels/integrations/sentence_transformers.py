"""Circle loss for sentence-transformers: embeds a batch of sentences, compares it with itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from circle_kernels.arguments import label_numbers
from circle_kernels.losses import modules
from circle_kernels.options import explain_other_names

try:
    from sentence_transformers import SentenceTransformer
except ModuleNotFoundError as error:
    if error.name != "sentence_transformers":
        raise
    raise ImportError(
        "circle_kernels.integrations.sentence_transformers needs that library: "
        "pip install 'sentence-transformers>=6'",
        name=error.name,
    ) from error


class CircleLoss(nn.Module):
    """Circle loss over (sentence, class) batches (Sun et al., CVPR 2020, arXiv 2002.10857).

    Sentences of one class are positives of each other, those of other classes negatives. A sentence
    counts only where its batch holds another one of its class, so use
    ``BatchSamplers.GROUP_BY_LABEL``. Large losses are normal: they grow with ``gamma``.

    Args:
        model: the model that is trained.
        m, gamma, scope, reduction, detach_weights, backend: as for
            :class:`circle_kernels.CircleLoss`.
        sharing: with which processes the batch is shared, and how: ``group`` and what goes with it,
            as for :class:`circle_kernels.CircleLoss`.

    Raises:
        TypeError, ValueError: a hyper-parameter of the wrong type or range; when called, more than
            one column of sentences, or labels that are not one number per sentence.

    Example:
        >>> model = SentenceTransformer("microsoft/mpnet-base")
        >>> data = Dataset.from_dict({"sentence": sentences, "label": classes})
        >>> arguments = SentenceTransformerTrainingArguments(
        ...     "output", batch_sampler=BatchSamplers.GROUP_BY_LABEL
        ... )
        >>> trainer = SentenceTransformerTrainer(
        ...     model, arguments, train_dataset=data, loss=CircleLoss(model)
        ... )
        >>> trainer.train()
    """

    @explain_other_names
    def __init__(
        self,
        model: SentenceTransformer,
        m: float = 0.4,
        gamma: float = 80.0,
        *,
        scope: str = "anchor",
        reduction: str = "mean",
        detach_weights: bool = True,
        backend: str = "auto",
        **sharing: Any,
    ) -> None:
        super().__init__()
        if reduction == "none":
            raise ValueError("reduction must be 'mean', 'mean_all' or 'sum' to train; got 'none'")
        # The name under which the trainer looks for what it has wrapped.
        self.model = model
        self.loss = modules.CircleLoss(
            m,
            gamma,
            scope=scope,
            reduction=reduction,
            detach_weights=detach_weights,
            backend=backend,
            **sharing,
        )

    def forward(
        self,
        sentence_features: Iterable[dict[str, Tensor]],  # one dictionary of N sentences
        labels: Tensor,  # (N,) or (N, 1), integers, booleans or floats
    ) -> Tensor:
        return self.compute_loss_from_embeddings(
            [self.model(features)["sentence_embedding"] for features in sentence_features], labels
        )

    def compute_loss_from_embeddings(
        self,
        embeddings: list[Tensor],  # one tensor (N, D)
        labels: Tensor,  # (N,) or (N, 1), integers, booleans or floats
    ) -> Tensor:
        """The loss of sentences that are embedded already; losses that wrap others call it."""
        if len(embeddings) != 1:
            raise ValueError(
                "sentence_features must hold one column of sentences, whose classes are the "
                f"labels; got {len(embeddings)} columns"
            )
        if isinstance(labels, Tensor):
            if labels.dim() == 2 and labels.shape[1] == 1:
                labels = labels.squeeze(1)
            if labels.dim() == 1:
                (labels,) = label_numbers(labels)  # columns of datasets may be floats
        return self.loss(embeddings[0], labels)

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card lists."""
        return {
            "m": self.loss.m,
            "gamma": self.loss.gamma,
            "scope": self.loss.scope,
            "reduction": self.loss.reduction,
            "detach_weights": self.loss.detach_weights,
        }

    @property
    def citation(self) -> str:
        """BibTeX of the paper, for the model card."""
        return """
@inproceedings{sun2020circle,
    title={Circle Loss: A Unified Perspective of Pair Similarity Optimization},
    author={Yifan Sun and Changmao Cheng and Yuhan Zhang and Chi Zhang and Liang Zheng and
        Zhongdao Wang and Yichen Wei},
    booktitle={CVPR},
    year={2020}
}
"""
