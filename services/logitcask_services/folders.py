"""Where the service keeps what: casks by name, corpora by content, token stores and answers by job."""

import shutil
import tempfile
from pathlib import Path

from logitcask_schemas.api.requests import NAME_RULE, is_cask_name
from logitcask_schemas.errors import LogitcaskError


class CaskNameError(LogitcaskError, ValueError):
    """A cask's name could leave the cask root."""


class FolderError(LogitcaskError, OSError):
    """A folder of the service cannot be made or written to."""


class ServiceFolders:
    """The folders of one service, made where absent. Raises FolderError where one cannot be written to."""

    def __init__(self, cask_root: Path, state: Path) -> None:
        self.cask_root = cask_root
        self.state = state
        self.corpora = state / "corpora"
        self.extractions = state / "extractions"
        self.generations = state / "generations"
        self.uploads = state / "uploads"
        """Parts of uploads that are not complete, by upload."""
        self.documents = state / "documents"
        """Of each extraction, which documents came from which lines."""
        self.outputs = state / "outputs"
        """What batches wrote, made when it is first asked for."""
        self.failures = state / "failures"
        """Lists of bad lines, by job."""
        _make_writable(cask_root, "--cask-root")
        for folder in (
            state,
            self.corpora,
            self.extractions,
            self.generations,
            self.failures,
            self.uploads,
            self.documents,
            self.outputs,
        ):
            _make_writable(folder, "--data-dir")

    def cask(self, name: str) -> Path:
        """The folder of a cask, inside the cask root whatever the name. Raises CaskNameError."""
        if not is_cask_name(name):
            raise CaskNameError(f"{name[:140]!r} cannot name a cask; expected {NAME_RULE}")
        path = self.cask_root / name
        if path.resolve().parent != self.cask_root.resolve():
            raise CaskNameError(f"the cask {name!r} is a link that leads out of the cask root; remove the link")
        return path

    def token_store(self, extraction_id: str) -> Path:
        """The folder of an extraction's tokens."""
        return self.extractions / extraction_id

    def answers(self, generation_id: str) -> Path:
        """The folder of what the teacher answered for a generation."""
        return self.generations / generation_id

    def document_names(self, extraction_id: str) -> Path:
        """The file of an extraction's documents; see `corpora.document_names`."""
        return self.documents / f"{extraction_id}.jsonl"

    def drop_job(self, job_id: str) -> None:
        """Delete all files of a job, shards aside."""
        for folder in (self.token_store(job_id), self.answers(job_id)):
            shutil.rmtree(folder, ignore_errors=True)
        for path in (self.document_names(job_id), self.failures / f"{job_id}.jsonl", *self.outputs.glob(f"{job_id}.*")):
            path.unlink(missing_ok=True)

    def drop_token_store(self, extraction_id: str) -> None:
        """Delete the tokens of an extraction that has ended."""
        shutil.rmtree(self.token_store(extraction_id), ignore_errors=True)

    def sweep(self, keep: set[str], jobs: set[str]) -> None:
        """Delete what crashes left. Call before any work starts.

        Args:
            keep: Jobs whose token stores and answers stay.
            jobs: All that there are; their lists and outputs stay.
        """
        for path in (*self.failures.iterdir(), *self.documents.iterdir(), *self.outputs.iterdir()):
            if path.name.partition(".")[0] not in jobs or path.suffix == ".part":
                path.unlink()
        for folder in (*self.extractions.iterdir(), *self.generations.iterdir()):
            if folder.name not in keep:
                shutil.rmtree(folder)


def _make_writable(folder: Path, option: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FolderError(
            f"the folder {folder} cannot be written to ({error.strerror or error}); make it writable for this user, or "
            f"name another with {option}"
        ) from error
