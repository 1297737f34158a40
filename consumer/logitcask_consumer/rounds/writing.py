"""The texts of a round: who writes each of them, chunk after chunk, and what of them goes to the teacher."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from logitcask_consumer.data.vocabulary import StudentVocabulary, token_count
from logitcask_consumer.rounds.capture import CaptureError, TeacherService
from logitcask_consumer.rounds.config import RoundsConfig
from logitcask_consumer.rounds.phases import EmptyRoundError, round_folder
from logitcask_consumer.rounds.prompts import Prompts
from logitcask_consumer.rounds.sampler import (
    Sampling,
    chunk_seed,
    chunks_of,
    logprobs_under,
    teacher_writes,
    write_chunk,
)
from logitcask_consumer.rounds.samples import SAMPLES_NAME, RoundTexts, SampledText, append_chunk, read_chunks
from logitcask_consumer.rounds.service_texts import OtherWriterError, ServiceTexts, WrittenText
from logitcask_consumer.rounds.state import RoundState, RunState
from logitcask_consumer.run_document import explained_writes, replace_file, share_weights
from logitcask_consumer.student.checks import check_context
from logitcask_consumer.student.generation import ends_of, pad_of
from logitcask_consumer.student.loading import load_model
from logitcask_schemas.record.identity import TeacherIdentity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CORPUS_NAME: Final = "corpus.jsonl"
PROBE_TOLERANCE: Final = 0.1
"""Nats per token by which the service's log q of the student's texts may differ from the trainer's. Half precision
differs by about 0.01; the student before a useful phase, or a stale head, by far more."""
_ADVICE: Final = "Free space and give the same command again"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundWriter:
    """Writes the texts of the rounds of a run."""

    config: RoundsConfig
    state: RunState
    prompts: Prompts
    tokenizer: "PreTrainedTokenizerBase"
    service: TeacherService
    say: Callable[[str], None]
    save: Callable[[], None]
    """Writes the state."""

    def write(self, own: RoundState, student: Path, teacher: TeacherIdentity) -> RoundTexts:
        """Write the texts of a round, from the first chunk that is not there.

        Args:
            own: the round.
            student: folder of the student as it is now.
            teacher: who will read them.

        Raises:
            IdentityMismatchError: the student lacks tokens of the tokenizer.
            EmptyRoundError: none of the texts can be used.
            CaptureError, ServiceError, ServiceUnreachableError: the service, where it writes, does not.
            ModelError: the student's logits are not finite, or its context is shorter than a sequence.
        """
        config, folder = self.config, round_folder(self.config.output, own.number)
        with explained_writes(folder, _ADVICE):
            folder.mkdir(parents=True, exist_ok=True)
        path = folder / SAMPLES_NAME
        done = read_chunks(path, mend=True)
        chosen = self.prompts.of_round(own.number, config.prompts_per_round, config.seed)
        chunks = chunks_of(chosen, texts_per_prompt=config.texts_per_prompt, size=config.sample_batch)
        if len(done) < len(chunks):
            model = load_student(student)
            # As training does, but before a prompt finds no row in the student's tables.
            check_context(model, config.seq_len)
            StudentVocabulary.of(model, teacher.vocab_size).require_tokens(token_count(self.tokenizer))
            began = time.monotonic()
            new = self._write_from(len(done), chunks, own, model, path, teacher)
            written = sum(text.sampled for chunk in new for text in chunk)
            pace = written / max(time.monotonic() - began, 1e-9)
            self.say(f"round {own.number} of {config.rounds}: {written:,} tokens written, {pace:,.0f} tokens/s")
        self._remove_student(own)
        return self.write_corpus(own.number)

    def write_corpus(self, number: int) -> RoundTexts:
        """Write what of a round's texts goes to the teacher.

        Raises:
            EmptyRoundError: none of the texts can be used.
        """
        folder = round_folder(self.config.output, number)
        path = folder / SAMPLES_NAME
        texts = RoundTexts.of(read_chunks(path), max_looping=self.config.max_looping)
        self.say(f"round {number}: {counted(texts)}")
        if not texts.texts:
            raise EmptyRoundError(
                f"round {number}: none of the student's {texts.counts.texts} texts can be used "
                f"({counted(texts)}). They lie in {path} and stay there. Allow more looping texts (--max-looping 1) "
                "with the same command; or begin in another output folder with a student that writes (train it on a "
                "fixed cask first), or with other prompts"
            )
        with explained_writes(folder / CORPUS_NAME, _ADVICE):
            replace_file(folder / CORPUS_NAME, texts.corpus(number))
        return texts

    def _write_from(
        self,
        first: int,
        chunks: Sequence[Sequence[int]],
        own: RoundState,
        model: Any,
        path: Path,
        teacher: TeacherIdentity,
    ) -> list[list[SampledText]]:
        """Write and keep the chunks from `first` on."""
        config = self.config
        sampling = Sampling(
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
        )
        ends, pad = ends_of(model, self.tokenizer), pad_of(self.tokenizer)
        # A student's vocabulary may be padded further than the teacher's, which could not read what lies there.
        vocabulary = teacher.vocab_size if config.sampler == "hf" else None
        by_teacher = [
            teacher_writes(config.seed, own.number, number, len(chunk), config.teacher_mix)
            for number, chunk in enumerate(chunks)
        ]
        # All of a round's, whatever is written already: the same request is the same texts.
        texts = self._of_service(own, chunks, by_teacher, sampling, ends, model)
        new = list[list[SampledText]]()
        for number in range(first, len(chunks)):
            here = [at for at in range(len(chunks[number])) if (number, at) not in texts]
            own_texts = list[SampledText]()
            if here:
                prompts = [(chunks[number][at], self.prompts.ids[chunks[number][at]]) for at in here]
                seed = chunk_seed(config.seed, own.number, number)
                own_texts = write_chunk(model, prompts, sampling, seed=seed, ends=ends, pad=pad, vocabulary=vocabulary)
            written = dict(zip(here, own_texts, strict=True))
            for at, prompt in enumerate(chunks[number]):
                if at not in written:
                    written[at] = self._scored(
                        model, prompt, texts[number, at], vocabulary, is_teachers=by_teacher[number][at]
                    )
            new.append([written[at] for at in range(len(chunks[number]))])
            append_chunk(path, number, new[-1])
        return new

    def _scored(
        self, model: Any, prompt: int, text: WrittenText, vocabulary: int | None, *, is_teachers: bool
    ) -> SampledText:
        """A text of the service, with the student's log q."""
        ids = [*self.prompts.ids[prompt], *text.token_ids]
        return SampledText(
            prompt=prompt,
            input_ids=ids,
            logprobs=logprobs_under(model, ids, len(text.token_ids), vocabulary=vocabulary),
            finish=text.finish,
            writer="teacher" if is_teachers else "student",
        )

    def _of_service(
        self,
        own: RoundState,
        chunks: Sequence[Sequence[int]],
        by_teacher: Sequence[Sequence[bool]],
        sampling: Sampling,
        ends: Sequence[int],
        model: Any,
    ) -> dict[tuple[int, int], WrittenText]:
        """The texts that the service writes, by chunk and place in it."""
        places = [(number, at) for number, chunk in enumerate(chunks) for at in range(len(chunk))]
        teachers = [(number, at) for number, at in places if by_teacher[number][at]]
        students = [(number, at) for number, at in places if not by_teacher[number][at]]
        texts = dict[tuple[int, int], WrittenText]()
        if teachers:
            prompts = [chunks[number][at] for number, at in teachers]
            asked = self._asked(own, f"teacher-{own.writing}", prompts, sampling, None, model)
            try:
                written = asked.write()
            except OtherWriterError:
                self._ask_anew(own)
                raise
            texts |= dict(zip(teachers, (text.until(ends) for text in written), strict=True))
        if self.config.sampler == "service" and students:
            name = self._put_student(own, model)
            prompts = [chunks[number][at] for number, at in students]
            asked = self._asked(own, f"student-{own.writing}", prompts, sampling, name, model)
            written = asked.write()
            self._require_same_student(own, asked, written, model)
            texts |= dict(zip(students, (text.until(ends) for text in written), strict=True))
        return texts

    def _asked(
        self, own: RoundState, who: str, prompts: Sequence[int], sampling: Sampling, teacher: str | None, model: Any
    ) -> ServiceTexts:
        """What the service is asked to write."""
        return ServiceTexts(
            service=self.service,
            prompts=[self.prompts.ids[prompt] for prompt in prompts],
            sampling=sampling,
            seed=chunk_seed(self.config.seed, own.number, own.writing),
            vocabulary=int(model.get_input_embeddings().num_embeddings),
            key=f"{self.state.run}-{own.number}-{who}",
            name=f"{self.config.cask_name(own.number)}.{who}",
            corpus=round_folder(self.config.output, own.number) / f"{who}.jsonl",
            teacher=teacher,
            weights_digest=self.state.teacher.weights_digest if teacher is None and self.state.teacher else None,
        )

    def _require_same_student(
        self, own: RoundState, asked: ServiceTexts, written: Sequence[WrittenText], model: Any
    ) -> None:
        """Prove by a probe that the service wrote with the weights that the student has here.

        Of the first texts: log q here and as the service says, both at temperature 1 and without cuts.
        """
        probed = [
            (prompt, text)
            for prompt, text in zip(asked.prompts, written, strict=True)
            if text.token_ids  # one without tokens has no log q
        ][: self.config.sample_batch]
        if not probed:
            return
        gaps = list[float]()
        for prompt, text in probed:
            logprobs = logprobs_under(model, [*prompt, *text.token_ids], len(text.token_ids))
            gaps.append(abs(sum(logprobs) / len(logprobs) - text.mean_logprob))
        gap = sum(gaps) / len(gaps)
        if gap <= PROBE_TOLERANCE:  # false for NaN too
            self.say(
                f"round {own.number}: probe: of the first {len(gaps)} texts the service's log q per token differs from "
                f"the student's here by {gap:.2g} nats in the mean (at most {PROBE_TOLERANCE})"
            )
            return
        self._ask_anew(own)
        raise CaptureError(
            f"round {own.number}: the service wrote with other weights than the student's. Of the first {len(gaps)} "
            f"texts its log q per token differs from the student's here by {gap:.3g} nats, at most "
            f"{PROBE_TOLERANCE} is expected. None of them was kept. See that --students names the folder that the "
            "service was started with, restart the service, and give the same command again, which asks for new texts"
        )

    def _ask_anew(self, own: RoundState) -> None:
        """Texts that were refused are not asked for again, and the student that wrote them may be damaged."""
        own.writing += 1
        self.save()
        self._remove_student(own)

    def _student_place(self, own: RoundState) -> Path | None:
        """Where the service finds a round's student; None where it does not write."""
        if self.config.sampler != "service":
            return None
        assert self.config.students is not None, "checked by the config"
        return self.config.students / f"{self.state.run}.r{own.number:04d}"

    def _put_student(self, own: RoundState, model: Any) -> str:
        """Save the student where the service finds it, whole or not at all; what requests call it."""
        place = self._student_place(own)
        assert place is not None
        if not place.parent.is_dir():
            raise CaptureError(
                f"--students {place.parent} is no folder. Name the folder that the service was started with "
                "(`logitcask serve --students DIR`), as it is seen from here"
            )
        with explained_writes(place, _ADVICE):
            partial = place.with_name(f".{place.name}.partial")
            if partial.is_dir():
                shutil.rmtree(partial)
            if not place.is_dir():
                model.save_pretrained(partial)
                self.tokenizer.save_pretrained(partial)
                share_weights(partial)
                partial.rename(place)
        return f"students/{place.name}"

    def _remove_student(self, own: RoundState) -> None:
        """Its texts are here: the folder is needed no more. What a kill leaves of it is no half student."""
        place = self._student_place(own)
        if place is None:
            return
        partial = place.with_name(f".{place.name}.partial")
        with explained_writes(place, f"Remove {place} by hand and give the same command again"):
            if partial.is_dir():
                shutil.rmtree(partial)
            if place.is_dir():
                place.rename(partial)
                shutil.rmtree(partial)


def load_student(folder: Path) -> Any:
    """The student of a folder, on the device that this process has."""
    model = load_model(folder)
    return model.to("cuda") if torch.cuda.is_available() else model


def counted(texts: RoundTexts) -> str:
    """How many texts there are of every kind, in words."""
    counts = texts.counts
    parts = [f"{counts.kept} of {counts.texts} texts kept"]
    if counts.by_teacher:
        parts.append(f"{counts.by_teacher} by the teacher")
    if counts.empty:
        parts.append(f"{counts.empty} empty")
    if counts.looping:
        parts.append(f"{counts.looping} repeat themselves, {counts.looping_left_out} of these left out")
    if counts.duplicates:
        parts.append(f"{counts.duplicates} written twice")
    if counts.unfinished:
        parts.append(f"{counts.unfinished} cut at the limit of tokens")
    return ", ".join(parts)
