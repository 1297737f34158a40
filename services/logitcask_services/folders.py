"""Where the service keeps what: casks by name, corpora by content, token stores and answers by job."""

import shutil
from pathlib import Path

from logitcask_services.cask_places import cask_root, make_writable


class ServiceFolders:
    """The folders of one service, made where absent. Raises FolderError or StoreError where one cannot be written to.

    Args:
        root: folder or URL of the casks.
        state: folder of all else.
        single_writer: see `ServiceSettings`.
    """

    def __init__(self, root: Path | str, state: Path, *, single_writer: bool = False) -> None:
        self.state = state
        self.casks = cask_root(root, state / "fetched", single_writer=single_writer)
        """Where casks lie; of those in a store, what is fetched to be looked at lies in the state's folder."""
        self.corpora = state / "corpora"
        self.extractions = state / "extractions"
        self.ledgers = state / "ledgers"
        """Of each extraction, which shards are its own; see `jobs.chunk_publication`."""
        self.generations = state / "generations"
        self.uploads = state / "uploads"
        """Parts of uploads that are not complete, by upload."""
        self.documents = state / "documents"
        """Of each extraction, which documents came from which lines."""
        self.outputs = state / "outputs"
        """What batches wrote, made when it is first asked for."""
        self.failures = state / "failures"
        """Lists of bad lines, by job."""
        self.casks.require_usable()
        for folder in (
            state,
            self.corpora,
            self.extractions,
            self.ledgers,
            self.generations,
            self.failures,
            self.uploads,
            self.documents,
            self.outputs,
        ):
            make_writable(folder, "--data-dir")

    def cask(self, name: str) -> Path | str:
        """Folder or URL of a cask. Raises CaskNameError."""
        return self.casks.place_of(name)

    def token_store(self, extraction_id: str) -> Path:
        """The folder of an extraction's tokens."""
        return self.extractions / extraction_id

    def ledger(self, extraction_id: str) -> Path:
        """The folder of an extraction's ledger of shards; made with the first."""
        return self.ledgers / extraction_id

    def answers(self, generation_id: str) -> Path:
        """The folder of what the teacher answered for a generation."""
        return self.generations / generation_id

    def document_names(self, extraction_id: str) -> Path:
        """The file of an extraction's documents; see `corpora.document_names`."""
        return self.documents / f"{extraction_id}.jsonl"

    def drop_job(self, job_id: str) -> None:
        """Delete all files of a job, shards aside."""
        for folder in (self.token_store(job_id), self.ledger(job_id), self.answers(job_id)):
            shutil.rmtree(folder, ignore_errors=True)
        for path in (self.document_names(job_id), self.failures / f"{job_id}.jsonl", *self.outputs.glob(f"{job_id}.*")):
            path.unlink(missing_ok=True)

    def drop_token_store(self, extraction_id: str) -> None:
        """Delete the tokens of an extraction that has ended, and its ledger: what it published is counted."""
        for folder in (self.token_store(extraction_id), self.ledger(extraction_id)):
            shutil.rmtree(folder, ignore_errors=True)

    def sweep(self, keep: set[str], jobs: set[str]) -> None:
        """Delete what crashes left. Call before any work starts.

        Args:
            keep: Jobs whose token stores, ledgers and answers stay.
            jobs: All that there are; their lists and outputs stay.
        """
        for path in (*self.failures.iterdir(), *self.documents.iterdir(), *self.outputs.iterdir()):
            if path.name.partition(".")[0] not in jobs or path.suffix == ".part":
                path.unlink()
        for folder in (*self.extractions.iterdir(), *self.ledgers.iterdir(), *self.generations.iterdir()):
            if folder.name not in keep:
                shutil.rmtree(folder)
