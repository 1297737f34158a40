"""Configuration of a training run: one frozen dataclass, checked at creation."""

import math
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from logitcask_consumer.config_rules import (
    DECAY,
    MIN_LR_RATIO,
    Optimizer,
    Rule,
    Scheduler,
    choices,
    evaluation_rules,
    local_rules,
    optimization_rules,
    quantization_rules,
    utf8_rules,
)
from logitcask_consumer.data import CaskSource, CaskSourceError, Packing
from logitcask_consumer.data.vocabulary import ExtraIds
from logitcask_schemas.errors import OptionError

Precision = Literal["auto", "float32", "bfloat16"]
SaveDtype = Literal["float32", "bfloat16", "float16"]
Target = Literal["record", "dense"]
"""What losses compare with: the sparse records, or the whole distribution of last hidden states and teacher's head."""


AUTO_STEPS = 400
"""Optimizer steps at which the automatic batch aims: with fewer, a small corpus is hardly learned; docs/training.md."""
AUTO_BATCH_TOKENS = 65_536
"""Largest automatic batch; a larger corpus has more steps instead."""


class TrainConfigError(OptionError, ValueError):
    """Settings of a training run contradict each other or are out of range."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Everything that determines a training run. Fields marked `free` may differ between a run and its resumption."""

    casks: tuple[Path | str | CaskSource, ...]
    """Casks to train on: folders or URLs; or several teachers' with weights and losses, see `CaskSource.parse`."""
    student: str
    """Parts of the teacher, a model folder or a config.json; see `students.StudentSpec`."""
    output: Path = field(metadata={"free": True})
    """Folder of the trained model, its checkpoints and logs."""
    teacher: Path | None = field(default=None, metadata={"free": True})
    """The teacher's folder, for its weights (from-teacher) or its tokenizer; it makes no records."""
    other_teachers: tuple[Path, ...] = field(default=(), metadata={"free": True})
    """Folders of further teachers, for the tokenizers of casks whose loss compares text."""
    loss: str = "forward_kl"
    """A registered loss with its parameters, or a weighted mix; see `losses.Objective`."""
    ce_weight: float = 0.0
    """Share of the cross-entropy with the realised tokens, 0 to 1."""
    hints: str | None = None
    """Hint losses, added to the loss: "pkd:map=uniform@1.0 + cosine@0.5"; see `hints.HintObjective`."""
    target: Target = "record"
    """`dense` needs the last layer's hints and the teacher's folder; see `hints.dense`."""
    weights: str | None = None
    """Which positions are trained and how much each counts, a product of weights; see the package `weights`."""
    extra_ids: ExtraIds = "keep"
    """A student's ids beyond the teacher's: `keep` them in its softmax, or `mask` them; see `vocabulary`."""
    epochs: float = 2.0
    """Passes over the casks."""
    max_steps: int | None = None
    """Optimizer steps, instead of epochs."""
    seq_len: int = 512
    """Slots of a training sequence; longer documents are cut into windows."""
    overlap: int | None = None
    """Context slots of later windows of a long document; None is an eighth of a sequence, at most 64."""
    packing: Packing = "best_fit"
    """Several documents per sequence, or `none`."""
    batch_tokens: int | None = None
    """Slots per optimizer step, over all processes; None chooses them so that the run has about `AUTO_STEPS` steps."""
    micro_tokens: int = field(default=8192, metadata={"free": True})
    """Slots per forward pass of one process; smaller saves memory, gradients accumulate."""
    lr: float = 5e-4
    """Peak learning rate."""
    optimizer: Optimizer = "adamw"
    """`muon` is Muon for the matrices of the layers and AdamW for the rest; see `optimization`."""
    scheduler: Scheduler = "cosine"
    """How the learning rate goes on after its rise: `wsd` is stable and falls at the end, over `decay`."""
    decay: float = DECAY
    """Share of the steps over which `wsd` falls."""
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises."""
    min_lr_ratio: float = MIN_LR_RATIO
    """Learning rate at the end over the peak, where it falls."""
    weight_decay: float = 0.01
    """Of the optimizer, decoupled."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    seed: int = 0
    """Of initialisation, packing, order and dropout."""
    cache: Path | None = field(default=None, metadata={"free": True})
    """Local folder for shards of casks in object stores."""
    cache_bytes: int | None = field(default=None, metadata={"free": True})
    """Most bytes of each such cask to keep there; None: 32 GiB."""
    lora: str | None = None
    """Train adapters only, the base stays as it is; see `adapters.LoraSpec`."""
    freeze_head: bool = False
    """Leave the output embedding untrained, and the input embedding where both share their weights."""
    router_loss: float | None = None
    """Times which the load balancing loss of a student's experts is added, 0 for never; None: as its config says."""
    quantize: str | None = None
    """Round the weights of the layers in every forward pass, and in what is saved; see `quantization.read_scheme`."""
    save_quantized: bool = field(default=False, metadata={"free": True})
    """Save the quantised weights as torchao stores them, instead of the numbers that they stand for."""
    merge: bool = field(default=False, metadata={"free": True})
    """Save the student with its adapters merged into its weights."""
    save_dtype: SaveDtype = field(default="float32", metadata={"free": True})
    """Of the weights of the trained student; training and checkpoints are float32."""
    fsdp: bool = field(default=False, metadata={"free": True})
    """Spread parameters, gradients and optimizer over the processes of torchrun, instead of a copy on each."""
    precision: Precision = "auto"
    """Of the forward pass; parameters stay float32. `auto` is bfloat16 on a GPU that has it."""
    gradient_checkpointing: bool = field(default=False, metadata={"free": True})
    """Recompute activations in the backward pass: slower, less memory."""
    block_rows: int | None = field(default=None, metadata={"free": True})
    """Rows of logits held at a time; None chooses 64 MiB, 256 at least."""
    save_steps: int = field(default=100, metadata={"free": True})
    """A checkpoint every so many optimizer steps."""
    keep_checkpoints: int = field(default=2, metadata={"free": True})
    """Older ones are removed."""
    logging_steps: int = field(default=1, metadata={"free": True})
    """A line of metrics every so many optimizer steps."""
    workers: int = field(default=0, metadata={"free": True})
    """DataLoader processes; reading is fast enough for none in most runs."""
    report_to: tuple[str, ...] = field(default=(), metadata={"free": True})
    """Trackers of transformers, such as tensorboard, trackio or wandb."""
    eval_casks: tuple[Path | str, ...] = field(default=(), metadata={"free": True})
    """Held-out casks of one teacher; the student is measured on them while it trains."""
    eval_every: int | None = None
    """Optimizer steps between evaluations; None: a tenth of all. There is one before the first, and one at the end."""
    eval_documents: int | None = None
    """Documents of the held-out casks to measure on; None for all."""
    patience: int | None = None
    """Training ends after so many evaluations in a row without improvement; None: never."""
    min_improvement: float = 0.0
    """What counts as an improvement: more than so many nats below the last one that did."""
    load_best: bool = False
    """Save the student of the evaluation with the lowest held-out KL, not that of the last step."""
    resume: str = field(default="auto", metadata={"free": True})
    """auto: from the latest checkpoint, where there is one; never: refuse a used folder; else a checkpoint's path."""

    def __post_init__(self) -> None:
        """Check ranges; all faults are reported at once. A single cask may stand without a tuple.

        Raises:
            TrainConfigError: with one line per fault.
        """
        if isinstance(self.casks, Path | str | CaskSource):
            object.__setattr__(self, "casks", (self.casks,))
        for name in ("output", "teacher", "cache"):
            if isinstance(place := getattr(self, name), str):
                object.__setattr__(self, name, Path(place))
        if isinstance(self.other_teachers, Path | str):
            object.__setattr__(self, "other_teachers", (self.other_teachers,))
        object.__setattr__(self, "other_teachers", tuple(map(Path, self.other_teachers)))
        if isinstance(self.eval_casks, Path | str):
            object.__setattr__(self, "eval_casks", (self.eval_casks,))
        object.__setattr__(self, "eval_casks", tuple(self.eval_casks))
        written = tuple(str(cask) if isinstance(cask, CaskSource) else cask for cask in self.casks)
        object.__setattr__(self, "casks", written)
        try:
            self.sources  # noqa: B018 - reads them
        except CaskSourceError as error:
            raise TrainConfigError(str(error)) from error
        rules: list[Rule] = [
            (bool(self.casks), "at least one cask is needed"),
            (0.0 <= self.ce_weight <= 1.0, f"ce_weight must lie between 0 and 1, got {self.ce_weight}"),
            (0 < self.epochs < math.inf, f"epochs must be positive and finite, got {self.epochs}"),
            (self.max_steps is None or self.max_steps > 0, f"max_steps must be positive, got {self.max_steps}"),
            (self.seq_len >= 1, f"seq_len must be at least 1, got {self.seq_len}"),
            (
                0 <= self.context < max(self.seq_len, 1),
                f"overlap must be at least 0 and below seq_len {self.seq_len}, got {self.overlap}",
            ),
            (
                self.batch_tokens is None or self.batch_tokens >= self.seq_len,
                f"batch_tokens must hold at least one sequence of {self.seq_len}, got {self.batch_tokens}",
            ),
            (
                self.micro_tokens >= self.seq_len,
                f"micro_tokens must hold at least one sequence of {self.seq_len}, got {self.micro_tokens}",
            ),
            *utf8_rules(output=self.output),
            *local_rules(output=self.output, cache=self.cache),
            *optimization_rules(self),
            *evaluation_rules(self),
            (0 <= self.seed < 2**32, f"seed must be at least 0 and below 2^32, got {self.seed}"),
            (
                min(self.save_steps, self.keep_checkpoints, self.logging_steps) >= 1,
                "save_steps, keep_checkpoints and logging_steps must be at least 1",
            ),
            (self.target in get_args(Target), f"target must be {choices(Target)}, got {self.target!r}"),
            (self.packing in get_args(Packing), f"packing must be {choices(Packing)}, got {self.packing!r}"),
            (self.precision in get_args(Precision), f"precision must be {choices(Precision)}, got {self.precision!r}"),
            (
                self.extra_ids in get_args(ExtraIds),
                f"extra_ids must be {choices(ExtraIds)}, got {self.extra_ids!r}",
            ),
            (
                not (self.fsdp and self.lora),
                "lora does not go with fsdp: of adapters, gradients and optimizer are small anyway. Leave fsdp out",
            ),
            *quantization_rules(self),
            (
                self.router_loss is None or 0 <= self.router_loss < math.inf,
                f"router_loss must be at least 0 and finite, got {self.router_loss}",
            ),
            (not self.merge or self.lora is not None, "merge is for adapters: give lora too, or leave merge out"),
            (
                self.save_dtype in get_args(SaveDtype),
                f"save_dtype must be {choices(SaveDtype)}, got {self.save_dtype!r}",
            ),
            (not (self.freeze_head and self.lora), "lora freezes the head already: freeze_head does not go with it"),
            (self.workers >= 0, f"workers must not be negative, got {self.workers}"),
        ]
        if faults := [message for holds, message in rules if not holds]:
            raise TrainConfigError("; ".join(faults))

    @property
    def sources(self) -> tuple[CaskSource, ...]:
        """The casks with what each counts."""
        return tuple(cask if isinstance(cask, CaskSource) else CaskSource.parse(cask) for cask in self.casks)

    @property
    def context(self) -> int:
        """The overlap of windows, chosen where it was not given."""
        return min(64, self.seq_len // 8) if self.overlap is None else self.overlap

    def step_sequences(self, processes: int, *, slots: int) -> int:
        """Sequences of an optimizer step of a run that begins, over all processes.

        Args:
            processes: of the run.
            slots: of all sequences of an epoch, for the automatic choice.

        Raises:
            TrainConfigError: `batch_tokens` does not divide among the processes.
        """
        if self.batch_tokens is None:
            aim = min(int(slots * self.epochs) // AUTO_STEPS, AUTO_BATCH_TOKENS)
            return max(1, aim // (self.seq_len * processes)) * processes
        sequences = self.batch_tokens // self.seq_len
        if sequences % processes:
            raise TrainConfigError(
                f"{self.batch_tokens} batch tokens are {sequences} sequences of {self.seq_len}, which {processes} "
                "processes cannot share evenly; change batch_tokens"
            )
        return sequences

    def micro_shape(self, sequences: int, processes: int) -> tuple[int, int]:
        """Sequences per forward pass of one process, and forward passes per optimizer step.

        What is left over of the product is filled with empty sequences: a run may go on with any number of processes.

        Args:
            sequences: of an optimizer step, over all processes.
            processes: of the run.
        """
        of_process = -(-sequences // processes)
        accumulation = -(-of_process // max(1, self.micro_tokens // self.seq_len))
        return -(-of_process // accumulation), accumulation

    def batch_shape(self, processes: int, *, slots: int) -> tuple[int, int]:
        """`micro_shape` of a run that begins; see `step_sequences`."""
        return self.micro_shape(self.step_sequences(processes, slots=slots), processes)

    def as_dict(self) -> dict[str, Any]:
        """Every field in JSON types."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The fields that have a default, in JSON types: what a run means that was begun before a field existed."""
        return {f.name: _plain(f.default) for f in fields(cls) if f.default is not MISSING}

    def binding(self) -> dict[str, Any]:
        """The fields that a resumption must share with the run it continues."""
        bound = {f.name for f in fields(self) if not f.metadata.get("free")}
        return {name: value for name, value in self.as_dict().items() if name in bound}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
