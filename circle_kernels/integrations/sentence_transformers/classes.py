"""Losses over (sentence, class) batches: a batch of sentences is embedded and compared with
itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, SupportsIndex

from torch import Tensor
from typing_extensions import Unpack

from circle_kernels.arguments import describe, label_numbers
from circle_kernels.integrations.sentence_transformers.embedding import SentenceLoss
from circle_kernels.integrations.sentence_transformers.library import SentenceTransformer
from circle_kernels.losses import modules
from circle_kernels.losses.pairs import SharingOptions
from circle_kernels.options import (
    SCALAR_REDUCTIONS,
    BackendName,
    ScalarReduction,
    Scope,
    explain_other_names,
)


class PairLoss(SentenceLoss):
    """Any pair loss over (sentence, class) batches, as :mod:`circle_kernels.losses` has them.

    Sentences of one class are positives of each other, those of other classes negatives. A sentence
    counts only where its batch holds another one of its class, so use
    ``BatchSamplers.GROUP_BY_LABEL``.

    Args:
        model: the model that is trained.
        loss: what is computed, ``loss(embeddings, labels)`` of (N, D) and (N,): a module, whose
            parameters are trained with the model's, or a function.
        mini_batch_size: the model is run over so many sentences at a time, and again in the
            backward pass, so that the activations of one mini-batch are alive at a time
            (:func:`circle_kernels.in_chunks`); the loss compares the whole batch.

    Raises:
        TypeError, ValueError: an argument of the wrong type or range; when called, more than one
            column of sentences, or labels that are not one number per sentence.

    Example:
        >>> loss = PairLoss(model, losses.SupConLoss(temperature=0.1), mini_batch_size=64)
    """

    def __init__(
        self,
        model: SentenceTransformer,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        mini_batch_size: SupportsIndex | None = None,
    ) -> None:
        super().__init__(model, mini_batch_size)
        if not callable(loss) or isinstance(loss, type):
            raise TypeError(
                "loss must be a module such as circle_kernels.losses.SupConLoss(), or a function, "
                f"of embeddings and labels; got {describe(loss)}"
            )
        if getattr(loss, "reduction", None) == "none":
            raise ValueError(
                f"{type(loss).__name__} must have a reduction to one number to train; got "
                "reduction='none'"
            )
        self.loss = loss

    def compute_loss_from_embeddings(
        self,
        embeddings: list[Tensor],  # one tensor (N, D)
        labels: Any = None,  # (N,) or (N, 1), integers, booleans or floats
    ) -> Tensor:
        """The loss of sentences that are embedded already; losses that wrap others call it."""
        if len(embeddings) != 1:
            raise ValueError(
                "sentence_features must hold one column of sentences, whose classes are the "
                f"labels; got {len(embeddings)} columns"
            )
        if labels is None:
            raise TypeError(
                "labels must be the sentences' classes, (N,), which the trainer takes from the "
                "column 'label' of its dataset; got None"
            )
        if isinstance(labels, Tensor):
            if labels.dim() == 2 and labels.shape[1] == 1:
                labels = labels.squeeze(1)
            if labels.dim() == 1:
                (labels,) = label_numbers(labels)  # columns of datasets may be floats
        return self.loss(embeddings[0], labels)

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card lists."""
        return {"loss": repr(self.loss), **self._config()}


class CircleLoss(PairLoss):
    """Circle loss over (sentence, class) batches (Sun et al., CVPR 2020, arXiv 2002.10857).

    Sentences of one class are positives of each other, those of other classes negatives. A sentence
    counts only where its batch holds another one of its class, so use
    ``BatchSamplers.GROUP_BY_LABEL``. Large losses are normal: they grow with ``gamma``.

    Args:
        model: the model that is trained.
        m: relaxation margin, greater than -1 and less than 1.
        gamma: scale of the logits, greater than 0.
        scope: ``"anchor"``, one loss per sentence, or ``"batch"``, one over all pairs.
        reduction: ``"mean"`` over sentences that count, ``"mean_all"`` or ``"sum"``.
        detach_weights: treat the weights ``[.]_+`` as constants in the gradient.
        mini_batch_size: the model is run over so many sentences at a time, and again in the
            backward pass, so that the activations of one mini-batch are alive at a time
            (:func:`circle_kernels.in_chunks`); the loss compares the whole batch.
        backend: see :func:`circle_kernels.available_backends`.
        group: the processes that share one batch, all with ``"world"``; ``None`` for this process
            alone.
        exchange, same_sizes, grad_reduction: how they share it; see
            :func:`circle_kernels.circle_loss`.

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

    loss: modules.CircleLoss

    @explain_other_names
    def __init__(
        self,
        model: SentenceTransformer,
        m: float = 0.4,
        gamma: float = 80.0,
        *,
        scope: Scope = "anchor",
        reduction: ScalarReduction = "mean",
        detach_weights: bool = True,
        mini_batch_size: SupportsIndex | None = None,
        backend: BackendName = "auto",
        **sharing: Unpack[SharingOptions],
    ) -> None:
        if reduction not in SCALAR_REDUCTIONS:
            raise ValueError(
                f"reduction must be 'mean', 'mean_all' or 'sum' to train; got {reduction!r}"
            )
        loss = modules.CircleLoss(
            m,
            gamma,
            scope=scope,
            reduction=reduction,
            detach_weights=detach_weights,
            backend=backend,
            **sharing,
        )
        super().__init__(model, loss, mini_batch_size=mini_batch_size)

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card lists."""
        return {
            "m": self.loss.m,
            "gamma": self.loss.gamma,
            "scope": self.loss.scope,
            "reduction": self.loss.reduction,
            "detach_weights": self.loss.detach_weights,
            **self._config(),
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
