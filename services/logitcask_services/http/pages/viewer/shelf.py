"""Which casks a viewer shows, and the tokenizer that reads them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.cask.storage.object_store import is_url
from logitcask_schemas.cli.cask import cask_at, casks_in, open_place
from logitcask_schemas.errors import CaskNotFoundError, IdentityMismatchError
from logitcask_schemas.record.identity import tokenizer_fingerprint
from logitcask_services.http.pages.viewer.texts import TokenTexts


class ShelvedCask(BaseModel):
    """A cask in the list."""

    name: str
    teacher: str | None = None
    """None, like the figures, where the cask cannot be opened."""
    documents: int | None = None
    tokens: int | None = None
    bytes: int | None = None
    error: str | None = None
    """Why it cannot be opened."""


class Shelf(Protocol):
    """Casks by name."""

    def casks(self) -> list[ShelvedCask]:
        """All of them, by name."""
        ...

    def open(self, name: str) -> Cask:
        """One of them. Raises CaskNotFoundError where the shelf has none of this name, and what `Cask.open` raises."""
        ...

    def texts(self, cask: Cask) -> TokenTexts | None:
        """What reads the cask's tokens; None where no tokenizer is at hand, or another one than the cask needs."""
        ...


def shelved(name: str, cask: Cask) -> ShelvedCask:
    """A cask that can be opened, as the list shows it."""
    return ShelvedCask(
        name=name,
        teacher=cask.manifest.teacher.model,
        documents=len(cask),
        tokens=cask.num_tokens,
        bytes=cask.num_bytes,
    )


def texts_of(tokenizer: Any) -> TokenTexts:
    """Texts of a tokenizer of transformers."""

    def decode(token_ids: Sequence[int]) -> str:
        text: str = tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    return TokenTexts(decode, tokenizer("a", add_special_tokens=False)["input_ids"])


class FolderShelf:
    """Casks at places that somebody named: folders, URLs, or folders that hold casks.

    Args:
        places: In the order given.
        tokenizer: Of transformers, for their texts; None shows ids.

    Raises:
        CaskNotFoundError: A place is no cask and holds none, or two casks have the same name.
        IdentityMismatchError: The tokenizer is not that of any of the casks.
    """

    def __init__(self, places: Sequence[str], tokenizer: Any = None) -> None:
        self._places: dict[str, str] = {}
        for place in places:
            for name, where in _casks_at(place):
                if name in self._places:
                    raise CaskNotFoundError(
                        f"{where} and {self._places[name]} are both called {name!r}; name casks with different names"
                    )
                self._places[name] = where
        self._texts = None if tokenizer is None else texts_of(tokenizer)
        self._fingerprint = None if tokenizer is None else tokenizer_fingerprint(tokenizer)
        # Of a cask in a store; opening it anew would ask the store again for every page.
        self._remote: dict[str, Cask] = {}
        if tokenizer is not None:
            self._require_reader()

    def _require_reader(self) -> None:
        needed = {
            self.open(row.name).manifest.teacher.tokenizer_fingerprint for row in self.casks() if row.error is None
        }
        if needed and self._fingerprint not in needed:
            raise IdentityMismatchError(
                f"the tokenizer has fingerprint {self._fingerprint}; these casks need {', '.join(sorted(needed))}"
            )

    def casks(self) -> list[ShelvedCask]:
        """All of them, by name."""
        rows = []
        for name in sorted(self._places):
            try:
                rows.append(shelved(name, self.open(name)))
            except CaskNotFoundError as error:
                rows.append(ShelvedCask(name=name, error=str(error)))
        return rows

    def open(self, name: str) -> Cask:
        """One of them."""
        if (place := self._places.get(name)) is None:
            raise CaskNotFoundError(f"there is no cask {name!r} here")
        if not is_url(place):
            return open_place(place)
        if name not in self._remote:
            self._remote[name] = open_place(place)
        return self._remote[name]

    def texts(self, cask: Cask) -> TokenTexts | None:
        """The tokenizer's, where the cask is of it."""
        return self._texts if cask.manifest.teacher.tokenizer_fingerprint == self._fingerprint else None


def _casks_at(place: str) -> list[tuple[str, str]]:
    """Name and place of the cask that a place is, or of those right below it."""
    if cask_at(place) is not None:
        name = place.rstrip("/").rpartition("/")[2] if is_url(place) else Path(place).resolve().name
        return [(name, place)]
    names = [str(row["name"]) for row in casks_in(place)]
    if not names:
        raise CaskNotFoundError(f"{place} is no cask and holds none; a cask is a folder with a cask.json")
    return [(name, f"{place.rstrip('/')}/{name}") for name in names]
