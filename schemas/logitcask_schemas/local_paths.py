"""Paths of this machine that work can be kept under, told from those that only look like one.

A path keeps one slash of two: `Path("s3://bucket/run")` is the folder `run` in `bucket` in `s3:`, right here, which
goes with a machine that is only lent. So what is to lie on this machine is looked at before anything is made of it.
"""

import os
import re
from pathlib import Path
from typing import Final

from logitcask_schemas.errors import OptionError

_START: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")
"""Of an address, with one slash or two; the letter of a drive is shorter."""


def url_in(place: Path | str) -> str | None:
    """The address that a place is, even as a path, which keeps one slash of two; None where it is none."""
    text = str(place)
    if (start := _START.match(text)) is None:
        return None
    return f"{start[1]}://{text[start.end() :]}".rstrip("/")


def local_path(place: Path | str, option: str = "", *, instead: str = "Name one, and copy from there") -> Path:
    """A path of this machine; OptionError, with what to do instead, where it is the address of an object store.

    Args:
        place: What was given.
        option: Who gave it, for the message.
        instead: A sentence without its stop.
    """
    if (url := url_in(place)) is not None:
        where = f"{option}: " if option else ""
        raise OptionError(f"{where}expected a folder of this machine, got {url}. {instead}")
    return Path(place)


def local_folder(place: Path | str) -> Path:
    """The folder of this machine that an argument names; OptionError where it is a URL."""
    return local_path(place, instead="Name one; `logitcask cask import` brings casks to it")


def new_folder(place: Path | str, option: str = "") -> Path:
    """A folder that may be made, where a URL would do as well; OptionError where it is one that lost a slash."""
    return local_path(place, option, instead="Write it so, as a text, or give the whole path of a folder")


def not_utf8(place: Path | str) -> str | None:
    """A path as it can be printed, where it is no UTF-8: no tokenizer is saved there, and JSON does not hold it.

    None of every other path. Python keeps bytes that are no UTF-8 as lone surrogates (PEP 383).
    """
    text = str(place)
    if not any("\ud800" <= letter <= "\udfff" for letter in text):
        return None
    return os.fsencode(text).decode(errors="backslashreplace")
