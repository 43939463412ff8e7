"""From sentences to a loss of their embeddings, with the activations of all or of a mini-batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from circle_kernels.integrations.sentence_transformers.library import SentenceTransformer
from circle_kernels.options import check_integer
from circle_kernels.training.chunks import in_chunks, in_place_of_module


class SentenceLoss(nn.Module):
    """A loss of what a model makes of sentences: subclasses say which, of the embeddings.

    Args:
        model: the model that is trained.
        mini_batch_size: the model is run over so many sentences at a time, and again in the
            backward pass (:func:`circle_kernels.in_chunks`): the activations of one mini-batch are
            alive at a time, and the loss compares the whole batch. ``None`` runs it once over all.

    Raises:
        TypeError, ValueError: a ``mini_batch_size`` that is no integer from 1; when called, one
            where the model's inputs are not one row per sentence.
    """

    def __init__(self, model: SentenceTransformer, mini_batch_size: SupportsIndex | None) -> None:
        super().__init__()
        # The name under which the trainer looks for what it has wrapped.
        self.model = model
        if mini_batch_size is not None:
            mini_batch_size = check_integer("mini_batch_size", mini_batch_size, smallest=1)
        self.mini_batch_size = mini_batch_size

    @property
    def uses_gradient_cache(self) -> bool:
        """The library's question whether the model is run in the backward pass, too.

        ``MatryoshkaLoss`` then has its way with :meth:`calculate_loss`, not with the model.
        """
        return self.mini_batch_size is not None

    def forward(
        self,
        sentence_features: Iterable[dict[str, Any]],  # of each column a dictionary of N sentences
        labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch, as the library's trainer asks for it.

        Args:
            sentence_features: of each column of sentences what the model takes.
            labels: (N,) or (N, 1), for losses with classes.

        Returns:
            A scalar.

        Raises:
            TypeError, ValueError: columns or labels that are not what the loss wants.
        """
        embeddings = [self._embed(features) for features in sentence_features]
        if "calculate_loss" not in vars(self):
            return self.compute_loss_from_embeddings(embeddings, labels)
        if not torch.is_grad_enabled():
            return self.calculate_loss([[each] for each in embeddings], labels)
        # Somebody has put something in the method's place, which has the gradients computed at once
        # and goes on with what they are.
        leaves = [each.detach().requires_grad_() for each in embeddings]
        loss = self.calculate_loss([[each] for each in leaves], labels, with_backward=True)
        return _WithGradients.apply(loss, *(each.grad for each in leaves), *embeddings)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Any = None) -> Tensor:
        """The loss of sentences that are embedded already; losses that wrap others call it."""
        raise NotImplementedError

    def calculate_loss(
        self,
        reps: list[list[Tensor]],  # of each column its embeddings, in as many parts as you like
        labels: Tensor | None = None,
        *,
        with_backward: bool = False,
    ) -> Tensor:
        """The same as the library's losses with gradient caching have it; with ``with_backward``
        the gradients are computed and the loss has none."""
        loss = self.compute_loss_from_embeddings([torch.cat(parts) for parts in reps], labels)
        if not with_backward:
            return loss
        of_its_own = [
            name
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and not name.startswith("model.")
        ]
        if of_its_own:
            raise ValueError(
                "mini_batch_size does not go with a loss around this one, such as MatryoshkaLoss, "
                f"where this one has parameters that are trained; got {', '.join(of_its_own)}"
            )
        loss.backward()
        return loss.detach()

    def _embed(self, features: dict[str, Any]) -> Tensor:
        if self.mini_batch_size is None:
            return self.model(features)["sentence_embedding"]
        tensors = {
            name: tuple(value.shape)
            for name, value in features.items()
            if isinstance(value, Tensor) and value.dim() > 0
        }
        if len({shape[0] for shape in tensors.values()}) != 1:
            shapes = ", ".join(f"{name} of shape {shape}" for name, shape in tensors.items())
            raise ValueError(
                "mini_batch_size takes inputs that have one row for each sentence; got "
                f"{shapes or 'no tensors'}; use None with models whose inputs are put one after "
                "the other (StaticEmbedding, or flattened for attention kernels)"
            )
        # In_chunks wants a dictionary of Python, and tokenizers have their own.
        features = dict(features)
        if not isinstance(self.model, DistributedDataParallel):
            return in_chunks(_Embeddings(self.model), features, chunk_size=self.mini_batch_size)
        with in_place_of_module(self.model, _Embeddings(self.model.module)):
            return in_chunks(self.model, features, chunk_size=self.mini_batch_size)

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card lists."""
        return self._config()

    def extra_repr(self) -> str:
        """The settings, but for the modules that are shown below."""
        shown = {name: value for name, value in self.get_config_dict().items() if name != "loss"}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())

    def _config(self) -> dict[str, Any]:
        """What is in :meth:`get_config_dict` of all losses."""
        return {} if self.mini_batch_size is None else {"mini_batch_size": self.mini_batch_size}


class _Embeddings(nn.Module):
    """A model without its embeddings of tokens, which would be kept of the whole batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: dict[str, Any]) -> Tensor:
        return self.model(features)["sentence_embedding"]


class _WithGradients(torch.autograd.Function):
    """A loss whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *gradients_and_embeddings: Tensor) -> Tensor:
        gradients = gradients_and_embeddings[: len(gradients_and_embeddings) // 2]
        ctx.save_for_backward(*gradients)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        return None, *(None for _ in gradients), *(upstream * each for each in gradients)
