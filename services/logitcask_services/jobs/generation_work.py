"""What a generation is made of, put together from its row, its files and the teacher's tokenizer."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import count

from logitcask_schemas.api.objects import Failure
from logitcask_services.corpora.tokenizer import DocumentTokenizer
from logitcask_services.generation.compile import StepResources, compile_steps, parsed_templates
from logitcask_services.generation.pipeline import Pipeline, StageOpenError
from logitcask_services.generation.prompting import Prompter
from logitcask_services.generation.rows import Answer, Dropped, Row, Staged
from logitcask_services.generation.source import source_rows
from logitcask_services.jobs.answer_files import AnswerFolder
from logitcask_services.jobs.context import JobContext
from logitcask_services.jobs.database.tables import GenerationRow
from logitcask_services.jobs.waiting import StoppedWhileWaitingError


class GenerationWork:
    """Steps, corpus and answers of one generation. Reads alone; any number may exist at once.

    Going through the rows raises StoppedWhileWaitingError once `ends` says so: with slow steps it may take long.

    Raises RecipeError where the steps do not fit the teacher, such as a chat template that it does not have.
    """

    def __init__(
        self,
        context: JobContext,
        row: GenerationRow,
        tokenizer: DocumentTokenizer,
        max_model_len: int,
        ends: Callable[[], bool] = lambda: False,
    ) -> None:
        self._context = context
        self._ends = ends
        self._row = row
        self.answers = AnswerFolder(context.folders.answers(row.id))
        self.templates = parsed_templates(row.request.templates)
        self.prompter = Prompter(tokenizer, max_model_len)
        self._resources = StepResources(
            tokenizer=tokenizer,
            max_model_len=max_model_len,
            templates=row.request.templates,
            rows_of=self._rows_of,
            job_seed=row.request.seed,
            sandbox=shlex.split(context.settings.sandbox) if context.settings.sandbox else None,
        )

    @cached_property
    def pipeline(self) -> Pipeline:
        """The steps as one stream of rows."""
        steps = self._row.request.steps
        return Pipeline(steps, compile_steps(steps, self._resources), self.source, self._answers_of)

    def source(self) -> Iterator[Staged]:
        """The rows of the corpus. Raises NotJsonLinesError, OSError."""
        for row in self._rows_in(self._row.corpus_id):
            if self._ends():
                raise StoppedWhileWaitingError
            yield row

    def first_bad_line(self) -> Failure | None:
        """The first line that gives no row."""
        for row in self.source():
            if isinstance(row, Dropped):
                return Failure(
                    stage="corpus", line=row.row.line, custom_id=row.row.custom_id, code=row.code, message=row.message
                )
        return None

    def _rows_in(self, corpus_id: str) -> Iterator[Staged]:
        sha256 = self._context.corpora.get(corpus_id).sha256
        return source_rows(self._context.storage.path(sha256), sha256, self._context.settings.max_line_bytes)

    def _rows_of(self, corpus_id: str | None) -> Sequence[Row]:
        sha256 = self._context.corpora.get(corpus_id or self._row.corpus_id).sha256
        return self._context.demonstrations.rows(self._context.storage.path(sha256), sha256)

    def _answers_of(self, stage: str) -> Iterator[Answer]:
        for chunk in count():
            if not self.answers.has(stage, chunk):
                raise StageOpenError
            yield from self.answers.read(stage, chunk)
