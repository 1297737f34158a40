"""A run in rounds: sample, capture, train, next. Whatever is safe stands in rounds.json; the same command goes on."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from logitcask_consumer.data import CaskDataset, open_casks
from logitcask_consumer.processes import processes
from logitcask_consumer.report.evaluate import evaluate_model, metric_kinds
from logitcask_consumer.rounds.buffer import next_share, rounds_in_buffer
from logitcask_consumer.rounds.capture import TeacherService
from logitcask_consumer.rounds.config import RoundsConfig, RoundsConfigError
from logitcask_consumer.rounds.phases import ROUNDS_NAME, phase_of, round_folder
from logitcask_consumer.rounds.prompts import Prompts, read_prompts
from logitcask_consumer.rounds.reading import RoundReader
from logitcask_consumer.rounds.samples import SAMPLES_NAME
from logitcask_consumer.rounds.state import (
    RoundState,
    RunState,
    read_state,
    require_same_settings,
    write_state,
)
from logitcask_consumer.rounds.writing import CORPUS_NAME, RoundWriter, load_student
from logitcask_consumer.run_document import (
    INITIAL_NAME,
    RunFolderError,
    explained_writes,
    latest_checkpoint,
    read_run,
    require_finished,
    require_unused,
    share_weights,
)
from logitcask_consumer.student.loading import load_tokenizer
from logitcask_consumer.student.students import StudentSpec
from logitcask_consumer.training.checkpoints import partial_folder
from logitcask_consumer.training.run import train_phase
from logitcask_consumer.training.run_lock import hold_run
from logitcask_consumer.training.stop_signals import StoppedEarly, StopSignals
from logitcask_schemas.errors import ModelError
from logitcask_schemas.model_source import find_model
from logitcask_schemas.record.identity import tokenizer_fingerprint

if TYPE_CHECKING:
    from logitcask_schemas.api.client import ServiceClient

Say = Callable[[str], None]
_HELD_OUT: Final = ("kl", "nll", "acceptance")
"""What is kept of an evaluation, as far as the cask has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsResult:
    """What a run in rounds came to."""

    output: Path
    """Hugging Face folder of the trained student."""
    state: RunState
    stopped: bool
    """A signal ended this call; the same command goes on."""


def run_rounds(
    config: RoundsConfig, *, say: Say = lambda message: None, client: "ServiceClient | None" = None
) -> RoundsResult:
    """Make the rounds of a run, or those that are left.

    Args:
        config: the run.
        say: receives messages for people.
        client: of the service; None connects as the config says.

    Raises:
        RunFolderError, RunBusyError: the output folder holds another run, is in use, or cannot be written.
        PromptError: the prompts cannot be used.
        CaptureError, ServiceError, ServiceUnreachableError: the service makes no cask.
        IdentityMismatchError: its teacher is not the one of the rounds before, or not of the student's tokens.
        EmptyRoundError: a round has nothing to train on.
        RoundsConfigError: the run is made of several processes.
        Others as `training.run.train`.
    """
    if processes().num_processes > 1:
        raise RoundsConfigError("a run in rounds is made by one process; start it without torchrun")
    require_unused(config.output)
    if config.teacher is not None and not find_model(config.teacher).folder.is_dir():
        raise ModelError(f"teacher folder {config.teacher} does not exist; a Hugging Face model folder is needed")
    spec = StudentSpec.parse(config.student)
    if spec.folder is not None:
        require_finished(spec.folder)
    with StopSignals() as stop, hold_run(config.output), _connected(config, client) as connected:
        run = _Run(config=config, spec=spec, stop=stop, say=say, client=connected)
        try:
            return run.make()
        except StoppedEarly:
            say("stopped; what is written is kept, and the same command goes on from there")
            return RoundsResult(output=config.output, state=run.state, stopped=True)


@contextmanager
def _connected(config: RoundsConfig, client: "ServiceClient | None") -> "Iterator[ServiceClient]":
    from logitcask_schemas.api.client import ServiceClient

    if client is not None:
        yield client
        return
    with ServiceClient(config.server, config.api_key, patience_seconds=config.patience_seconds) as own:
        yield own


class _Run:
    """The run, in a folder that no other writes into."""

    def __init__(
        self, *, config: RoundsConfig, spec: StudentSpec, stop: StopSignals, say: Say, client: "ServiceClient"
    ) -> None:
        self.config, self.spec, self.stop, self.say = config, spec, stop, say
        self.service = TeacherService(client=client, patience_seconds=config.patience_seconds, say=say)
        teacher = None if config.teacher is None else find_model(config.teacher).folder
        self.teacher_folder = teacher
        self.tokenizer = load_tokenizer(spec.tokenizer_folder(teacher))
        self.prompts: Prompts = read_prompts(
            config.prompts, self.tokenizer, longest=config.seq_len + 1 - config.max_new_tokens
        )
        settings = {**config.binding(), "prompts": self.prompts.sha256}
        state = read_state(config.output)
        if state is None:
            if read_run(config.output) is not None:
                raise RunFolderError(
                    f"{config.output} holds a run of `logitcask train`, not one in rounds. Use another output folder"
                )
            if (texts := config.output / ROUNDS_NAME).exists():
                raise RunFolderError(
                    f"{texts} holds texts of a run whose rounds.json is gone; they may be of other settings. Bring "
                    "rounds.json back, remove that folder, or use another output folder"
                )
            state = RunState.new(config.run_name, settings)
            write_state(config.output, state)
        require_same_settings(state, config.output, settings, config.defaults())
        self.state = state
        self.writer = RoundWriter(
            config=config,
            state=state,
            prompts=self.prompts,
            tokenizer=self.tokenizer,
            service=self.service,
            say=say,
            save=self._write,
        )
        self.reader = RoundReader(
            config=config, state=state, tokenizer=self.tokenizer, writer=self.writer, service=self.service, say=say
        )

    def make(self) -> RoundsResult:
        """All rounds."""
        if self.state.status == "finished":
            self.say(f"{self.config.output} is finished; nothing to do")
            return self._result(stopped=False)
        if self.prompts.too_long:
            self.say(f"{self.prompts.too_long} prompts are left out: no text of the full length fits behind them")
        self._save_student()
        if self.config.held_out is not None and self.state.held_out is None:
            self.state.held_out = self._measure(self._student_folder())
            self._write()
        share = self.config.first_share
        for number in range(1, self.config.rounds + 1):
            own = self.state.round(number, share)
            if own.stage != "trained" and not self._make_round(own):
                return self._result(stopped=True)
            share = self._next_share(own)
        if (document := read_run(self.config.output)) is None or document["status"] != "finished":
            raise RunFolderError(
                f"{self.config.output}: rounds.json says that every round is trained, the run document does not. One "
                "of them was changed; bring it back, or use another output folder"
            )
        self.state.status = "finished"
        self._write()
        self.say(f"trained student: {self.config.output}")
        return self._result(stopped=False)

    def _make_round(self, own: RoundState) -> bool:
        """One round; False where a signal ended its phase."""
        if own.share > 0:
            folder = round_folder(self.config.output, own.number)
            gone = [name for name in (SAMPLES_NAME, CORPUS_NAME) if not (folder / name).is_file()]
            if own.stage == "sampled" and gone:
                self.say(f"round {own.number}: {' and '.join(gone)} are gone from {folder}; writing them again")
                own.stage = "sampling"
            if own.stage == "sampling":
                teacher = self.reader.require_teacher()
                with self._timed(own, "sample"):
                    texts = self.writer.write(own, self._student_folder(), teacher)
                own.sampled, own.stage = texts.counts, "sampled"
                self._write()
            if own.stage == "sampled":
                with self._timed(own, "capture"):
                    self.reader.capture(own)
                own.stage = "captured"
                self._write()
            for each in rounds_in_buffer(self.state.rounds, own.number, self.config.kept_rounds):
                if self.reader.was_removed(each):
                    self.say(f"round {each.number}: its cask was removed; its texts are here, and are captured again")
                    with self._timed(each, "capture"):
                        self.reader.capture(each)
                    self._write()
        with self._timed(own, "train"):
            phase = phase_of(self.config, self.state, own, tokens_per_step=self.config.step_tokens)
            places = tuple(str(cask.place) for group in phase.groups for cask in group.casks)
            self.say(f"round {own.number} of {self.config.rounds}: training, lambda {own.share:g}")
            try:
                result = train_phase(self.config.training(places), phase, self.stop, say=self.say)
            finally:
                self.stop.training_ends()
        if result.stopped_at is not None:
            self._write()
            return False
        if self.config.held_out is not None:
            own.held_out = self._measure(self._student_folder())
            self.say(f"round {own.number}: held out {_shown(own.held_out)}")
        own.stage = "trained"
        self._write()
        return True

    def _next_share(self, own: RoundState) -> float:
        """Lambda of the next round."""
        if not self.config.method.adaptive:
            return own.share
        earlier = [self.state.held_out, *(each.held_out for each in self.state.rounds[: own.number - 1])]
        before, after = earlier[-1], own.held_out
        assert before is not None, "adaptive recipes measure before the first phase"
        assert after is not None, "and after every one"
        share = next_share(
            own.share,
            before=_held_out_loss(before),
            after=_held_out_loss(after),
            by=self.config.adapt_by or 1.0 / self.config.rounds,
        )
        if share != own.share:
            self.say(f"the held-out loss rose: lambda {own.share:g} becomes {share:g}")
        return share

    def _save_student(self) -> None:
        """The student before training, where it exists nowhere else."""
        target = self.config.output / INITIAL_NAME
        if self.spec.first_folder is not None or target.is_dir():
            return
        model = self.spec.build(self.teacher_folder, seed=self.config.seed)
        with explained_writes(target, "Free space and give the same command again"):
            partial = partial_folder(self.config.output)
            model.save_pretrained(partial)
            self.tokenizer.save_pretrained(partial)
            share_weights(partial)
            partial.rename(target)

    def _student_folder(self) -> Path:
        """The student as it is now."""
        return latest_checkpoint(self.config.output) or self.spec.first_folder or self.config.output / INITIAL_NAME

    def _measure(self, folder: Path) -> dict[str, float]:
        """Means of a student over the held-out positions."""
        assert self.config.held_out is not None
        casks = open_casks(
            self.config.held_out,
            tokenizer_fingerprint=tokenizer_fingerprint(self.tokenizer),
            cache=self.config.cache,
            cache_bytes=self.config.cache_bytes,
        )
        dataset = CaskDataset(casks, seq_len=self.config.seq_len)
        batch = max(1, self.config.micro_tokens // self.config.seq_len)
        values = evaluate_model(load_student(folder), dataset, batch_sequences=batch).values
        capture = dataset.manifest.capture
        kinds = metric_kinds(
            sampled_tail=capture.mode != "topk", tail_logprobs=capture.tail_logprobs, ordered_head=False
        )
        return {name: float(values[name].mean(dtype="float64")) for name in _HELD_OUT if name in kinds}

    @contextmanager
    def _timed(self, own: RoundState, stage: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            own.seconds[stage] = own.seconds.get(stage, 0.0) + time.monotonic() - began

    def _write(self) -> None:
        write_state(self.config.output, self.state)

    def _result(self, *, stopped: bool) -> RoundsResult:
        return RoundsResult(output=self.config.output, state=self.state, stopped=stopped)


def _held_out_loss(means: dict[str, float]) -> float:
    """KL to the teacher where the cask has it, else the cross-entropy; nats."""
    return means.get("kl", means["nll"])


def _shown(means: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in means.items())
