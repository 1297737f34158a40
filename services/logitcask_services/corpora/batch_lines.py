"""Lines in the shape of OpenAI's batches: {"custom_id", "method", "url", "body"}. A corpus may hold them."""

from typing import Any

from logitcask_services.corpora.line_problems import LineProblem, kind_of_value

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/extractions")
_ENVELOPE = ("method", "url", "body")


def is_batch_line(entry: dict[str, Any]) -> bool:
    """Whether an object is a request in an envelope."""
    return all(name in entry for name in _ENVELOPE)


def request_of(entry: dict[str, Any]) -> dict[str, Any]:
    """The request in an envelope, with the envelope's `custom_id`; other objects as they are. Raises LineProblem."""
    if not is_batch_line(entry):
        return entry
    method, url, body = (entry[name] for name in _ENVELOPE)
    if not isinstance(body, dict):
        raise LineProblem("wrong_type", f"`body` is a JSON {kind_of_value(body)}; expected an object: the request")
    if method != "POST" or url not in URLS:
        raise LineProblem(
            "unknown_url",
            f"the line asks for {str(method)[:8]} {str(url)[:64]}; expected POST and one of {', '.join(URLS)}",
        )
    return {**body, "custom_id": entry.get("custom_id")}
