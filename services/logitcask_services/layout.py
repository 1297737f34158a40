"""Where the service keeps what: casks by name, corpora by content, token stores by extraction."""

import re
import shutil
from pathlib import Path

from logitcask_schemas.errors import LogitcaskError

CASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class CaskNameError(LogitcaskError, ValueError):
    """A cask's name could leave the cask root."""


class ServiceFolders:
    """The folders of one service, made where absent."""

    def __init__(self, cask_root: Path, state: Path) -> None:
        self.cask_root = cask_root
        self.state = state
        self.corpora = state / "corpora"
        self.extractions = state / "extractions"
        for folder in (cask_root, self.corpora, self.extractions):
            folder.mkdir(parents=True, exist_ok=True)

    def cask(self, name: str) -> Path:
        """The folder of a cask, inside the cask root whatever the name. Raises CaskNameError."""
        if CASK_NAME.fullmatch(name) is None:
            raise CaskNameError(
                f"{name[:140]!r} cannot name a cask; expected 1 to 128 letters, digits, dots, hyphens or underscores, "
                "the first a letter or digit"
            )
        path = self.cask_root / name
        if path.resolve().parent != self.cask_root.resolve():
            raise CaskNameError(f"the cask {name!r} is a link that leads out of the cask root; remove the link")
        return path

    def token_store(self, extraction_id: str) -> Path:
        """The folder of an extraction's tokens."""
        return self.extractions / extraction_id

    def drop_token_store(self, extraction_id: str) -> None:
        """Delete the tokens of an extraction that has ended."""
        shutil.rmtree(self.token_store(extraction_id), ignore_errors=True)

    def sweep(self, keep: set[str]) -> None:
        """Delete token stores except those of the extractions to keep. Call before any preparation starts."""
        for folder in self.extractions.iterdir():
            if folder.name not in keep:
                shutil.rmtree(folder)
