"""The method for students with a tokenizer of their own: chunk by chunk, where both tokenisations have an end.

Shape legend: T rows of a batch, D hidden size, V the student's vocabulary, K terms of the mix.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import torch
from torch import Tensor

from logitcask_consumer.config import TrainConfig, TrainConfigError
from logitcask_consumer.cross_tokenizer.align import DocumentAligner
from logitcask_consumer.cross_tokenizer.chunk_head import ChunkTerms, chunk_distillation_loss
from logitcask_consumer.cross_tokenizer.collate import NUM_COUNTS, ChunkBatch, ChunkCollator, target_of_chunks
from logitcask_consumer.cross_tokenizer.corpus import AlignedCorpus
from logitcask_consumer.cross_tokenizer.dataset import CrossTokenizerDataset
from logitcask_consumer.cross_tokenizer.losses import ChunkObjective
from logitcask_consumer.cross_tokenizer.target import ChunkTarget
from logitcask_consumer.data import Packing
from logitcask_consumer.data.vocabulary import token_count
from logitcask_consumer.head import LMHead, check_head
from logitcask_consumer.losses import LossMismatchError
from logitcask_consumer.methods.method import BatchValue
from logitcask_consumer.methods.tokens import require_records
from logitcask_consumer.processes import processes
from logitcask_consumer.student.forward import StateTask, check_packing
from logitcask_consumer.student.loading import load_tokenizer
from logitcask_consumer.student.router_loss import with_router_loss
from logitcask_schemas.cask import Cask
from logitcask_schemas.errors import IdentityMismatchError, ModelError
from logitcask_schemas.record.identity import tokenizer_fingerprint
from logitcask_schemas.terminal import counted

ALIGNED_NAME: Final = "aligned"
"""Folder of the aligned corpus, in the run's output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossTokenizerMethod:
    """Chunk losses on text that teacher and student cut differently, a `Method`."""

    objective: ChunkObjective
    teacher_folder: Path
    teacher: Any
    """The teacher's tokenizer."""
    tokenizer: Any
    """The student's."""
    aligner: DocumentAligner
    folder: Path
    """Where the aligned corpus is kept; it must outlive the datasets."""
    block_rows: int | None = None

    @classmethod
    def of(
        cls,
        objective: ChunkObjective,
        tokenizer: Any,
        *,
        teacher: Path,
        folder: Path,
        block_rows: int | None = None,
    ) -> Self:
        """Load the teacher's tokenizer and prepare the alignment.

        Args:
            objective: what is minimised.
            tokenizer: the student's.
            teacher: the teacher's folder, of which only the tokenizer is read.
            folder: for the aligned corpus.
            block_rows: rows of logits held at a time; None chooses what fits the device, see `default_rows`.

        Raises:
            ModelError: the teacher's folder holds no tokenizer, or one of the two does not tell its tokens' bytes.
        """
        loaded = load_tokenizer(teacher)
        return cls(
            objective=objective,
            teacher_folder=teacher,
            teacher=loaded,
            tokenizer=tokenizer,
            aligner=DocumentAligner(loaded, tokenizer),
            folder=folder,
            block_rows=block_rows,
        )

    @classmethod
    def from_config(cls, config: TrainConfig, tokenizer: Any, *, part: str = "") -> Self:
        """The method of a run whose config `check_config` has passed; errors as `of`.

        Args:
            config: the run, or what it is for one of its parts.
            tokenizer: the student's.
            part: of a run of several parts, so that each keeps an aligned corpus of its own.
        """
        assert config.teacher is not None, "see check_config"
        return cls.of(
            ChunkObjective.parse(config.loss).with_cross_entropy(config.ce_weight),
            tokenizer,
            teacher=config.teacher,
            folder=config.output / ALIGNED_NAME / part,
            block_rows=config.block_rows,
        )

    @staticmethod
    def check_config(config: TrainConfig) -> None:
        """Read what a run's config says of it, before anything is loaded.

        Raises:
            UnknownLossError, LossParameterError: the loss is not understood.
            TrainConfigError: no teacher folder was named, or weights of positions or extra_ids were.
        """
        ChunkObjective.parse(config.loss).with_cross_entropy(config.ce_weight)
        if config.teacher is None:
            raise TrainConfigError(
                f"loss {config.loss!r} needs the text of the documents: name the teacher's folder with --teacher (only "
                "its tokenizer is read)"
            )
        if config.weights:
            raise TrainConfigError(
                f"weights {config.weights!r} are weights of the teacher's positions; loss {config.loss!r} has chunks. "
                "Leave them out"
            )
        if config.extra_ids != "keep":
            raise TrainConfigError(
                f"extra_ids={config.extra_ids!r} compares ids of teacher and student; loss {config.loss!r} has chunks. "
                "Leave it out"
            )
        if config.hints is not None or config.target != "record":
            raise TrainConfigError(
                f"hints and target dense compare positions of the teacher's tokens; loss {config.loss!r} has "
                "chunks. Leave them out"
            )

    def prepared(self, dataset: CrossTokenizerDataset, folder: Path, say: Callable[[str], None]) -> Self:
        """Nothing is made before the first step."""
        del dataset, folder, say
        return self

    def bound(self, casks: Sequence[Cask]) -> Self:
        """The method for these casks, whose records must be of the teacher's tokenizer, and of whole documents."""
        manifest = casks[0].manifest
        stored, own = manifest.teacher.tokenizer_fingerprint, tokenizer_fingerprint(self.teacher)
        if stored != own:
            raise IdentityMismatchError(
                f"{self.teacher_folder}: this tokenizer's fingerprint is {own!r}, the teacher of {casks[0].path} had "
                f"{stored!r}; name the folder of the teacher that the cask was made with"
            )
        require_records(self.objective, casks[0])
        for cask in casks:
            if partial := sum(entry.recorded_documents for entry in cask.entries):
                raise LossMismatchError(
                    f"{cask.place}: {counted(partial, 'document')} with records of some positions only; losses on "
                    "chunks need them all. Train on it with a loss on tokens, or capture with loss_on: all"
                )
        return self

    def binding(self) -> dict[str, Any]:
        """Nothing besides the settings."""
        return {}

    def dataset(
        self, casks: Sequence[Cask], *, seq_len: int, overlap: int, packing: Packing, seed: int
    ) -> CrossTokenizerDataset:
        """Sequences of the student's tokens; the main process aligns the documents, once.

        Raises:
            NothingAlignedError: no document can be aligned.
        """
        own, key = processes(), self._key(casks)
        if own.is_main_process:
            AlignedCorpus.open_or_make(self.folder, casks, self.aligner, key=key)
        own.wait_for_everyone()
        corpus = AlignedCorpus.open_or_make(self.folder, casks, self.aligner, key=key)
        return CrossTokenizerDataset(casks, corpus, seq_len=seq_len, overlap=overlap, packing=packing, seed=seed)

    def notes(self, dataset: CrossTokenizerDataset, model: Any) -> list[str]:
        """What was aligned, and what was left out and why."""
        summary = dataset.corpus.summary
        left_out = "".join(f"; {count:,} left out: {reason}" for reason, count in summary.left_out.items())
        return [
            f"aligned {counted(summary.documents, 'document')}: {summary.teacher_tokens:,} tokens of the teacher, "
            f"{summary.student_tokens:,} of the student, {summary.chunks:,} chunks{left_out}"
        ]

    def check(self, model: Any, dataset: CrossTokenizerDataset) -> None:
        """Refuse a student that does not fit; its vocabulary is compared with its own tokenizer.

        Raises:
            ModelError: it has fewer ids than its tokenizer, its logits are not its head's, or it cannot keep packed
                documents apart.
        """
        width, needed = LMHead.from_model(model).vocab_size, token_count(self.tokenizer)
        if width < needed:
            raise ModelError(
                f"the student's vocabulary has {width} ids, its tokenizer {needed}; resize the student's embeddings "
                "(resize_token_embeddings)"
            )
        check_head(model)
        if dataset.packing != "none":
            check_packing(model)

    def collator(self, dataset: CrossTokenizerDataset) -> ChunkCollator:
        """What makes batches of a dataset."""
        return ChunkCollator(
            seq_len=dataset.seq_len,
            capture=dataset.manifest.capture,
            teacher=self.aligner.teacher_bytes,
            teacher_vocab=dataset.manifest.teacher.vocab_size,
            student=self.aligner.student_bytes,
            threshold=self.objective.threshold,
            top=self.objective.reads_top,
        )

    def on(self, model: Any, dataset: CrossTokenizerDataset) -> "ChunkBatchLoss":
        """The loss of a student on this dataset."""
        head = LMHead.from_model(model)
        closing_V = torch.from_numpy(self.aligner.student_bytes.closing_over(head.vocab_size))
        return ChunkBatchLoss(
            objective=self.objective,
            collator=self.collator(dataset),
            closing_V=closing_V.to(head.weight_VD.device),
            block_rows=self.block_rows,
        )

    def _key(self, casks: Sequence[Cask]) -> str:
        """Names what the aligned corpus is made from."""
        shards = [[cask.manifest.identity_digest(), sorted(entry.name for entry in cask.entries)] for cask in casks]
        # Two tokenizers with one vocabulary may still cut text differently.
        rules = hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
        parts = [shards, tokenizer_fingerprint(self.tokenizer), rules]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkTask:
    """What the LM head needs to yield the loss of T rows; a `HeadTask`."""

    target: ChunkTarget
    slots_T: Tensor
    """Flat index b·S + s of each row, int64."""
    terms: ChunkTerms
    closing_V: Tensor
    """bool: the student's tokens that begin a new word."""
    block_rows: int | None = None
    states: StateTask | None = None
    """Hints are of the teacher's positions, and chunks have none."""

    def at_head(self, hidden_TD: Tensor, head: LMHead, sequences_T: Tensor) -> dict[str, Tensor | None]:
        """The summed loss, each term [K], and the cross-entropy, summed."""
        del sequences_T
        result = chunk_distillation_loss(
            hidden_TD, head, self.target, self.terms, closing_V=self.closing_V, block_rows=self.block_rows
        )
        return {"loss": result.loss, "terms_K": result.terms_K, "ce": result.ce}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkBatchLoss:
    """`CrossTokenizerMethod` on a student and a dataset, a `BatchLoss`.

    Its sums: each term, cross-entropy, and the batch's `counts`. The loss is divided by the student tokens that it
    predicts.
    """

    objective: ChunkObjective
    collator: Callable[[Any], ChunkBatch]
    closing_V: Tensor
    """bool: the student's tokens that begin a new word."""
    block_rows: int | None = None

    def counted(self, batch: ChunkBatch) -> Tensor:
        """Rows whose cross-entropy counts."""
        return batch["counts"][0]

    def value(self, model: Any, batch: ChunkBatch, progress: float) -> BatchValue:
        """The loss of the batch's chunks and rows, and the sums of its terms and cross-entropy."""
        task = ChunkTask(
            target=target_of_chunks(batch),
            slots_T=batch["slots"],
            terms=self.objective.terms(progress),
            closing_V=self.closing_V,
            block_rows=self.block_rows,
        )
        out = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], distill=task)
        sums_K1 = torch.cat([out["terms_K"], out["ce"][None]]).to(torch.float64)
        loss = with_router_loss(out, self.counted(batch))
        return BatchValue(loss=loss, sums=torch.cat([sums_K1, batch["counts"].to(sums_K1.device)]))

    @property
    def num_sums(self) -> int:
        """Terms, cross-entropy, and the batch's counts."""
        return len(self.objective.losses) + 1 + NUM_COUNTS

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        """Means per token; and bits per byte, since a token of one side is not a token of the other."""
        *terms, ce, rows, text_bytes, chunks, chunk_bytes, teacher_nats = sums
        each = max(rows, 1.0)
        means = {"kd": terms[0] / each, "ce": ce / each}
        if len(terms) > 1:
            names = (loss.spec for loss in self.objective.losses)
            means |= {f"loss/{name}": value / each for name, value in zip(names, terms, strict=True)}
        return means | {
            "bits_per_byte": _bits(ce, text_bytes),
            "teacher_bits_per_byte": _bits(teacher_nats, chunk_bytes),
            "chunks": chunks,
            "positions": rows,
        }

    def read(self, sums: Sequence[float]) -> float:
        """Rows that count."""
        return sums[-5]


def _bits(nats: float, text_bytes: float) -> float:
    return nats / (math.log(2.0) * max(text_bytes, 1.0))
