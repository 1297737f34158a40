"""Requests to score, and the records that must come back."""

from collections.abc import Sequence
from typing import Any

import httpx2
import numpy as np

from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.extent import Extent
from logitcask_schemas.record.records import DocumentRecords
from tests.support.services.fake_teacher import records_of
from tests.support.services.service_harness import RunningServer, wait_for


def ready(server: RunningServer) -> RunningServer:
    """The server, once its teacher is loaded."""
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    return server


def score(server: RunningServer, *sequences: Sequence[int], **fields: Any) -> httpx2.Response:
    """The answer to one request to score."""
    return server.client.post("/v1/score", json={"input_ids": list(sequences), **fields})


def code_of(answer: httpx2.Response) -> tuple[int, str]:
    """Status and code of a refusal."""
    return answer.status_code, answer.json()["error"]["code"]


def expected(ids: Sequence[int], spec: CaptureSpec | None = None, extent: Extent | None = None) -> DocumentRecords:
    """What the fake teacher says of a sequence."""
    return records_of(np.array(ids), spec or CaptureSpec(), extent or Extent())


def equal(found: DocumentRecords, wanted: DocumentRecords) -> None:
    """Assert that two documents have the same records."""
    assert found.id == wanted.id
    for name in ("head_counts_P", "head_ids_H", "head_logprobs_H", "tail_counts_P", "tail_ids_N"):
        np.testing.assert_array_equal(getattr(found.records, name), getattr(wanted.records, name))
    assert found.records.position_columns.keys() == wanted.records.position_columns.keys()
    for name, column in wanted.records.position_columns.items():
        np.testing.assert_array_equal(found.records.position_columns[name], column)
