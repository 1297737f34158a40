"""The method for students with the teacher's tokenizer: position by position, on the records' token ids.

Shape legend: T trained positions, K terms of the mix.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.data import (
    Batch,
    CaskDataset,
    Collator,
    Packing,
    SampledDataset,
    SampledTexts,
    share_note,
    trained_share,
)
from logitcask_consumer.data.vocabulary import ExtraIds, StudentVocabulary, beyond_tokens_note, token_count
from logitcask_consumer.losses import LossMismatchError, Objective
from logitcask_consumer.losses.formulas.policy_rkl import NO_SAMPLES
from logitcask_consumer.methods.method import BatchValue
from logitcask_consumer.methods.sparse_target_loss import SparseTargetLoss
from logitcask_consumer.student.checks import check_student
from logitcask_consumer.weights import StoredAnswers, Weights
from logitcask_schemas.cask import Cask
from logitcask_schemas.errors import IdentityMismatchError
from logitcask_schemas.record.identity import tokenizer_fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMethod:
    """Losses on the teacher's tokens, a `Method`."""

    loss: str = "forward_kl"
    ce_weight: float = 0.0
    weights: Weights = field(default_factory=Weights)
    """Of the positions of the datasets that it makes."""
    extra_ids: ExtraIds = "keep"
    block_rows: int | None = None
    tokenizer: Any = None
    """The student's; None where it is not known, and then not compared with the teacher's."""
    samples: SampledTexts | None = field(default=None, repr=False)
    """Where the documents are texts that the student sampled, what is known of them."""

    @classmethod
    def from_config(cls, config: TrainConfig, tokenizer: Any) -> Self:
        """The method of a run.

        Raises:
            UnknownWeightError, WeightParameterError: the weights are not understood.
        """
        return cls(
            loss=config.loss,
            ce_weight=config.ce_weight,
            weights=Weights.parse(config.weights),
            extra_ids=config.extra_ids,
            block_rows=config.block_rows,
            tokenizer=tokenizer,
        )

    @staticmethod
    def check_config(config: TrainConfig) -> None:
        """Read what a run's config says of it, before anything is loaded.

        Raises:
            UnknownLossError, LossParameterError, UnknownWeightError, WeightParameterError: what is not understood.
        """
        Objective.parse(config.loss).with_cross_entropy(config.ce_weight)
        Weights.parse(config.weights)

    def bound(self, casks: Sequence[Cask]) -> Self:
        """The method for these casks; weights have read the tokenizer and what the documents say of their answers.

        Raises:
            IdentityMismatchError: the student's token ids are not the records'; names losses for such a student.
            LossMismatchError: the records lack what the loss needs.
            WeightParameterError: a weight does not fit the tokenizer.
        """
        require_tokenizer(casks[0], self.tokenizer)
        require_records(Objective.parse(self.loss), casks[0])
        if self.samples is None and Objective.parse(self.loss).needs_samples:
            raise LossMismatchError(f"{casks[0].place}: {NO_SAMPLES}")
        return replace(self, weights=self.weights.bind(self.tokenizer, StoredAnswers.of(casks)))

    def binding(self) -> dict[str, Any]:
        """Digests of the files that weights read, where they read any."""
        return {"weights_read": contents} if (contents := self.weights.contents()) else {}

    def dataset(self, casks: Sequence[Cask], *, seq_len: int, overlap: int, packing: Packing, seed: int) -> CaskDataset:
        """Packed windows of the documents, with the weights of their positions.

        Raises:
            NothingTrainedError: the weights leave no position to be trained.
        """
        if self.samples is None:
            dataset = CaskDataset(
                casks, seq_len=seq_len, overlap=overlap, packing=packing, seed=seed, weights=self.weights
            )
        else:
            dataset = SampledDataset(
                casks,
                samples=self.samples,
                seq_len=seq_len,
                overlap=overlap,
                packing=packing,
                seed=seed,
                weights=self.weights,
            )
        trained_share(dataset, seed=seed)
        return dataset

    def check(self, model: Any, dataset: CaskDataset) -> None:
        """Refuse a student whose vocabulary, head or attention does not fit."""
        check_student(model, dataset.manifest, dataset.packing, tokens=self._tokens)

    @property
    def _tokens(self) -> int | None:
        return None if self.tokenizer is None else token_count(self.tokenizer)

    def notes(self, dataset: CaskDataset) -> list[str]:
        """What weights leave out, and what the teacher puts on ids that are no tokens."""
        share = share_note(dataset.share) if dataset.share is not None else None
        beyond = None if self._tokens is None else beyond_tokens_note(dataset, self._tokens)
        if beyond is not None:
            beyond += ". They are trained as they are"
        return [*self.weights.notes(StoredAnswers.of(dataset.casks)), *filter(None, (share, beyond))]

    def on(self, model: Any, dataset: CaskDataset) -> "TokenBatchLoss":
        """The loss of a student on this dataset; the dataset's own weights count.

        Raises:
            NothingTrainedError: they leave no position to be trained.
        """
        trained_share(dataset, seed=dataset.seed)
        vocabulary = StudentVocabulary.of(model, dataset.manifest.teacher.vocab_size)
        return TokenBatchLoss(
            loss=SparseTargetLoss(
                self.loss,
                capture=dataset.manifest.capture,
                ce_weight=self.ce_weight,
                weights=dataset.weights,
                block_rows=self.block_rows,
                width=vocabulary.masked_width(self.extra_ids),
            ),
            collator=Collator(seq_len=dataset.seq_len, vocabulary=vocabulary),
        )


def require_records(objective: Any, cask: Cask) -> None:
    """Refuse a loss that the records of a cask cannot support. Raises LossMismatchError, which names the cask."""
    try:
        objective.require(cask.manifest.capture)
    except LossMismatchError as error:
        raise LossMismatchError(f"{cask.place}: {error}") from error


def require_tokenizer(cask: Cask, tokenizer: Any) -> None:
    """Refuse a student whose token ids are not the records'.

    Raises:
        IdentityMismatchError: names losses for such a student.
    """
    stored, own = cask.manifest.teacher.tokenizer_fingerprint, tokenizer_fingerprint(tokenizer)
    if stored != own:
        raise IdentityMismatchError(
            f"{cask.path}: tokenizer_fingerprint: {stored!r} in the cask, {own!r} offered. This loss compares "
            "token ids, which needs a student with the teacher's tokenizer. A student with its own can be trained "
            "with --loss alm or --loss '1.5*uld + cross_entropy', and --teacher for the teacher's tokenizer "
            "(docs/cross_tokenizer.md)"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatchLoss:
    """`TokenMethod` on a student and a dataset, a `BatchLoss`.

    Its sums: each term, cross-entropy and the teacher's entropy times the positions' weights, the weights, the trained
    positions, and those read.
    """

    loss: SparseTargetLoss
    collator: Callable[[Any], Batch]

    def counted(self, batch: Batch) -> Tensor:
        """Sum of the weights of the trained positions."""
        return self.loss.counted(batch)

    def value(self, model: Any, batch: Batch, progress: float) -> BatchValue:
        """The loss of the trained positions, and the sums of its terms, cross-entropy and entropy."""
        task = self.loss.task(batch, progress)
        out = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], distill=task)
        columns_CT = torch.cat([out["terms_KT"], torch.stack([out["ce_T"], out["entropy_T"]])]).to(torch.float64)
        if out["weights_T"] is not None:
            weights_T = out["weights_T"].to(torch.float64)
            columns_CT, weight = columns_CT * weights_T, weights_T.sum()
        else:
            weight = columns_CT.new_tensor(columns_CT.shape[1])
        counts = columns_CT.new_tensor([columns_CT.shape[1], batch["positions"]])
        return BatchValue(loss=out["loss"], sums=torch.cat([columns_CT.sum(1), weight[None], counts]))

    @property
    def num_sums(self) -> int:
        """Terms, cross-entropy, entropy, weights, trained positions, and those read."""
        return len(self.loss.objective.losses) + 5

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        """Weighted means; `kd` is the first loss of a mix, which has no value of its own that means anything."""
        *terms, ce, entropy, weight, trained, positions = sums
        weight = weight or 1.0
        name = "teacher_entropy" if self.loss.exact_entropy else "teacher_entropy_at_least"
        means = {"kd": terms[0] / weight, "ce": ce / weight, name: entropy / weight}
        for loss, value in zip(self.loss.objective.losses, terms, strict=True):
            if len(terms) > 1:
                means[f"loss/{loss.spec}"] = value / weight
            if loss.kl_value:
                means["kl"] = (value - entropy) / weight
        means["positions"] = trained
        if self.loss.weights:
            means["trained_share"] = trained / max(positions, 1.0)
        return means

    def read(self, sums: Sequence[float]) -> float:
        """All positions, with those of weight 0."""
        return sums[-1]
