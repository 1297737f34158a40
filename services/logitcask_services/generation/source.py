"""Lines of a corpus as the first rows of a generation."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from logitcask_services.corpora.corpus_lines import CorpusLines
from logitcask_services.corpora.line_problems import DEEPEST, LineProblem, is_too_deep
from logitcask_services.corpora.lines import decode_line, read_custom_id
from logitcask_services.generation.rows import Dropped, Row, Staged, source_id


def source_rows(corpus: Path, sha256: str, max_line_bytes: int) -> Iterator[Staged]:
    """A row for each line that is not blank, with all its fields; a line that is no JSON object is dropped.

    Raises:
        NotJsonLinesError: the file is of another format as a whole.
    """
    for number, _, content in CorpusLines(corpus, max_line_bytes):
        identity = source_id(sha256, number)
        row = Row(id=identity, parent=identity, line=number)
        if content is None:
            message = f"line {number} is longer than {max_line_bytes} bytes; split it, or raise max_line_bytes"
            yield row.drop(-1, "line_too_long", message)
            continue
        try:
            entry = decode_line(content)
            yield Row(id=identity, parent=identity, line=number, custom_id=read_custom_id(entry), fields=_fields(entry))
        except LineProblem as problem:
            yield Dropped(row=row, step=-1, code=problem.code, message=f"line {number}: {problem.message}")


def _fields(entry: dict[str, Any]) -> dict[str, Any]:
    fields = {name: value for name, value in entry.items() if name != "custom_id"}
    deep = next((name for name, value in fields.items() if is_too_deep(value)), None)
    if deep is not None:
        raise LineProblem(
            "too_deep", f"`{deep[:64]}` has more than {DEEPEST} lists and objects within one another; flatten it"
        )
    try:
        json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise LineProblem("not_unicode", "a string holds half of a surrogate pair (\\ud800 to \\udfff)") from error
    except ValueError as error:  # such as 1e999, which Python reads as infinite and no reader of JSON takes back
        raise LineProblem("not_json", "a number is larger than any floating-point number; write it as text") from error
    return fields
