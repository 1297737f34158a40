"""The service's interface as types: what needs no client library, and names that must agree with others'."""

import hashlib
import sys
from typing import get_args

import pytest

from logitcask_schemas.api.generation import GenerationRequest
from logitcask_schemas.api.objects import FINAL, STATUSES
from logitcask_schemas.api.requests import CarrierName, ExtractionRequest, is_cask_name, stored_request
from logitcask_schemas.cask.carriers.registry import CARRIERS
from logitcask_schemas.errors import MissingExtraError
from logitcask_schemas.record.capture_spec import CaptureSpec


def test_every_carrier_can_be_asked_for():
    assert set(get_args(CarrierName)) == set(CARRIERS)


def test_final_states_are_states():
    assert set(STATUSES) > FINAL


def test_the_client_names_the_extra_that_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx2", None)
    monkeypatch.delitem(sys.modules, "logitcask_schemas.api.connection", raising=False)
    monkeypatch.delitem(sys.modules, "logitcask_schemas.api.client", raising=False)
    with pytest.raises(MissingExtraError, match=r"needs the module 'httpx2'.*\.\[service\]"):
        import logitcask_schemas.api.client  # noqa: F401


def test_the_fingerprint_of_a_request_never_changes():
    """Keys that callers used with an older version must still find what they made."""
    # The spec that was the default then.
    spec = CaptureSpec(tau=0.05)
    request = ExtractionRequest(corpus_id="corpus-000000000000000000000001", cask="docs", capture=spec)
    fingerprint = hashlib.sha256(request.canonical()).hexdigest()
    assert fingerprint == "c29d561c23a714a2441791bf0e07e5263e4ea1daebc08175f6eb997260224673"


def test_the_fingerprint_of_a_generation_never_changes():
    """It was made before requests could name a teacher; one that is named counts."""
    chained = {"cask": "docs", "capture": {"tau": 0.05}}
    fields = {"corpus_id": "corpus-000000000000000000000001", "recipe": "seqkd", "extraction": chained}
    plain = GenerationRequest.model_validate(fields).canonical()
    assert hashlib.sha256(plain).hexdigest() == "0610d83a876ff13c9e9d8a1f9463fee930cdc4b059bbc2bb17461a9368317c7b"
    named = [
        GenerationRequest.model_validate({**fields, "teacher": "large"}).canonical(),
        GenerationRequest.model_validate({**fields, "extraction": {**chained, "teacher": "large"}}).canonical(),
    ]
    assert len({plain, *named}) == 3


def test_a_stored_request_is_read_under_the_limits_of_its_version():
    request = ExtractionRequest(corpus_id="c", cask="docs", capture=CaptureSpec(mode="topk", k=3), metadata={"a": "b"})
    fields = request.model_dump(mode="json")
    assert (fields["kind"], stored_request(fields)) == ("capture", request)
    fields["capture"]["tau"] = 1e-9
    assert stored_request(fields).capture.tau == 1e-9
    with pytest.raises(ValueError, match="tau"):
        ExtractionRequest.model_validate(fields)


@pytest.mark.parametrize("name", ["docs", "a.b-c_1", "0", "a" * 128])
def test_names_of_casks(name):
    assert is_cask_name(name)


@pytest.mark.parametrize("name", ["", "../x", ".a", "a b", "a" * 129])
def test_what_names_no_cask(name):
    assert not is_cask_name(name)
