"""Texts that the service writes after exact prompts: the teacher in the student's place, or the student itself.

Shape legend: P prompts of a round.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from logitcask_consumer.rounds.capture import CaptureError, TeacherService
from logitcask_consumer.rounds.sampler import Sampling
from logitcask_consumer.run_document import explained_writes, replace_file
from logitcask_schemas.api.exchange import ServiceError
from logitcask_schemas.api.generation import GeneratedRow, Generation, GenerationRequest
from logitcask_schemas.api.generation_steps import EmitRow, Generate
from logitcask_schemas.api.generation_steps import Sampling as ServiceSampling
from logitcask_schemas.api.objects import FINAL

TEMPLATE: Final = "input-ids"
"""The service's template for prompts of token ids, as they are."""
_FIELD: Final = "output"
_PAGE: Final = 100
_ADVICE: Final = "Free space and give the same command again"


class OtherWriterError(CaptureError):
    """Texts were written by another model than the one that was asked for; they must be asked for anew."""


class WrittenText(BaseModel):
    """What the service wrote after a prompt."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    token_ids: list[int]
    """With the token that ended it."""
    finish: Literal["stop", "length"]
    mean_logprob: float
    """Of these tokens under the model that wrote them, at temperature 1 and without cuts, nats."""

    def fault(self, vocabulary: int, most: int) -> str | None:
        """Why no sampling as it was asked for gives this text; None where it may.

        Args:
            vocabulary: tokens that the student knows.
            most: tokens that were asked for.
        """
        if strange := [token for token in self.token_ids if not 0 <= token < vocabulary]:
            return f"its token {strange[0]} is none of the student's {vocabulary}"
        if len(self.token_ids) > most:
            return f"it has {len(self.token_ids)} tokens, at most {most} were asked for"
        if self.finish == "length" and len(self.token_ids) < most:
            return f"it was cut after {len(self.token_ids)} tokens, where the student goes on up to {most}"
        return None

    def until(self, ends: Sequence[int]) -> "WrittenText":
        """The same up to the first token that ends the student's texts.

        Raises:
            CaptureError: it ended at a token at which the student would go on.
        """
        stop = next((at + 1 for at, token in enumerate(self.token_ids) if token in ends), None)
        if stop is not None:
            return self.model_copy(update={"token_ids": self.token_ids[:stop], "finish": "stop"})
        if self.finish == "stop":
            last = self.token_ids[-1] if self.token_ids else "nothing"
            raise CaptureError(
                f"a text of the service ended with token {last}, at which the student would go on (its texts end with "
                f"{', '.join(map(str, ends)) or 'none'}): they would be of different texts. Give the student the "
                "teacher's generation_config.json, in another output folder"
            )
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTexts:
    """One generation of the service; asked for again by the same key, it is not written twice."""

    service: TeacherService
    prompts: Sequence[Sequence[int]]
    """Token ids, P."""
    sampling: Sampling
    seed: int
    vocabulary: int
    """Tokens that the student knows."""
    key: str
    """What a repeated request is known by."""
    name: str
    """Of the corpus, for people."""
    corpus: Path
    """Where the prompts are written before they are sent."""
    teacher: str | None
    """Who writes: `students/NAME`, or None for the service's teacher."""
    weights_digest: str | None = None
    """Of the teacher that must have written; None: it is proved otherwise."""

    def write(self) -> list[WrittenText]:
        """A text after each prompt, in their order, [P].

        Raises:
            CaptureError: the service did not write all of them; says why and what to do.
            ServiceError, ServiceUnreachableError: it refuses, or has not answered for long.
        """
        generation = self._generation()
        generations = self.service.client.generations
        for _ in self.service.followed(
            lambda: generations.follow(generation.id), lambda: generations.get(generation.id).status in FINAL
        ):
            pass
        generation = self.service.patiently(lambda: self.service.client.generations.get(generation.id))
        if generation.status != "completed":
            reason = "no reason is given" if generation.error is None else generation.error.message
            raise CaptureError(
                f"generation {generation.id} of {self.name} has {generation.status}: {reason}. Mend what is wrong and "
                "give the same command again; no round is lost"
            )
        writer = (generation.teacher or {}).get("weights_digest")
        if self.weights_digest is not None and writer != self.weights_digest:
            raise OtherWriterError(
                f"generation {generation.id} was written by a teacher of other weights ({writer}) than the one that "
                f"reads this run's texts ({self.weights_digest}). None of its texts was kept. Start the service with "
                "the first teacher and give the same command again, which asks for new texts"
            )
        return self._texts(generation.id)

    def _generation(self) -> Generation:
        """The one of this key; a failed one is taken up again, for a cancelled one another is begun."""
        with explained_writes(self.corpus, _ADVICE):
            lines = [
                json.dumps({"input_ids": list(ids), "custom_id": str(at)}) + "\n" for at, ids in enumerate(self.prompts)
            ]
            replace_file(self.corpus, "".join(lines))
        service, client = self.service, self.service.client
        sha256 = hashlib.sha256(self.corpus.read_bytes()).hexdigest()
        there = service.patiently(lambda: client.corpus_with(sha256))
        corpus = there or service.patiently(lambda: client.upload(self.corpus, name=self.name, sha256=sha256))
        sampling = ServiceSampling(
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            top_k=self.sampling.top_k,
            max_tokens=self.sampling.max_new_tokens,
        )
        request = GenerationRequest(
            corpus_id=corpus.id,
            teacher=self.teacher,
            seed=self.seed,
            steps=[Generate(template=TEMPLATE, into=_FIELD, sampling=sampling)],
            emit=[EmitRow(completion=_FIELD)],
            on_error="fail",
        )
        attempt = 0
        while True:
            key = f"{self.key}-{attempt}"
            try:
                generation = service.patiently(partial(client.generations.create, request, idempotency_key=key))
            except ServiceError as error:
                if error.code != "idempotency_key_reused":
                    raise
                attempt += 1  # its corpus was deleted, and has another id by now
                continue
            if generation.status == "failed":
                service.say(f"{generation.id} had failed; taking it up again")
                return service.patiently(partial(client.generations.resume, generation.id))
            if generation.status not in ("cancelled", "cancelling"):
                return generation
            attempt += 1

    def _texts(self, generation_id: str) -> list[WrittenText]:
        client, rows = self.service.client, list[GeneratedRow]()
        while True:
            ask = partial(client.generations.rows, generation_id, step=0, after=len(rows), limit=_PAGE, dropped=True)
            page = self.service.patiently(ask)
            rows.extend(page.data)
            if not page.has_more or not page.data:
                break
        texts = dict[str, WrittenText]()
        for row in rows:
            if row.dropped is not None:
                raise CaptureError(
                    f"generation {generation_id}, prompt {row.line}: the service wrote none ({row.dropped.message}). "
                    "Every prompt needs its text: shorten --seq-len or take the prompt out, in another output folder"
                )
            try:
                text = WrittenText.model_validate(row.written.get(_FIELD))
            except ValidationError as error:
                raise CaptureError(
                    f"generation {generation_id}, prompt {row.line}: what the service says of the text cannot be read "
                    f"({error.errors()[0]['msg']} at {'.'.join(map(str, error.errors()[0]['loc']))}); rounds need "
                    "`token_ids`, `finish` and `mean_logprob`. Use the version of logitcask that it runs"
                ) from error
            if fault := text.fault(self.vocabulary, self.sampling.max_new_tokens):
                raise CaptureError(
                    f"generation {generation_id}, prompt {row.line}: {fault}. Take a teacher with the student's "
                    "vocabulary and a window with room for the text, in another output folder"
                )
            texts[row.custom_id or ""] = text
        if texts.keys() != {str(at) for at in range(len(self.prompts))}:
            raise CaptureError(
                f"generation {generation_id} has texts of {len(texts)} prompts, {len(self.prompts)} were sent; have "
                f"the service forget it (DELETE /v1/generations/{generation_id}), and give the same command again"
            )
        return [texts[str(at)] for at in range(len(self.prompts))]
