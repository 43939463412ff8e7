"""Multiple negatives ranking, the library's InfoNCE, without its matrices of similarities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex, TypedDict

from torch import Tensor
from torch import distributed as dist
from typing_extensions import Unpack

from circle_kernels.arguments import describe
from circle_kernels.formula import UnifiedFormula
from circle_kernels.integrations.sentence_transformers.directions import (
    DIRECTIONS,
    HARDNESS_MODES,
    PARTITION_MODES,
    Direction,
    HardnessMode,
    PartitionMode,
    RankingFormula,
    ranking_loss,
)
from circle_kernels.integrations.sentence_transformers.embedding import SentenceLoss
from circle_kernels.integrations.sentence_transformers.library import (
    SentenceTransformer,
    cos_sim,
    dot_score,
)
from circle_kernels.losses.pairs import PairOptions, checked_options
from circle_kernels.options import BackendName, check_choice, check_flag, check_integer

_SIMILARITIES: dict[Callable[..., Any], bool] = {cos_sim: True, dot_score: False}  # normalised?
_BOTH_WAYS: tuple[Direction, ...] = ("query_to_doc", "doc_to_query")


class MultipleNegativesRankingLoss(SentenceLoss):
    """The library's loss of the same name: InfoNCE (van den Oord et al. 2018, arXiv 1807.03748).

    ``loss_i = -log(exp(scale s(a_i, p_i)) / sum_j exp(scale s(a_i, d_j)))``, averaged over the
    anchors ``a_i``, with all positives and all hard negatives of the batch as documents ``d_j``.
    Value and gradient are the library's; no matrix of similarities is stored, so that the batch may
    be as large as the embeddings' memory.

    Columns of sentences: anchor, positive and any number of hard negatives. Labels are ignored. Use
    ``BatchSamplers.NO_DUPLICATES``, since a copy of a positive counts as a negative.

    Args:
        model: the model that is trained.
        scale: what similarities are multiplied with, greater than 0: one over the temperature.
        similarity_fct: the library's ``util.cos_sim`` or ``util.dot_score``.
        gather_across_devices: whether all processes' sentences are compared. Each process then gets
            the mean over all anchors, where the library's gets that of its own, and the gradient
            that DDP or FSDP average. Processes may have different numbers of sentences.
        directions: what anchors and documents are compared with, ``"query_to_doc"`` and any of
            ``"query_to_query"``, ``"doc_to_query"`` and ``"doc_to_doc"``.
        partition_mode: ``"joint"``, one softmax over all directions, or ``"per_direction"``, the
            mean of one for each of ``"query_to_doc"`` and ``"doc_to_query"``.
        hardness_mode: which negatives of ``"query_to_doc"`` have ``hardness_strength`` times their
            similarity, held constant, added to their logits: ``"in_batch_negatives"`` documents of
            other anchors (Lan et al. 2025, arXiv 2503.04812, Eq. 5), ``"hard_negatives"`` an
            anchor's own, ``"all_negatives"`` both.
        hardness_strength: at least 0.
        mini_batch_size: the model is run over so many sentences at a time, and again in the
            backward pass, so that the activations of one mini-batch are alive at a time
            (:func:`circle_kernels.in_chunks`); the loss compares the whole batch.
        backend: as for :func:`circle_kernels.circle_loss`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or range; when called, less than two
            columns, or columns of different numbers of sentences.

    Example:
        >>> data = Dataset.from_dict({"anchor": questions, "positive": answers})
        >>> loss = MultipleNegativesRankingLoss(model)
        >>> SentenceTransformerTrainer(model, train_dataset=data, loss=loss).train()
    """

    def __init__(
        self,
        model: SentenceTransformer,
        scale: float = 20.0,
        similarity_fct: Callable[..., Any] = cos_sim,
        gather_across_devices: bool = False,
        directions: Sequence[Direction] = ("query_to_doc",),
        partition_mode: PartitionMode = "joint",
        hardness_mode: HardnessMode | None = None,
        hardness_strength: float = 0.0,
        *,
        mini_batch_size: SupportsIndex | None = None,
        backend: BackendName = "auto",
    ) -> None:
        super().__init__(model, mini_batch_size)
        if similarity_fct not in _SIMILARITIES:
            raise ValueError(
                "similarity_fct must be sentence_transformers.util.cos_sim or .dot_score, of which "
                f"no matrix is stored; got {describe(similarity_fct)}; others need the library's "
                f"own {type(self).__name__}"
            )
        self.scale: float = scale
        self.similarity_fct = similarity_fct
        self.gather_across_devices: bool = check_flag(
            "gather_across_devices", gather_across_devices
        )
        self.directions: tuple[Direction, ...] = _checked_directions(directions)
        check_choice("partition_mode", partition_mode, PARTITION_MODES)
        if partition_mode == "per_direction" and not {*self.directions} <= {*_BOTH_WAYS}:
            raise ValueError(
                "partition_mode='per_direction' must have directions in which the positive is, "
                f"'query_to_doc' and 'doc_to_query'; got {self.directions}; use 'joint'"
            )
        self.partition_mode: PartitionMode = partition_mode
        if hardness_mode is not None:
            check_choice("hardness_mode", hardness_mode, HARDNESS_MODES)
        self.hardness_mode: HardnessMode | None = hardness_mode
        self.hardness_strength: float = hardness_strength
        self.backend: BackendName = backend
        self._formula()  # checks the numbers, so that a typo fails before training starts
        checked_options(type(self).__name__, UnifiedFormula, "mean", PairOptions(backend=backend))

    def compute_loss_from_embeddings(
        self,
        embeddings: list[Tensor],  # anchors, positives, hard negatives, ...: each (N, D)
        labels: Any = None,  # ignored
    ) -> Tensor:
        """The loss of sentences that are embedded already; losses that wrap others call it."""
        if len(embeddings) < 2:
            raise ValueError(
                "sentence_features must hold columns of anchors, of positives and, if you like, of "
                f"hard negatives; got {len(embeddings)} column"
            )
        rows = [len(each) for each in embeddings]
        if len(set(rows)) > 1:
            raise ValueError(
                f"columns must have as many sentences as there are anchors; got {rows} sentences"
            )
        options = PairOptions(
            normalize=_SIMILARITIES[self.similarity_fct],
            backend=self.backend,
        )
        # One process is all there are where nobody has started others.
        if self.gather_across_devices and dist.is_available() and dist.is_initialized():
            options["group"] = "world"
        return ranking_loss(embeddings, self._formula(), options)

    def _formula(self) -> RankingFormula:
        return RankingFormula(
            self.scale,
            self.directions,
            self.partition_mode,
            self.hardness_mode,
            self.hardness_strength,
        )

    @property
    def temperature(self) -> float:
        """One over ``scale``."""
        return 1.0 / self.scale

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card lists."""
        return {
            "scale": self.scale,
            "similarity_fct": self.similarity_fct.__name__,
            "gather_across_devices": self.gather_across_devices,
            "directions": self.directions,
            "partition_mode": self.partition_mode,
            "hardness_mode": self.hardness_mode,
            "hardness_strength": self.hardness_strength,
            **self._config(),
        }

    @property
    def citation(self) -> str:
        """BibTeX of the papers, for the model card."""
        return _INFO_NCE if self.mini_batch_size is None else _INFO_NCE + _GRAD_CACHE


class _RankingOptions(TypedDict, total=False):
    gather_across_devices: bool
    directions: Sequence[Direction]
    partition_mode: PartitionMode
    hardness_mode: HardnessMode | None
    hardness_strength: float
    backend: BackendName


class CachedMultipleNegativesRankingLoss(MultipleNegativesRankingLoss):
    """:class:`MultipleNegativesRankingLoss` by mini-batches, as the library's loss of the same
    name: large batches with the activations of one mini-batch (Gao et al. 2021, arXiv 2101.06983).

    Args:
        model, scale, similarity_fct: as there.
        mini_batch_size: the most sentences that the model is run over at a time, at least 1.
        gather_across_devices, directions, partition_mode, hardness_mode, hardness_strength,
            backend: as there.
        mini_batch_num_tokens, show_progress_bar: of the library's own loss; refused where they are
            set.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        scale: float = 20.0,
        similarity_fct: Callable[..., Any] = cos_sim,
        mini_batch_size: SupportsIndex = 32,
        *,
        mini_batch_num_tokens: int | None = None,
        show_progress_bar: bool = False,
        **options: Unpack[_RankingOptions],
    ) -> None:
        for name, value, instead in (
            ("mini_batch_num_tokens", mini_batch_num_tokens, "mini_batch_size counts sentences"),
            ("show_progress_bar", show_progress_bar, "the trainer shows the progress of steps"),
        ):
            if value:
                raise TypeError(f"{type(self).__name__}() takes no {name}: {instead}")
        size = check_integer("mini_batch_size", mini_batch_size, smallest=1)
        super().__init__(model, scale, similarity_fct, mini_batch_size=size, **options)


class MultipleNegativesSymmetricRankingLoss(MultipleNegativesRankingLoss):
    """:class:`MultipleNegativesRankingLoss` both ways, as the library's loss of the same name: the
    mean of finding the positive among documents and the anchor among anchors.

    Args:
        model, scale, similarity_fct, gather_across_devices: as there.
        mini_batch_size, backend: as there.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        scale: float = 20.0,
        similarity_fct: Callable[..., Any] = cos_sim,
        gather_across_devices: bool = False,
        *,
        mini_batch_size: SupportsIndex | None = None,
        backend: BackendName = "auto",
    ) -> None:
        super().__init__(
            model,
            scale,
            similarity_fct,
            gather_across_devices,
            directions=_BOTH_WAYS,
            partition_mode="per_direction",
            mini_batch_size=mini_batch_size,
            backend=backend,
        )


def _checked_directions(directions: Sequence[Direction]) -> tuple[Direction, ...]:
    if isinstance(directions, str):
        raise TypeError(f"directions must be a tuple of names, got the string {directions!r}")
    for each in directions:
        check_choice("each of directions", each, DIRECTIONS)
    if "query_to_doc" not in directions:
        raise ValueError(
            f"directions must have 'query_to_doc', in which the positive is; got {directions!r}"
        )
    return tuple(directions)


_INFO_NCE = """
@misc{oord2019representationlearningcontrastivepredictive,
    title={Representation Learning with Contrastive Predictive Coding},
    author={Aaron van den Oord and Yazhe Li and Oriol Vinyals},
    year={2019},
    eprint={1807.03748},
    archivePrefix={arXiv},
    primaryClass={cs.LG}
}
"""
_GRAD_CACHE = """
@misc{gao2021scaling,
    title={Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup},
    author={Luyu Gao and Yunyi Zhang and Jiawei Han and Jamie Callan},
    year={2021},
    eprint={2101.06983},
    archivePrefix={arXiv},
    primaryClass={cs.LG}
}
"""
