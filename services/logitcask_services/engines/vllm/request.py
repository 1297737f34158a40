"""How a capture request travels through vLLM: in `PoolingParams.extra_kwargs`, from the service to the pooler.

Imports neither vLLM nor torch, so both ends and the tests share it.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.extent import IdArray, document_id, spread

TASK: Final = "token_classify"
"""vLLM's pooling task for one output per token; the capturing pooler supports no other."""
_SPEC, _DOC_KEY, _SHIFT, _RECORDED = "logitcask_spec", "logitcask_doc_key", "logitcask_shift", "logitcask_recorded"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureRequest:
    """What the pooler is told of one document."""

    spec_json: str
    doc_key: int
    shift: int = 0
    """Position i of the document is position i + shift of the request's tokens."""
    recorded_R2: NDArray[np.int64] | None = None
    """Ranges [start, stop) of the positions to record; None: all."""

    def positions(self, start: int, stop: int, num_tokens: int) -> NDArray[np.int64]:
        """The document's positions to record among the rows [start, stop) of a request of so many tokens, [P].

        The last token has no next one, so its row is none of them.
        """
        first, last = max(start - self.shift, 0), min(stop, num_tokens - 1) - self.shift
        if self.recorded_R2 is None:
            return np.arange(first, max(last, first), dtype=np.int64)
        ranges_R2 = np.clip(self.recorded_R2, first, max(last, first))
        return spread(ranges_R2)


def document_key(token_ids_L: IdArray) -> int:
    """Key of a document for the generator: the first 8 bytes of its id, little-endian, as two's complement."""
    return int.from_bytes(document_id(token_ids_L)[:8], "little", signed=True)


def request_kwargs(request: CaptureRequest) -> dict[str, Any]:
    """The `extra_kwargs` of one document's request."""
    recorded = None if request.recorded_R2 is None else request.recorded_R2.tolist()
    return {_SPEC: request.spec_json, _DOC_KEY: request.doc_key, _SHIFT: request.shift, _RECORDED: recorded}


def read_request(extra_kwargs: dict[str, Any] | None) -> CaptureRequest:
    """The request of a document; defaults for vLLM's own warm-up requests, which carry none."""
    if extra_kwargs is None:
        return CaptureRequest(spec_json=CaptureSpec().model_dump_json(), doc_key=0)
    recorded = extra_kwargs[_RECORDED]
    return CaptureRequest(
        spec_json=extra_kwargs[_SPEC],
        doc_key=extra_kwargs[_DOC_KEY],
        shift=extra_kwargs[_SHIFT],
        recorded_R2=None if recorded is None else np.array(recorded, dtype=np.int64).reshape(-1, 2),
    )


@lru_cache(maxsize=64)
def parse_spec(spec_json: str) -> CaptureSpec:
    """The spec of a request, parsed once for all requests that share it."""
    return CaptureSpec.model_validate_json(spec_json)
