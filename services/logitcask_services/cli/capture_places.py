"""Where a capture without a service puts its cask, tokens and errors file; whether they can lie there; the errors."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from logitcask_schemas.errors import OptionError
from logitcask_schemas.local_paths import local_path, new_folder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from logitcask_schemas.api.objects import Failure


def place_of(cask: str, work: Path | None, errors: Path | None = None) -> tuple[Path | str, Path]:
    """Folder or URL of a cask, and the local path whose name those of the files beside it begin with.

    Raises OptionError where it is a URL, and nothing says where they go; or they are to go into a store.
    """
    from logitcask_schemas.cask.storage.object_store import is_url

    for option, path in (("--work", work), ("--errors", errors)):
        if path is not None:
            local_path(path, option)
    if not is_url(cask):
        folder = new_folder(cask, "--cask").absolute()
        return folder, folder
    if work is None:
        raise OptionError(
            f"--work: is needed, as --cask is {cask}: a local folder for the corpus's tokens, which all parts see, or "
            "one of each machine, which then makes them itself"
        )
    return cask.rstrip("/"), work.absolute()


def require_usable(place: Path | str, work: Path, errors: Path, corpus: Path, *, single_writer: bool) -> None:
    """Require that cask, tokens and errors file can be put where they shall lie, before a teacher is loaded.

    Raises FolderError, OptionError, CaskError or StoreError.
    """
    from logitcask_schemas.cask.publication import require_only_cask
    from logitcask_services.cask_places import CaskStore, holds_cask, make_writable

    try:
        if errors.is_dir():
            raise OptionError(f"--errors {errors}: is a folder; name a file")
        if errors.exists() and corpus.exists() and errors.samefile(corpus):
            raise OptionError(f"--errors {errors}: is the corpus, which it would replace; name another file")
    except OSError as error:  # its name is too long, or a file is in its way
        raise OptionError(f"--errors {errors}: cannot be used ({error.strerror}); name another file") from error
    for option, path in (("--work", work), ("--errors", errors)):
        if isinstance(place, Path) and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(place)):
            raise OptionError(f"{option} {path}: lies in the cask, which holds nothing else; name another place")
    make_writable(work, "--work")
    make_writable(errors.parent, "--errors")
    if isinstance(place, str):
        CaskStore(place, Path(), single_writer=single_writer).require_usable()
    elif place.exists() or place.is_symlink():
        make_writable(place, "--cask")
        if not holds_cask(place):
            require_only_cask(str(place), (child.name for child in place.iterdir()))
    else:
        make_writable(place.parent, "--cask")


def write_errors(path: Path, failures: "Iterable[Failure]") -> int:
    """Write an errors file, a failure a line, or remove that of an earlier run where there are none; how many.

    What is no file (/dev/null, a pipe) stays, and so does a link, such as /dev/stderr.
    """
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for failure in failures:
            file.write(f"{failure.model_dump_json()}\n")
            count += 1
    if not count and path.is_file() and not path.is_symlink():
        path.unlink()
    return count
