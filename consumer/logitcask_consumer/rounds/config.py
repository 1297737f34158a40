"""Configuration of a run in rounds: one frozen dataclass, checked at creation."""

import math
import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.config_rules import utf8_rules
from logitcask_consumer.losses import Objective
from logitcask_consumer.rounds.recipes import Recipe, get_recipe, losses_of
from logitcask_schemas.cask.storage.object_store import is_url
from logitcask_schemas.errors import OptionError
from logitcask_schemas.record.capture_spec import CaptureSpec, capture_spec

RUN_NAME_RULE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What the casks of the rounds can be named after: a cask's name, with room for the number of the round."""

MOST_TEMPERATURE: Final = 10.0
"""That a generation of the service may have."""


class RoundsConfigError(OptionError, ValueError):
    """Settings of a run in rounds contradict each other or are out of range."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsConfig:
    """Everything that determines a run in rounds. Fields marked `free` may differ when it is continued."""

    recipe: str
    """A name in `recipes.RECIPES`."""
    prompts: Path = field(metadata={"free": True})
    """JSON lines with `prompt`, `messages` or `input_ids`; compared by content."""
    student: str
    """As in `TrainConfig`."""
    server: str = field(metadata={"free": True})
    """URL of the teacher service."""
    output: Path = field(metadata={"free": True})
    """Folder of the run."""
    cask_root: Path | str = field(metadata={"free": True})
    """Where the service's casks are read here: the folder or URL of its cask root."""
    name: str | None = None
    """What casks of the rounds are named after, NAME.r0001; None: the output folder."""
    api_key: str | None = field(default=None, repr=False, metadata={"free": True, "secret": True})
    """Bearer key, where the service has keys."""
    patience_seconds: float = field(default=600.0, metadata={"free": True})
    """How long to wait for a service that does not answer."""
    teacher: Path | None = field(default=None, metadata={"free": True})
    """The teacher's folder, where the student takes layers or the tokenizer from it."""
    casks: tuple[str, ...] = ()
    """Fixed casks: folders or URLs."""
    share: float | None = None
    """Lambda, the share of the student's texts in every step; None: the recipe's, 1 without a fixed cask."""
    loss: str | None = None
    """On the student's texts; None: the recipe's."""
    fixed_loss: str | None = None
    """On the fixed casks; None: the recipe's."""
    teacher_mix: float = 0.0
    """How likely the teacher is to write a text in the student's place, below 1; MiniLLM's."""
    sampler: str = "hf"
    """Who writes the student's texts: `hf`, transformers here; `service`, which loads the student from `students`."""
    students: Path | None = field(default=None, metadata={"free": True})
    """The folder that the service was started with as `--students`, as it is seen from here."""
    rounds: int = 3
    steps_per_round: int = 100
    """Optimizer steps of a phase."""
    prompts_per_round: int | None = None
    """None: all of them in every round."""
    texts_per_prompt: int = 1
    max_new_tokens: int = 128
    """Most tokens that the student writes."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    sample_batch: int = 32
    """Texts that are written together, one chunk; what a kill costs at most."""
    max_looping: float = field(default=0.25, metadata={"free": True})
    """Most texts of a round that repeat themselves, as a share; more of them are left out."""
    buffer: int | None = None
    """Rounds whose texts a phase trains on; None: the recipe's."""
    held_out: str | None = None
    """Cask to measure the student on after every phase."""
    adapt_by: float | None = None
    """What an adaptive share rises by; None: 1 over the number of rounds."""
    capture: CaptureSpec | None = None
    """What is captured of the student's texts; None: the default, with what the loss needs."""
    seq_len: int = 512
    batch_tokens: int | None = None
    """Slots per optimizer step; None: 16 sequences."""
    micro_tokens: int = field(default=8192, metadata={"free": True})
    lr: float = 1e-4
    """Peak learning rate over all phases."""
    optimizer: str = "adamw"
    """As in `TrainConfig`; one over all phases."""
    scheduler: str = "cosine"
    """As in `TrainConfig`; one over all phases."""
    decay: float = 0.2
    """As in `TrainConfig`."""
    warmup: float = 0.05
    min_lr_ratio: float = 0.1
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    seed: int = 0
    precision: str = "auto"
    gradient_checkpointing: bool = field(default=False, metadata={"free": True})
    save_steps: int = field(default=100, metadata={"free": True})
    cache: Path | None = field(default=None, metadata={"free": True})
    cache_bytes: int | None = field(default=None, metadata={"free": True})

    def __post_init__(self) -> None:
        """Check ranges, recipe and losses; what a training run has too is checked by `TrainConfig`.

        Raises:
            RoundsConfigError: with all faults.
            RecipeError, UnknownLossError, LossParameterError, TrainConfigError: as they say.
        """
        recipe = self.method
        own, fixed = self.losses
        rules: list[tuple[bool, str]] = [
            (
                RUN_NAME_RULE.fullmatch(self.run_name) is not None,
                f"casks are named after the run, and {self.run_name!r} is no name for them: 1 to 100 letters, digits, "
                "dots, hyphens or underscores. Name it with --name",
            ),
            (self.share is None or 0.0 <= self.share <= 1.0, f"lambda must lie between 0 and 1, got {self.share}"),
            (self.rounds >= 1, f"rounds must be at least 1, got {self.rounds}"),
            (self.steps_per_round >= 1, f"steps_per_round must be at least 1, got {self.steps_per_round}"),
            (
                self.prompts_per_round is None or self.prompts_per_round >= 1,
                f"prompts_per_round must be at least 1, got {self.prompts_per_round}",
            ),
            (self.texts_per_prompt >= 1, f"texts_per_prompt must be at least 1, got {self.texts_per_prompt}"),
            (
                1 <= self.max_new_tokens <= self.seq_len,
                f"max_new_tokens must lie between 1 and seq_len {self.seq_len}, got {self.max_new_tokens}",
            ),
            (
                0 < self.temperature < math.inf,
                f"temperature must be above 0 and finite, got {self.temperature}",
            ),
            (0 < self.top_p <= 1, f"top_p must be above 0 and at most 1, got {self.top_p}"),
            (self.top_k >= 0, f"top_k must be at least 1, or 0 for all tokens, got {self.top_k}"),
            (self.sample_batch >= 1, f"sample_batch must be at least 1, got {self.sample_batch}"),
            (0 <= self.max_looping <= 1, f"max_looping is a share, between 0 and 1, got {self.max_looping}"),
            (self.buffer is None or self.buffer >= 1, f"buffer must be at least 1 round, got {self.buffer}"),
            (
                self.adapt_by is None or 0 < self.adapt_by <= 1,
                f"adapt_by must be above 0 and at most 1, got {self.adapt_by}",
            ),
            (self.patience_seconds >= 0, f"patience_seconds must not be negative, got {self.patience_seconds}"),
            (
                bool(self.casks) or self.first_share == 1.0,
                f"lambda {self.first_share:g} leaves {1 - self.first_share:.0%} of every step to a fixed cask: name "
                "one with --cask, or take --lambda 1",
            ),
            (
                not self.casks or self.first_share < 1.0,
                "lambda 1 trains on the student's texts alone: leave out --cask, or take a smaller --lambda",
            ),
            (
                not recipe.adaptive or (bool(self.casks) and self.held_out is not None),
                f"recipe {recipe.name} raises the share of the student's texts where the held-out loss rises: name a "
                "fixed cask (--cask) and a held-out one (--held-out)",
            ),
            *self._draws_of_each(),
            *utf8_rules(cask_root=self.cask_root, held_out=self.held_out, students=self.students),
            *(rule for cask in self.casks for rule in utf8_rules(cask=cask)),
            (recipe.adaptive or self.adapt_by is None, f"recipe {recipe.name} keeps its share: leave out adapt_by"),
            (
                recipe.name != "f-distill" or bool(self.casks) or self.loss == "reverse_kl",
                f"recipe f-distill with {own} needs the teacher's texts as well as the student's: name their cask with "
                "--cask (`logitcask generate --recipe seqkd`); reverse_kl alone does without",
            ),
            (
                not Objective.parse(own).needs_samples or (self.temperature, self.top_p, self.top_k) == (1.0, 1.0, 0),
                f"{own} weighs each token by its probability over the one that it was sampled with: temperature and "
                "top_p must be 1 and top_k 0",
            ),
            (
                not Objective.parse(own).needs_samples or self.kept_rounds == 1,
                f"{own} weighs each token by its probability over the one that it was sampled with, and a text that "
                f"two rounds wrote has two of these: buffer must be 1, got {self.kept_rounds}",
            ),
            (0 <= self.teacher_mix < 1, f"teacher_mix must be at least 0 and below 1, got {self.teacher_mix}"),
            (
                not self.teacher_mix or Objective.parse(own).needs_samples,
                f"{own} has no weights for texts that the teacher wrote: teacher_mix goes with policy_rkl (recipe "
                "minillm). Others take the teacher's texts as a fixed cask (`logitcask generate --recipe seqkd`)",
            ),
            (
                not self.teacher_mix
                or all(loss.requires.head or loss.requires.samples for loss in Objective.parse(own).losses),
                f"{own} reads the token that was written, whose weight is not that of what stands before it: with "
                "teacher_mix take reverse_kl + policy_rkl, or other losses on whole distributions",
            ),
            (
                self.temperature <= MOST_TEMPERATURE or (self.sampler == "hf" and not self.teacher_mix),
                f"the service writes at temperatures of at most {MOST_TEMPERATURE:g}, got {self.temperature}",
            ),
            (self.sampler in ("hf", "service"), f"sampler must be hf or service, got {self.sampler!r}"),
            (
                (self.sampler == "service") == (self.students is not None),
                "sampler service loads the student from the folder that the service was started with (`logitcask serve "
                "--students DIR`): name it, as it is seen from here, with --students"
                if self.students is None
                else f"students names a folder for sampler service, and the sampler is {self.sampler}: leave it out",
            ),
            *(
                (value != "", f"{name} is empty; leave it out to have the default")
                for name, value in (("name", self.name), ("loss", self.loss), ("fixed_loss", self.fixed_loss))
            ),
        ]
        del fixed
        if faults := [message for holds, message in rules if not holds]:
            raise RoundsConfigError("; ".join(faults))
        self.training(("the casks of the rounds",))

    def _draws_of_each(self) -> list[tuple[bool, str]]:
        """A share of which no sequence is ever drawn would cost its texts, or its cask, for nothing."""
        total = self.steps_per_round * max(self.step_tokens // max(self.seq_len, 1), 1)
        least = 1.0 / max(total, 1)
        shares = [("lambda", self.first_share), ("the fixed casks' share, 1 - lambda,", 1.0 - self.first_share)]
        if self.method.adaptive:
            shares.append(("what lambda rises by (adapt_by)", self.adapt_by or 1.0 / max(self.rounds, 1)))
        return [
            (
                not 0 < share < math.inf or round(share * total) > 0,
                f"{name} is {share:g}, of which no sequence of a round's {total} is drawn; the smallest that draws one "
                f"is {least:g}. Take that, 0, or more --steps-per-round",
            )
            for name, share in shares
        ]

    @property
    def method(self) -> Recipe:
        """The recipe."""
        return get_recipe(self.recipe)

    @property
    def losses(self) -> tuple[str, str]:
        """On the student's texts, and on the fixed casks."""
        return losses_of(self.method, self.loss, self.fixed_loss)

    @property
    def first_share(self) -> float:
        """Lambda of the first round."""
        if self.share is not None:
            return self.share
        return self.method.share if self.casks else 1.0

    @property
    def run_name(self) -> str:
        """What the casks are named after."""
        return self.output.absolute().name if self.name is None else self.name

    @property
    def kept_rounds(self) -> int:
        """Rounds whose texts a phase trains on."""
        return self.buffer or self.method.buffer

    @property
    def steps(self) -> int:
        """Optimizer steps of all rounds."""
        return self.rounds * self.steps_per_round

    @property
    def step_tokens(self) -> int:
        """Slots of an optimizer step."""
        return 16 * self.seq_len if self.batch_tokens is None else self.batch_tokens

    @property
    def spec(self) -> CaptureSpec:
        """What is captured of the student's texts."""
        if self.capture is not None:
            return self.capture
        losses = Objective.parse(self.losses[0])
        # Value estimates of most divergences read log t of the draws; it is stored for those alone.
        return CaptureSpec(tail_logprobs=any(loss.requires.tail_logprobs for loss in losses.losses))

    def at_tau(self, tau: float) -> "RoundsConfig":
        """The same with another threshold of the capture.

        Raises:
            CaptureSpecError: it is out of range.
        """
        return replace(self, capture=capture_spec(tau=tau, tail_logprobs=self.spec.tail_logprobs))

    def cask_place(self, number: int) -> str:
        """Where the cask of a round is read."""
        root = str(self.cask_root)
        return (
            f"{root.rstrip('/')}/{self.cask_name(number)}" if is_url(root) else str(Path(root) / self.cask_name(number))
        )

    def cask_name(self, number: int) -> str:
        """Name of the cask of a round, at the service."""
        return f"{self.run_name}.r{number:04d}"

    def training(self, casks: tuple[str, ...]) -> TrainConfig:
        """The training run that the phases make together, with the casks of one of them.

        Raises:
            TrainConfigError: a setting is out of range.
        """
        return TrainConfig(
            casks=tuple(Path(cask) if not is_url(cask) else cask for cask in casks),
            student=self.student,
            output=self.output,
            teacher=self.teacher,
            loss="forward_kl",  # each group of casks has its own
            max_steps=self.steps,
            seq_len=self.seq_len,
            batch_tokens=self.step_tokens,
            micro_tokens=self.micro_tokens,
            lr=self.lr,
            optimizer=self.optimizer,  # type: ignore[arg-type]  # checked there
            scheduler=self.scheduler,  # type: ignore[arg-type]  # checked there
            decay=self.decay,
            warmup=self.warmup,
            min_lr_ratio=self.min_lr_ratio,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
            seed=self.seed,
            precision=self.precision,  # type: ignore[arg-type]  # checked there
            gradient_checkpointing=self.gradient_checkpointing,
            save_steps=self.save_steps,
            cache=self.cache,
            cache_bytes=self.cache_bytes,
        )

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """What settings that came later mean for a run that was begun before there were any, in JSON types."""
        return {f.name: f.default for f in fields(cls) if f.name in ("optimizer", "scheduler", "decay")}

    def binding(self) -> dict[str, Any]:
        """The fields that a continuation must share with the run, in JSON types."""
        free = {f.name for f in fields(self) if f.metadata.get("free")}
        values = {name: value for name, value in asdict(self).items() if name not in free}
        capture = None if self.capture is None else self.capture.canonical()
        # The name may follow from the output folder, which may be moved: the casks keep theirs.
        return {**values, "name": self.run_name, "casks": list(self.casks), "capture": capture}
