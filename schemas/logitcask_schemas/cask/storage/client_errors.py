"""What the clients of object stores raise, and what it says of a put that was to happen under a condition."""

import sys
from typing import Any, Final

_CLIENT_ERRORS: Final = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"),
    ("httpx2", "HTTPError"),
    ("huggingface_hub.errors", "HFValidationError"),
    ("huggingface_hub.errors", "HfUriError"),
    ("httpx", "HTTPError"),
)
"""What the clients of stores raise beside OSError, by the module that defines it."""

_CONDITION_FAILED: Final = 412
_CONFLICT: Final = 409
_NOT_IMPLEMENTED: Final = 501


def client_errors() -> tuple[type[BaseException], ...]:
    """What clients raise; only those that are loaded can have."""
    errors: list[type[BaseException]] = [OSError]
    for module, name in _CLIENT_ERRORS:
        if module in sys.modules:
            errors.append(getattr(sys.modules[module], name, OSError))
    return tuple(errors)


def condition_failed(error: OSError) -> bool:
    """Whether a put was refused because of what the object is: it exists (`If-None-Match`), or has another tag."""
    return isinstance(error, FileExistsError) or _status(error) == _CONDITION_FAILED


def conflicted(error: OSError) -> bool:
    """Whether another put of the same object was under way, so that the store asks to try again."""
    return _status(error) == _CONFLICT


def not_implemented(error: OSError) -> bool:
    """Whether the store says that it does not know the condition."""
    return _status(error) == _NOT_IMPLEMENTED


def no_bucket(error: OSError) -> bool:
    """Whether what is missing is the bucket."""
    return bool(_response(error).get("Error", {}).get("Code") == "NoSuchBucket")


def _status(error: OSError) -> int | None:
    """The HTTP status of the store's answer."""
    status: int | None = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status


def _response(error: OSError) -> dict[str, Any]:
    """The store's answer, which the client of S3 keeps in the cause of its error."""
    response: Any = getattr(error.__cause__, "response", None)
    return response if isinstance(response, dict) else {}
