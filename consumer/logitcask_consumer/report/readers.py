"""The models of a report on the casks of one teacher: checked before anything is measured, then measured one by one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from logitcask_consumer.cross_tokenizer import AlignedDocuments
from logitcask_consumer.cross_tokenizer.align import UnsupportedTokenizerError
from logitcask_consumer.data import CaskDataset, Packing
from logitcask_consumer.data.vocabulary import token_count
from logitcask_consumer.held_out.overlap import trained_on
from logitcask_consumer.held_out.reading import LONGEST, Reading, load_reader, reading_of, round_as_its_run
from logitcask_consumer.report.config import ReportConfig, ReportError
from logitcask_consumer.report.counted_work import Counting, uncounted, which_of
from logitcask_consumer.report.document import Measured
from logitcask_consumer.report.evaluate import Columns, evaluate_model
from logitcask_consumer.report.texts import Prompt, prompts_of, require_writer, write_texts
from logitcask_consumer.run_document import extra_ids_of
from logitcask_consumer.student.checks import context_of
from logitcask_consumer.student.loading import load_model, load_tokenizer, require_model_folder
from logitcask_consumer.student.quantization import scheme_of_checkpoint
from logitcask_schemas.cask import Cask
from logitcask_schemas.errors import IdentityMismatchError
from logitcask_schemas.record.identity import tokenizer_fingerprint

Say = Callable[[str], None]


_SHARE: Final = 0.25
"""Of the memory that is free, for all models that are kept: measuring needs the rest."""
_SYSTEM: Final = Path("/proc/meminfo")
_GROUP: Final = Path("/sys/fs/cgroup")


def free_bytes() -> int:
    """Memory that processes could still get, of the machine and of the container; 0 where the system does not say."""
    if not _SYSTEM.is_file():
        return 0
    lines = dict(line.split(":", 1) for line in _SYSTEM.read_text().splitlines())
    free = 1024 * int(lines.get("MemAvailable", "0 kB").split()[0])
    limit, used = _GROUP / "memory.max", _GROUP / "memory.current"
    if limit.is_file() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - int(used.read_text()))
    return max(0, free)


@dataclass(kw_only=True)
class OpenedModels:
    """Models by label, on the CPU: opened to be checked, and kept until they are measured where memory allows.

    Loading takes as long again. Without room, or where the system does not say how much there is, a model is let go and
    loaded a second time.
    """

    free: Callable[[], int] = free_bytes
    """How many bytes are free, those of kept models no longer among them."""
    _models: dict[str, Any] = field(default_factory=dict)
    _bytes: int = 0

    def keep(self, label: str, model: Any) -> None:
        """Keep a model if there is room for it beside those that are kept; its own bytes are in memory already."""
        size = _size(model)
        if self._bytes + size <= _SHARE * (self.free() + self._bytes + size):
            self._models[label] = model
            self._bytes += size

    def take(self, label: str) -> Any | None:
        """A model that was kept, which is no longer held here; None where it was not."""
        model = self._models.pop(label, None)
        if model is not None:
            self._bytes -= _size(model)
        return model


@dataclass(kw_only=True)
class Readers:
    """Models by label, and how each reads the documents.

    There may be any number: those that memory has no room for are loaded one at a time, to be checked and again to be
    measured.
    """

    config: ReportConfig
    casks: Sequence[Cask]
    folder: Path
    """Where documents in other tokens than the teacher's are kept; it must outlive the readers."""
    say: Say
    tokenizers: dict[str, Any] = field(default_factory=dict)
    readings: dict[str, Reading] = field(default_factory=dict)
    """Of the models with the teacher's tokenizer."""
    aligned: dict[str, AlignedDocuments] = field(default_factory=dict)
    """Of all models, where the report is asked for bits per byte."""
    seen: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What is known of each model's training documents."""
    prompts: list[Prompt] = field(default_factory=list)
    """Where the report is asked for texts."""
    datasets: dict[Reading, CaskDataset] = field(default_factory=dict)
    counting: Counting = uncounted
    """Shows how far each model is."""
    opened: OpenedModels = field(default_factory=OpenedModels)

    def check(self) -> None:
        """Refuse whatever can be refused before anything is measured.

        Raises:
            ContextError, IdentityMismatchError, MissingExtraError, NothingAlignedError, ReportError, ModelError: see
                `report_on`.
        """
        config, contexts = self.config, list[int]()
        for _, folder in config.models:
            require_model_folder(folder, what="model")
        self.tokenizers = {label: load_tokenizer(folder) for label, folder in config.models}
        fingerprints = {label: tokenizer_fingerprint(tokenizer) for label, tokenizer in self.tokenizers.items()}
        foreign = foreign_models(config, self.casks[0], fingerprints)
        for number, (label, folder) in enumerate(config.models, start=1):
            self.seen[label] = trained_on(folder, self.casks)
            scheme_of_checkpoint(folder)  # may need what is not installed
            self.say(f"opening {label}{which_of(number, len(config.models))}")
            model = load_model(folder)
            if label not in foreign:
                tokens = token_count(self.tokenizers[label])
                self.readings[label] = reading_of(label, model, self.casks, config.seq_len, tokens=tokens)
                if config.generate:
                    require_writer(label, model, self.tokenizers[label])
                    contexts += [context] if (context := context_of(model.config)) else []
            if config.teacher is not None:
                try:
                    self.aligned[label] = self._align(label, model, self.folder / fingerprints[label])
                except UnsupportedTokenizerError as error:
                    if label in foreign:
                        raise
                    self.say(f"bits per byte of {label} are left out: {error}")
            if label in foreign or self.readings[label].packing != "none":  # else masks were tried on it
                self.opened.keep(label, model)
            del model
        if config.generate:
            if not self.readings:
                raise ReportError(
                    "--generate: every model has a tokenizer of its own, in which the documents' prompts are not "
                    "recorded. Leave out --generate"
                )
            longest = min(contexts) - 1 if contexts else None
            self.prompts = prompts_of(self.casks, config.generate, longest=longest, seed=config.seed)

    def add_like(self, label: str, other: str, folder: Path) -> None:
        """Take up a model that is another one with other weights."""
        self.tokenizers[label] = self.tokenizers[other]
        self.seen[label] = trained_on(folder, self.casks)
        if other in self.readings:
            self.readings[label] = self.readings[other]
        if other in self.aligned:
            self.aligned[label] = self.aligned[other]

    def dataset(self) -> CaskDataset:
        """The documents as the first model reads them, or as one would that reads token by token."""
        plain = Reading(seq_len=self.config.seq_len or LONGEST, packing="best_fit")
        return self._dataset(next(iter(self.readings.values()), plain))

    def tokens(self) -> int | None:
        """One more than the largest id of the casks' tokenizer; None where neither cask nor a model tells it."""
        of_models = (token_count(self.tokenizers[label]) for label in self.readings)
        return next(of_models, self.casks[0].manifest.teacher.tokenizer_size)

    def measure_all(self, models: Sequence[tuple[str, Path]]) -> list[Measured]:
        """Everything of each model, by label and folder."""
        return [
            self._measure(label, folder, which_of(number, len(models)))
            for number, (label, folder) in enumerate(models, start=1)
        ]

    def _measure(self, label: str, folder: Path, of: str) -> Measured:
        """Everything of one model."""
        reading = self.readings.get(label)
        model = self._model(label, folder, "none" if reading is None else reading.packing).to(device())
        columns = chunks = described = texts = None
        if reading is not None:
            dataset, extra_ids = self._dataset(reading), extra_ids_of(folder)
            described = reading.describe(dataset) | {"extra_ids": extra_ids}
            self.say(f"measuring {label} at {dataset.num_positions:,} positions{of}")
            with self.counting(f"measuring {label}{of}", dataset.num_positions, "positions") as done:
                columns = evaluate_model(
                    model, dataset, batch_sequences=self.batch(dataset), extra_ids=extra_ids, progress=done
                )
            _require_numbers(label, columns)
            if self.prompts:
                self.say(f"{label} writes {len(self.prompts):,} texts{of}")
                with self.counting(f"{label} writes{of}", len(self.prompts), "texts") as done:
                    texts = write_texts(model, self.tokenizers[label], self.prompts, progress=done)
        if label in self.aligned:
            aligned = self.aligned[label]
            self.say(f"measuring {label} on bytes{of}")
            with self.counting(f"measuring {label} on bytes{of}", len(aligned.dataset), "sequences") as done:
                chunks = aligned.measure(model, batch_tokens=self.config.batch_tokens, progress=done)
        return Measured(
            label=label,
            path=folder,
            columns=columns,
            chunks=chunks,
            reading=described,
            seen=self.seen[label],
            texts=texts,
        )

    def _model(self, label: str, folder: Path, packing: Packing) -> Any:
        """The model that was opened to be checked, or loaded again; ready to read."""
        model = self.opened.take(label)
        return load_reader(folder, packing) if model is None else round_as_its_run(model, folder)

    def batch(self, dataset: CaskDataset) -> int:
        """Sequences per forward pass."""
        return max(1, self.config.batch_tokens // dataset.seq_len)

    def _dataset(self, reading: Reading) -> CaskDataset:
        """Models that read alike share one."""
        if reading not in self.datasets:
            self.datasets[reading] = reading.dataset(self.casks)
        return self.datasets[reading]

    def _align(self, label: str, model: Any, folder: Path) -> AlignedDocuments:
        """The documents in a model's tokens; models with one tokenizer share the folder."""
        assert self.config.teacher is not None
        # Its tokens may be more than the teacher's.
        seq_len = self.config.seq_len or min(LONGEST, context_of(model.config) or LONGEST)
        return AlignedDocuments.of(
            model,
            self.tokenizers[label],
            self.casks,
            teacher=self.config.teacher,
            folder=folder,
            seq_len=seq_len,
            overlap=seq_len // 2,
            say=lambda message: self.say(f"{label}: {message}"),
        )


def _require_numbers(label: str, columns: Columns) -> None:
    """Refuse figures that are none: every mean of them would be none, too. Raises ReportError."""
    broken = int((~np.isfinite(columns.values["nll"])).sum())
    if broken:
        raise ReportError(
            f"{label} gives no probability that is a number at {broken:,} of {len(columns.documents_P):,} positions: "
            "its weights hold NaN or infinity, or overflow. Leave it out, or name an earlier checkpoint"
        )


def foreign_models(config: ReportConfig, cask: Cask, fingerprints: Mapping[str, str]) -> set[str]:
    """Labels of the models with another tokenizer than a cask's teacher.

    Raises:
        IdentityMismatchError: there are some, and the report has no teacher with this tokenizer.
    """
    expected = cask.manifest.teacher.tokenizer_fingerprint
    foreign = {label for label, fingerprint in fingerprints.items() if fingerprint != expected}
    if foreign and config.teacher is None:
        raise IdentityMismatchError(
            f"the tokenizer of {', '.join(sorted(foreign))} is not that of {cask.place} (fingerprint {expected}): ids "
            "mean other tokens there. To compare bits per byte, name the folder of its teacher with --teacher (only "
            "the tokenizer is read)"
        )
    return foreign


def device() -> torch.device:
    """What models run on."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def _size(model: Any) -> int:
    """Bytes of a model's weights and buffers."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
