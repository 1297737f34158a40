"""How a capture request travels through vLLM: in `PoolingParams.extra_kwargs`, from the service to the pooler.

Imports neither vLLM nor torch, so both ends and the tests share it.
"""

from functools import lru_cache
from typing import Any, Final

from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.extent import IdArray, document_id

TASK: Final = "token_classify"
"""vLLM's pooling task for one output per token; the capturing pooler supports no other."""
_SPEC, _DOC_KEY = "logitcask_spec", "logitcask_doc_key"


def document_key(token_ids_L: IdArray) -> int:
    """Key of a document for the generator: the first 8 bytes of its id, little-endian, as two's complement."""
    return int.from_bytes(document_id(token_ids_L)[:8], "little", signed=True)


def request_kwargs(spec_json: str, doc_key: int) -> dict[str, Any]:
    """The `extra_kwargs` of one document's request."""
    return {_SPEC: spec_json, _DOC_KEY: doc_key}


def read_request(extra_kwargs: dict[str, Any] | None) -> tuple[str, int]:
    """Spec (JSON) and document key of a request; defaults for vLLM's own warm-up requests, which carry none."""
    if extra_kwargs is None:
        return CaptureSpec().model_dump_json(), 0
    return extra_kwargs[_SPEC], extra_kwargs[_DOC_KEY]


@lru_cache(maxsize=64)
def parse_spec(spec_json: str) -> CaptureSpec:
    """The spec of a request, parsed once for all requests that share it."""
    return CaptureSpec.model_validate_json(spec_json)
