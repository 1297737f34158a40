"""A corpus made ready once, for all who capture parts of it: tokens, plan, bad lines, in a folder that all can read.

    WORK/KEY/                  KEY: digest of the corpus, the tokenizer and what a document may be
        tokens/                the token store, see `token_store`
        bad_lines.jsonl        a `Failure` a line
        prepared.json          what preparation found: written last, with the folder's rename as publication
    WORK/lock                  held while a folder is made

The plan follows from the token store alone, so everybody who opens the folder has the same chunks with the same
numbers. A document that the corpus has more than once belongs to the chunk of its first occurrence.
"""

import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import xxhash
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from logitcask_schemas.api.objects import Failure
from logitcask_schemas.cask.storage import files
from logitcask_schemas.errors import LogitcaskError
from logitcask_services.corpora.corpus_lines import custom_id_at
from logitcask_services.corpora.line_problems import LineProblem
from logitcask_services.corpora.prepare import DocumentLimits, Prepared, prepare
from logitcask_services.corpora.token_store import TokenStore
from logitcask_services.jobs.loaded_teacher import TeacherFacts

TOKENS_NAME: Final = "tokens"
BAD_LINES_NAME: Final = "bad_lines.jsonl"
PREPARED_NAME: Final = "prepared.json"
LOCK_NAME: Final = "lock"
LOCK_SECONDS: Final = 24 * 3600.0
"""As long as another may take to make a large corpus ready."""
SILENT_SECONDS: Final = 2.0
"""Who waits longer is told."""
_BLOCK_BYTES: Final = 1 << 20
_FORMAT: Final = 1
_LEFTOVER: Final = re.compile(r"[0-9a-f]{16}\.tmp-[0-9a-f]{16}")
"""Names of folders that were being made when their process died."""


class WorkFolderError(LogitcaskError, OSError):
    """The folder beside the cask cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedCorpus:
    """See the module's docstring."""

    corpus: Path
    folder: Path
    tokens: TokenStore
    counts: Prepared
    limits: DocumentLimits

    @property
    def tokens_folder(self) -> Path:
        """Where the token store lies."""
        return self.folder / TOKENS_NAME

    def bad_lines(self) -> Iterator[Failure]:
        """Lines of the corpus that give no document, in its order."""
        with (self.folder / BAD_LINES_NAME).open(encoding="utf-8") as lines:
            for line in lines:
                yield Failure.model_validate_json(line)

    def failure_of(self, document: int, code: str, message: str) -> Failure:
        """A document that could not be captured, as the errors file tells it."""
        line, start = self.tokens.line(document)
        try:
            custom_id = custom_id_at(self.corpus, start, self.limits.max_line_bytes)
        except (OSError, LineProblem):
            custom_id, message = None, f"{message}; its line cannot be read again: the corpus has changed meanwhile"
        return Failure(stage="capture", document=document, line=line, custom_id=custom_id, code=code, message=message)

    def repeats(self) -> NDArray[np.int64]:
        """Numbers of the documents that occurred earlier in the corpus, ascending."""
        return Repeats(self.tokens.document_ids_D32).documents_R


class Repeats:
    """Of one corpus.

    Args:
        ids_D32: ids of its documents, [D, 32] bytes, in its order.
    """

    def __init__(self, ids_D32: NDArray[np.uint8]) -> None:
        ids_D = np.ascontiguousarray(ids_D32).view("S32").reshape(-1)
        _, first_U, unique_D = np.unique(ids_D, return_index=True, return_inverse=True)  # the first place of each
        first_D = first_U[unique_D.reshape(-1)]
        self.documents_R = np.flatnonzero(first_D != np.arange(len(first_D)))
        """Numbers of the documents that occurred earlier, ascending; [R]."""
        self._first_R = first_D[self.documents_R]

    def within(self, documents: range) -> dict[int, int]:
        """Those among consecutive documents, each with the number of its first occurrence."""
        start, stop = np.searchsorted(self.documents_R, [documents.start, documents.stop])
        return dict(
            zip(self.documents_R[start:stop].tolist(), self._first_R[start:stop].tolist(), strict=True),
        )


def prepared_corpus(
    corpus: Path,
    work: Path,
    facts: TeacherFacts,
    limits: DocumentLimits,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> PreparedCorpus:
    """Open what was made ready, or make it; whoever comes meanwhile waits for that.

    Args:
        corpus: JSON lines.
        work: Folder for what is made; made where absent.
        facts: Of the teacher: whose tokens they become.
        limits: What a document may be.
        say: Hears what is being done.

    Raises:
        WorkFolderError: The folder cannot be made, or another process makes the corpus ready for longer than a day.
        NotJsonLinesError: The file is of another format as a whole.
        OSError: The disk is full.
    """
    folder = work / _key(corpus, facts, limits)
    with _locked(work, lambda: say(f"waiting: another process makes tokens in {work}")):
        if not (folder / PREPARED_NAME).is_file():
            say(f"making tokens of {corpus.name}")
            for leftover in work.iterdir():
                if _LEFTOVER.fullmatch(leftover.name):  # nothing else: the folder may hold what is somebody's own
                    shutil.rmtree(leftover)
            _make(corpus, folder, facts, limits)
    tokens = TokenStore(folder / TOKENS_NAME)
    counts = Prepared(**json.loads((folder / PREPARED_NAME).read_text(encoding="utf-8")))
    return PreparedCorpus(corpus=corpus, folder=folder, tokens=tokens, counts=counts, limits=limits)


def _make(corpus: Path, folder: Path, facts: TeacherFacts, limits: DocumentLimits) -> None:
    temporary = folder.with_name(f"{folder.name}.tmp-{secrets.token_hex(8)}")  # see _LEFTOVER
    temporary.mkdir()
    try:
        with (temporary / BAD_LINES_NAME).open("x", encoding="utf-8") as bad_lines:

            def report(bad: list[Failure]) -> None:
                bad_lines.writelines(f"{failure.model_dump_json()}\n" for failure in bad)

            counts = prepare(
                corpus, temporary / TOKENS_NAME, facts.tokenizer, limits, report=report, stopped=lambda: False
            )
        (temporary / PREPARED_NAME).write_text(json.dumps(asdict(counts)), encoding="utf-8")
        files.publish_path(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary)
        raise


def _key(corpus: Path, facts: TeacherFacts, limits: DocumentLimits) -> str:
    digest = xxhash.xxh3_128()
    with corpus.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    document = {
        "format": _FORMAT,
        "corpus": digest.hexdigest(),
        "tokenizer": facts.tokenizer_fingerprint,
        "template": facts.template_hash,
        "limits": asdict(limits),
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def _locked(work: Path, waits: Callable[[], None]) -> Iterator[None]:
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkFolderError(f"{work}: cannot be made: {error.strerror}. Name another folder") from error
    try:
        lock = FileLock(work / LOCK_NAME, fallback_to_soft=False)
        try:
            held = lock.acquire(timeout=SILENT_SECONDS)
        except Timeout:
            waits()
            held = lock.acquire(timeout=LOCK_SECONDS)
        with held:
            yield
    except Timeout as error:
        raise WorkFolderError(
            f"{work}: another process has made the corpus ready for a day. If it hangs, end it"
        ) from error
