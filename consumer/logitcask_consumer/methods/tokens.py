"""The method for students with the teacher's tokenizer: position by position, on the records' token ids."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from logitcask_consumer.config import Target, TrainConfig, TrainConfigError
from logitcask_consumer.data import (
    CaskDataset,
    Collator,
    Packing,
    SampledDataset,
    SampledTexts,
    share_note,
    trained_share,
)
from logitcask_consumer.data.vocabulary import ExtraIds, StudentVocabulary, beyond_tokens_note, token_count
from logitcask_consumer.head import LMHead
from logitcask_consumer.hints import HintMismatchError, HintObjective, TaskAware
from logitcask_consumer.hints.bound import HintPlan
from logitcask_consumer.hints.dense import DenseTeacher, cost_note, require_dense
from logitcask_consumer.hints.filters import load_filters, made_filters, save_filters
from logitcask_consumer.hints.teacher_folder import TeacherShape, read_head
from logitcask_consumer.losses import LossMismatchError, Objective
from logitcask_consumer.losses.formulas.policy_rkl import NO_SAMPLES
from logitcask_consumer.methods.sparse_target_loss import SparseTargetLoss
from logitcask_consumer.methods.token_batch_loss import TokenBatchLoss
from logitcask_consumer.processes import processes
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
    hints: str | None = None
    """Hint losses, see `HintObjective`; None for none, and then no file of hints is opened."""
    target: Target = "record"
    """What the loss compares with: the sparse records, or the whole distribution, see `hints.dense`."""
    teacher: Path | None = None
    """The teacher's folder: its config.json for hints, and its head for `dense` and for filters."""
    filters: Mapping[int, Tensor] = field(default_factory=dict)
    """Of the teacher's layers, by number, where hint losses need them; `prepared` makes them."""
    seed: int = 0
    """Of learned projections, and of making filters."""
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
            hints=config.hints,
            target=config.target,
            teacher=config.teacher,
            seed=config.seed,
        )

    @staticmethod
    def check_config(config: TrainConfig) -> None:
        """Read what a run's config says of it, before anything is loaded.

        Raises:
            UnknownLossError, LossParameterError, UnknownWeightError, WeightParameterError: what is not understood.
            TrainConfigError: the teacher's folder is needed and was not named.
        """
        Objective.parse(config.loss).with_cross_entropy(config.ce_weight)
        Weights.parse(config.weights)
        hints = None if config.hints is None else HintObjective.parse(config.hints)
        if config.teacher is None and (config.target == "dense" or (hints is not None and hints.filtered)):
            what = "target dense" if config.target == "dense" else "hint loss ted"
            raise TrainConfigError(
                f"{what} needs the matrix of the teacher's head: name the teacher's folder with --teacher (nothing "
                "else of its weights is read)"
            )

    def bound(self, casks: Sequence[Cask]) -> Self:
        """The method for these casks; weights have read the tokenizer and what the documents say of their answers.

        Raises:
            IdentityMismatchError: the student's token ids are not the records'; names losses for such a student.
            LossMismatchError: the records lack what the loss needs.
            HintMismatchError: the hints lack what a hint loss, or a dense target, needs.
            WeightParameterError: a weight does not fit the tokenizer.
        """
        require_tokenizer(casks[0], self.tokenizer)
        objective = Objective.parse(self.loss)
        if self.samples is None and objective.needs_samples:
            raise LossMismatchError(f"{casks[0].place}: {NO_SAMPLES}")
        if self.target == "dense":
            require_dense(objective, casks[0].manifest.capture)
        else:
            require_records(objective, casks[0])
        if self.hints is not None:
            HintObjective.parse(self.hints).require(casks[0].manifest.capture)
        return replace(self, weights=self.weights.bind(self.tokenizer, StoredAnswers.of(casks)))

    def binding(self) -> dict[str, Any]:
        """Digests of the files that weights read, where they read any."""
        return {"weights_read": contents} if (contents := self.weights.contents()) else {}

    def dataset(self, casks: Sequence[Cask], *, seq_len: int, overlap: int, packing: Packing, seed: int) -> CaskDataset:
        """Packed windows of the documents, with the weights of their positions.

        Raises:
            NothingTrainedError: the weights leave no position to be trained.
            CaskError: the hints that are needed have been dropped.
            HintMismatchError: a hint loss compares positions of a document, and some are longer than a sequence.
        """
        needs_hints = self.hints is not None or self.target == "dense"
        if self.samples is None:
            dataset = CaskDataset(
                casks,
                seq_len=seq_len,
                overlap=overlap,
                packing=packing,
                seed=seed,
                weights=self.weights,
                hints=needs_hints,
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
                hints=needs_hints,
            )
        if self.hints is not None:
            require_whole_documents(HintObjective.parse(self.hints), dataset)
        trained_share(dataset, seed=seed)
        return dataset

    def prepared(self, dataset: CaskDataset, folder: Path, say: Callable[[str], None]) -> Self:
        """With the filters of the teacher's layers, where a hint loss needs them: made once, and kept in the folder."""
        losses = () if self.hints is None else HintObjective.parse(self.hints).losses
        task_aware = [loss for loss in losses if isinstance(loss, TaskAware)]
        if not task_aware:
            return self
        spec, own = dataset.manifest.capture.hints, processes()
        assert spec is not None, "bound to casks with hints"
        layers = tuple(spec.layers)
        shards = [entry.name for cask in dataset.casks for entry in cask.entries]
        parts = (task_aware[0].steps, task_aware[0].rate, self.seed, dataset.seq_len, shards)
        made_for = hashlib.sha256(repr(parts).encode()).hexdigest()
        if own.is_main_process and load_filters(folder, layers, made_for) is None:
            made = made_filters(
                dataset,
                self._teacher_head(dataset),
                layers,
                steps=task_aware[0].steps,
                rate=task_aware[0].rate,
                seed=self.seed,
                say=say,
            )
            save_filters(made, folder, made_for)
        own.wait_for_everyone()
        return replace(self, filters=load_filters(folder, layers, made_for) or {})

    def check(self, model: Any, dataset: CaskDataset) -> None:
        """Refuse a student whose vocabulary, head, attention or layers do not fit.

        Raises:
            IdentityMismatchError, ModelError: as `check_student`.
            LayerMapError, HintMismatchError: a map of layers, or the teacher's folder, does not fit the hints.
        """
        check_student(model, dataset.manifest, dataset.packing, tokens=self._tokens)
        self._plan(model, dataset)

    def _shape(self) -> TeacherShape | None:
        return None if self.teacher is None else TeacherShape.read(self.teacher)

    def _plan(self, model: Any, dataset: CaskDataset) -> HintPlan | None:
        if self.hints is None:
            return None
        require_hints_read(dataset)
        return HintPlan.of(HintObjective.parse(self.hints), model, dataset, self._shape())

    def _teacher_head(self, dataset: CaskDataset) -> LMHead:
        if self.teacher is None:
            raise HintMismatchError("the matrix of the teacher's head is needed: TokenMethod(teacher=FOLDER)")
        return read_head(self.teacher, vocab_size=dataset.manifest.teacher.vocab_size)

    def _dense(self, dataset: CaskDataset) -> DenseTeacher | None:
        if self.target != "dense":
            return None
        require_hints_read(dataset)
        head, shape = self._teacher_head(dataset), self._shape()
        assert shape is not None, "_teacher_head has asked for the folder"
        return DenseTeacher.of(dataset.casks, shape, head, self._objective)

    @property
    def _objective(self) -> Objective:
        return Objective.parse(self.loss).with_cross_entropy(self.ce_weight)

    @property
    def _tokens(self) -> int | None:
        return None if self.tokenizer is None else token_count(self.tokenizer)

    def notes(self, dataset: CaskDataset, model: Any) -> list[str]:
        """What weights leave out, what the teacher puts on ids that are no tokens, and what hints map."""
        share = share_note(dataset.share) if dataset.share is not None else None
        beyond = None if self._tokens is None else beyond_tokens_note(dataset, self._tokens)
        if beyond is not None:
            beyond += ". They are trained as they are"
        plan, shape = self._plan(model, dataset), self._shape()
        hints = [] if plan is None else plan.notes()
        if self.target == "dense" and shape is not None:
            hints.append(cost_note(dataset.casks, shape))
        return [*self.weights.notes(StoredAnswers.of(dataset.casks)), *filter(None, (share, beyond)), *hints]

    def on(self, model: Any, dataset: CaskDataset) -> TokenBatchLoss:
        """The loss of a student on this dataset; the dataset's own weights count.

        Raises:
            NothingTrainedError: they leave no position to be trained.
            HintMismatchError, LayerMapError: hints do not fit the student.
            IdentityMismatchError: a dense target's head does not give the records' probabilities.
        """
        trained_share(dataset, seed=dataset.seed)
        plan, dense = self._plan(model, dataset), self._dense(dataset)
        if dense is not None:
            dense.prove(dataset)
        hints = None
        if plan is not None:
            if plan.objective.filtered and not self.filters:
                raise HintMismatchError("hint loss ted needs filters: call `prepared` of the method before `on`")
            hints = plan.on(model, dataset, self._shape(), filters=dict(self.filters), seed=self.seed)
        vocabulary = StudentVocabulary.of(model, dataset.manifest.teacher.vocab_size)
        return TokenBatchLoss(
            loss=SparseTargetLoss(
                self.loss,
                capture=dataset.manifest.capture,
                ce_weight=self.ce_weight,
                weights=dataset.weights,
                block_rows=self.block_rows,
                width=vocabulary.masked_width(self.extra_ids),
                dense=dense is not None,
            ),
            collator=Collator(seq_len=dataset.seq_len, vocabulary=vocabulary),
            hints=hints,
            dense=dense,
        )


def require_hints_read(dataset: CaskDataset) -> None:
    """Refuse a dataset that reads no hints. Raises HintMismatchError."""
    if not dataset.reads_hints:
        raise HintMismatchError(
            "hints and target dense need a dataset that reads hints: CaskDataset(..., hints=True), also to evaluate"
        )


def require_whole_documents(objective: HintObjective, dataset: CaskDataset) -> None:
    """Refuse windows of documents where a hint loss compares all positions of one.

    Raises:
        HintMismatchError: says which length of sequences would do.
    """
    longest = int(dataset.windows.stop_W.max(initial=0))
    if objective.whole_documents and longest > dataset.seq_len:
        raise HintMismatchError(
            f"hint loss {objective.whole_documents[0]!r} compares all positions of a document with each other, and the "
            f"longest has {longest:,}, more than a sequence of {dataset.seq_len:,}: give --seq-len {longest}, or leave "
            "long documents out"
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
