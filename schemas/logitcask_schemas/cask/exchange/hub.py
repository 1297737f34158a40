"""Casks on the Hugging Face Hub: how a place there is written, and what its refusals mean.

A cask is a data set of the Hub. The token comes from where the Hub's own tools look for it (HF_TOKEN, `hf auth login`);
it is never an argument.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

from logitcask_schemas.errors import CaskError, CaskNotFoundError, MissingExtraError, OptionError
from logitcask_schemas.terminal import installed_version

_PLACE: Final = re.compile(
    r"hf://(?:datasets/)?([A-Za-z0-9](?:[\w.-]*\w)?/[A-Za-z0-9](?:[\w.-]*\w)?)(?:@([\w./-]*[\w.-]))?/?", re.ASCII
)
_MAX_NAME: Final = 96
"""Letters of NAME, as the Hub's client has it."""
_TOKEN: Final = "set HF_TOKEN or run `hf auth login`"
DATASET: Final = "dataset"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubPlace:
    """A data set of the Hub, perhaps at one revision."""

    repository: str
    """OWNER/NAME."""
    revision: str | None = None
    """Branch, tag or commit; None for the main branch."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """The place that "hf://owner/name[@revision]" names; OptionError where it has another form."""
        match = _PLACE.fullmatch(text)
        if match is None:
            raise OptionError(
                "expected hf://OWNER/NAME, or hf://OWNER/NAME@REVISION, of a data set on the Hugging Face Hub; got "
                f"{text!r}"
                + (
                    ". Object stores are for `logitcask cask import` and `cask export`"
                    if "://" in text and not text.startswith(("hf://", "http://", "https://"))
                    else ""
                )
            )
        name = match[1]
        if len(name.partition("/")[2]) > _MAX_NAME or "--" in name or ".." in name or name.endswith(".git"):
            raise OptionError(
                f"{text!r}: the Hub has no name like {name!r}; NAME has up to {_MAX_NAME} letters, digits, '-', '_' "
                "and '.', without '--' and '..', and not '.git' at the end"
            )
        return cls(repository=name, revision=match[2])

    @property
    def url(self) -> str:
        """As fsspec takes it."""
        return f"hf://datasets/{self.repository}" + ("" if self.revision is None else f"@{self.revision}")


def hub_client(endpoint: str | None, *, quiet: bool = False) -> Any:
    """The Hub's client.

    Args:
        endpoint: Address of a Hub; None: what HF_ENDPOINT says.
        quiet: No bars of the client in this process from now on: a command shows its own.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ModuleNotFoundError as error:
        raise MissingExtraError("logitcask cask push or pull", "remote", "huggingface_hub") from error
    if quiet:
        disable_progress_bars()
    return HfApi(endpoint=endpoint, library_name="logitcask", library_version=installed_version())


@contextmanager
def hub_explained(place: HubPlace, client: Any, *, writes: bool = False) -> Iterator[None]:
    """Turn what the Hub and its client raise into errors that say what to do.

    Args:
        place: What is asked for.
        client: Of `hub_client`.
        writes: Whether something is written there.

    Raises:
        CaskNotFoundError: There is no such data set or revision, or the token may not see it.
        CaskError: The Hub refuses or does not answer.
    """
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]

    where = f"{place.url}: {'writing' if writes else 'reading'} it"
    again = "Check network and address (HF_ENDPOINT) and run it again: it goes on where it stopped"
    try:
        yield
    except CaskError:
        raise
    except GatedRepoError as error:
        raise CaskError(
            f"{where}: its owner decides who may read it. Ask for access on its page, and {_TOKEN}"
        ) from error
    except RevisionNotFoundError as error:
        raise CaskNotFoundError(f"{where}: there is no revision {place.revision or 'main'!r} of it") from error
    except RepositoryNotFoundError as error:
        if (kind := _other_kind(client, place.repository)) is not None:
            raise CaskError(f"{where}: {place.repository} is a {kind} of the Hub; a cask is a data set") from error
        raise CaskNotFoundError(
            f"{where}: there is no data set of this name that this token may see. Check the name; if it is private, "
            f"{_TOKEN}"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise CaskError(
                f"{where}: the Hub refuses this token ({status}). It needs the right to "
                f"{'write' if writes else 'read'} {place.repository}; {_TOKEN}. {error}"
            ) from error
        raise CaskError(f"{where}: the Hub answered {status}. {again}. {error}") from error
    except (OSError, RuntimeError, TransportError) as error:
        # RuntimeError is how the client wraps an upload that failed.
        raise CaskError(f"{where}: {error.__cause__ or error or type(error).__name__}. {again}") from error


def _other_kind(client: Any, repository: str) -> str | None:
    """What else of the Hub has this name, as far as one may see it."""
    from huggingface_hub.errors import HfHubHTTPError

    for kind in ("model", "space"):
        try:
            if client.repo_exists(repository, repo_type=kind):
                return kind
        except HfHubHTTPError:
            return None
    return None
