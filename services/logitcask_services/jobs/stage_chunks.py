"""The chunks of a stage: planned and committed in the database, their answers in files."""

from collections.abc import Sequence

from logitcask_services.generation.pipeline import Stage
from logitcask_services.generation.rows import Answer
from logitcask_services.jobs.answer_files import AnswerFolder, Journal
from logitcask_services.jobs.database.generations import AnswerChunk, GenerationStore, NewStage
from logitcask_services.jobs.database.tables import GenerationRow
from logitcask_services.jobs.waiting import Waiter


class StageChunks:
    """Those of one stage of one generation. Everything waits for a disk or a database that is away for a while."""

    def __init__(
        self, store: GenerationStore, row: GenerationRow, stage: Stage, answers: AnswerFolder, waiter: Waiter
    ) -> None:
        self._store = store
        self._row = row
        self._stage = stage
        self._answers = answers
        self._waiter = waiter

    def pending(self) -> list[AnswerChunk]:
        """Begin the stage where it is not begun; the chunks that are not answered yet, in order.

        Raises:
            AnswersDamagedError: the answers of a chunk that is done are not there, or another job's.
        """
        store, stage = self._store, self._stage
        known = {entry.number: entry for entry in store.stages(self._row.id)}
        count = known[stage.number].requests if stage.number in known else self._waiter.run(stage.count)
        plan = NewStage(number=stage.number, name=stage.name, kind=stage.kind, template=stage.template, requests=count)
        self._waiter.run(lambda: store.begin_stage(self._row.id, plan))
        chunks = list(self._waiter.run(lambda: store.chunks(self._row.id, stage.number)))
        for chunk in chunks:
            if chunk.done:
                self._answers.require(stage.name, chunk.number)
        return [chunk for chunk in chunks if not chunk.done and not self._adopt(chunk)]

    def journal(self, chunk: AnswerChunk) -> Journal:
        """Of the answers that have come back of an open chunk."""
        return self._answers.journal(self._stage.name, chunk.number)

    def publish(self, chunk: AnswerChunk, answers: Sequence[Answer], seconds: float) -> None:
        """File, then transaction. Safe to repeat.

        Args:
            chunk: whose.
            answers: of all its requests, in order.
            seconds: that it took.
        """
        self._waiter.run(lambda: self._answers.publish(self._stage.name, chunk.number, answers))
        self._waiter.run(lambda: self._commit(chunk, answers, seconds))

    def is_budget_spent(self) -> bool:
        """Whether the generation has written as many tokens as it may."""
        budget = self._row.request.budget.generated_tokens
        return budget is not None and self._store.get(self._row.id).generated_tokens >= budget

    def leave_out(self, chunks: Sequence[AnswerChunk]) -> None:
        """Chunks for which there is no budget left."""
        budget = self._row.request.budget.generated_tokens
        message = f"the budget of {budget:,} generated tokens was spent before this request; raise it to ask for more"
        for chunk in chunks:
            self.publish(chunk, [Answer(error=("budget_spent", message))] * chunk.requests, seconds=0.0)

    def _adopt(self, chunk: AnswerChunk) -> bool:
        """Whether an earlier run published the chunk and did not live to commit it, which is done now."""
        if not self._answers.has(self._stage.name, chunk.number):
            return False
        answers = self._answers.read(self._stage.name, chunk.number)
        self._waiter.run(lambda: self._commit(chunk, answers, 0.0))
        return True

    def _commit(self, chunk: AnswerChunk, answers: Sequence[Answer], seconds: float) -> None:
        self._store.commit_chunk(
            self._row.id,
            self._stage.number,
            chunk,
            failed=sum(answer.error is not None for answer in answers),
            tokens=sum(len(answer.token_ids) for answer in answers),
            seconds=seconds,
        )
