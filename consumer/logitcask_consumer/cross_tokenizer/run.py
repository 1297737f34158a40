"""What a training run does differently where student and teacher have tokenizers of their own."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from logitcask_consumer.config import TrainConfig, TrainConfigError
from logitcask_consumer.cross_tokenizer.align import DocumentAligner
from logitcask_consumer.cross_tokenizer.collate import ChunkCollator
from logitcask_consumer.cross_tokenizer.corpus import AlignedCorpus
from logitcask_consumer.cross_tokenizer.dataset import CrossTokenizerDataset
from logitcask_consumer.cross_tokenizer.losses import ChunkObjective
from logitcask_consumer.cross_tokenizer.trainer import CrossTokenizerTrainer
from logitcask_consumer.head import LMHead, check_head
from logitcask_consumer.processes import processes
from logitcask_consumer.student.forward import check_packing
from logitcask_consumer.student.students import load_tokenizer
from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.format.manifest import CaskManifest
from logitcask_schemas.errors import IdentityMismatchError, ModelError
from logitcask_schemas.record.identity import tokenizer_fingerprint
from logitcask_schemas.terminal import counted

ALIGNED_NAME = "aligned"
"""Folder of the aligned corpus, in the run's output."""


def require_same_tokenizer(casks: Sequence[Cask], tokenizer: Any) -> None:
    """Refuse a student whose token ids are not the records'.

    Raises:
        IdentityMismatchError: with the losses that such a student can be trained with.
    """
    stored, own = casks[0].manifest.teacher.tokenizer_fingerprint, tokenizer_fingerprint(tokenizer)
    if stored != own:
        raise IdentityMismatchError(
            f"{casks[0].path}: tokenizer_fingerprint: {stored!r} in the cask, {own!r} offered. This loss compares "
            "token ids, which needs a student with the teacher's tokenizer. A student with its own can be trained "
            "with --loss alm or --loss '1.5*uld + cross_entropy', and --teacher for the teacher's tokenizer "
            "(docs/cross_tokenizer.md)"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossTokenizerRun:
    """The parts of one run that depend on both tokenizers."""

    config: TrainConfig
    teacher: Any
    """The teacher's tokenizer."""
    tokenizer: Any
    """The student's."""
    aligner: DocumentAligner
    objective: ChunkObjective

    @classmethod
    def of(cls, config: TrainConfig, tokenizer: Any) -> "CrossTokenizerRun | None":
        """The run's, or None where its loss compares token ids.

        Args:
            config: names loss and teacher.
            tokenizer: the student's.

        Raises:
            UnknownLossError, LossParameterError: the loss is not understood.
            TrainConfigError: no teacher folder was named, or weights of positions or extra_ids were.
            ModelError: the teacher's folder holds no tokenizer, or one of the two does not tell its tokens' bytes.
        """
        if not ChunkObjective.names_one(config.loss):
            return None
        objective = ChunkObjective.parse(config.loss).with_cross_entropy(config.ce_weight)
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
        teacher = load_tokenizer(config.teacher)
        return cls(
            config=config,
            teacher=teacher,
            tokenizer=tokenizer,
            aligner=DocumentAligner(teacher, tokenizer),
            objective=objective,
        )

    def require(self, casks: Sequence[Cask]) -> None:
        """Refuse casks of another teacher, or captured without what the loss needs.

        Raises:
            IdentityMismatchError: the teacher folder's tokenizer is not the one of the records.
            LossMismatchError: the records lack something.
        """
        manifest = casks[0].manifest
        stored, own = manifest.teacher.tokenizer_fingerprint, tokenizer_fingerprint(self.teacher)
        if stored != own:
            raise IdentityMismatchError(
                f"{self.config.teacher}: this tokenizer's fingerprint is {own!r}, the teacher of {casks[0].path} had "
                f"{stored!r}; name the folder of the teacher that the cask was made with"
            )
        self.objective.require(manifest.capture)

    def dataset(self, casks: Sequence[Cask], say: Callable[[str], None]) -> CrossTokenizerDataset:
        """The training sequences; the main process aligns the documents, once.

        Raises:
            NothingAlignedError: no document can be aligned.
        """
        config, own, folder = self.config, processes(), self.config.output / ALIGNED_NAME
        key = self._key(casks)
        if own.is_main_process:
            AlignedCorpus.open_or_make(folder, casks, self.aligner, key=key)
        own.wait_for_everyone()
        corpus = AlignedCorpus.open_or_make(folder, casks, self.aligner, key=key)
        found = corpus.summary
        left_out = "".join(f"; {count:,} left out: {reason}" for reason, count in found.left_out.items())
        say(
            f"aligned {counted(found.documents, 'document')}: {found.teacher_tokens:,} tokens of the teacher, "
            f"{found.student_tokens:,} of the student, {found.chunks:,} chunks{left_out}"
        )
        return CrossTokenizerDataset(
            casks, corpus, seq_len=config.seq_len, overlap=config.context, packing=config.packing, seed=config.seed
        )

    def check(self, model: Any) -> None:
        """Vocabulary, head and packing of a student fit its own tokenizer.

        Raises:
            ModelError: it has fewer ids than its tokenizer, its logits are not its head's, or it cannot keep packed
                documents apart.
        """
        width, needed = LMHead.from_model(model).vocab_size, max(self.tokenizer.get_vocab().values()) + 1
        if width < needed:
            raise ModelError(
                f"the student's vocabulary has {width} ids, its tokenizer {needed}; resize the student's embeddings "
                "(resize_token_embeddings)"
            )
        check_head(model)
        if self.config.packing != "none":
            check_packing(model)

    def collator(self, manifest: CaskManifest) -> ChunkCollator:
        """What makes batches for the run's losses from records of a teacher."""
        return ChunkCollator(
            seq_len=self.config.seq_len,
            capture=manifest.capture,
            teacher=self.aligner.teacher_bytes,
            teacher_vocab=manifest.teacher.vocab_size,
            student=self.aligner.student_bytes,
            threshold=self.objective.threshold,
            top=self.objective.reads_top,
        )

    def trainer(
        self,
        model: Any,
        dataset: CrossTokenizerDataset,
        checkpoints: Path,
        callbacks: list[TrainerCallback],
        sequences_per_step: int,
    ) -> CrossTokenizerTrainer:
        """The trainer of the run."""
        return CrossTokenizerTrainer(
            model,
            dataset,
            self.config,
            objective=self.objective,
            collator=self.collator(dataset.manifest),
            closing_V=self.aligner.student_bytes.closing_over(LMHead.from_model(model).vocab_size),
            checkpoints=checkpoints,
            tokenizer=self.tokenizer,
            callbacks=callbacks,
            sequences_per_step=sequences_per_step,
        )

    def _key(self, casks: Sequence[Cask]) -> str:
        """Names what the aligned corpus is made from."""
        shards = [[cask.manifest.identity_digest(), sorted(entry.name for entry in cask.entries)] for cask in casks]
        # Two tokenizers with one vocabulary may still cut text differently.
        rules = hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
        parts = [shards, tokenizer_fingerprint(self.tokenizer), rules]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
