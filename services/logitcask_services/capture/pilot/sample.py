"""A file of JSON lines as the documents of a pilot, read only as far as they are asked for."""

from collections.abc import Iterator
from pathlib import Path

from logitcask_services.capture.pilot.errors import PilotError
from logitcask_services.corpora.lines import LineProblem, parse_line
from logitcask_services.corpora.reading import CorpusLines
from logitcask_services.corpora.rendering import tokenise
from logitcask_services.corpora.tokenizer import DocumentTokenizer

_MOST_LINE_BYTES = 16 << 20


def sample_documents(path: Path, tokenizer: DocumentTokenizer, max_length: int) -> Iterator[list[int]]:
    """Token ids of each line of a corpus file, truncated to `max_length`; single tokens are left out.

    Args:
        path: JSON lines, in the forms of `logitcask_services.corpora.lines`.
        tokenizer: the teacher's.
        max_length: tokens.

    Raises:
        PilotError: a line is bad; names file and line.
    """
    for number, _, content in CorpusLines(path, _MOST_LINE_BYTES):
        try:
            if content is None:
                raise LineProblem("line_too_long", f"the line is longer than {_MOST_LINE_BYTES} bytes")
            ids = _ids(content, tokenizer)
        except LineProblem as problem:
            raise PilotError(f"{path}, line {number}: {problem}") from problem
        if len(ids) > 1:
            yield ids[:max_length]


def _ids(content: bytes, tokenizer: DocumentTokenizer) -> list[int]:
    (tokenised,) = tokenise([parse_line(content)], tokenizer)
    if isinstance(tokenised, LineProblem):
        raise tokenised
    return tokenised.token_ids
