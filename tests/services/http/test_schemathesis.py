"""The OpenAPI document against the service, by somebody else's judgement: schemathesis, with a key."""

import copy
from dataclasses import replace

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.core.failures import FailureGroup
from schemathesis.generation.modes import GenerationMode

from logitcask_services.service import Service
from logitcask_services.settings import ServiceSettings
from tests.support.services.fake_generator import FakeGenerator
from tests.support.services.fake_teacher import fake_teacher
from tests.support.services.service_harness import RunningServer, wait_for

KEY = "a-key-for-schemathesis"
CORPUS = b'{"text": "hello", "question": "what?"}\n'
CONFIG = {
    "generation": {"allow-extra-parameters": False},  # unknown parameters of a query are left alone
    "checks": {
        # 501: what TRL's trainers may ask vLLM's server for, and this service does not do. No other 5xx.
        "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", 501]},
        # Rules between fields, of the teacher, or of recipes are in no schema: such requests are refused with a reason.
        "positive_data_acceptance": {"enabled": False},
        "negative_data_rejection": {
            "expected-statuses": [400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 428, 429, 431]
        },
    },
}


@schemathesis.serializer("application/jsonl")
def json_lines(_, value):
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    given = ServiceSettings(teacher=folder, cask_root=folder / "casks", disk_floor_bytes=0, api_key=KEY)
    running = RunningServer(Service(given, lambda role: replace(fake_teacher(), generator=FakeGenerator())), KEY)
    running.start()
    wait_for(lambda: running.client.get("/health/ready").status_code == 200)
    running.submit(running.upload(CORPUS))
    yield running
    running.stop()


def violations(server, description, mode):
    """What is wrong, by operation."""
    config = schemathesis.Config.from_dict(CONFIG)
    schema = schemathesis.openapi.from_dict(description, config=config)
    wrong: dict[str, str] = {}
    for operation in (result.ok() for result in schema.get_all_operations()):

        @settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy(generation_mode=mode))
        def ask(case):
            case.call_and_validate(
                base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=20, session=None
            )

        try:
            ask()
        except Unsatisfiable:  # nothing about the operation can be wrong
            assert mode is GenerationMode.NEGATIVE
        except FailureGroup as group:
            wrong[operation.label] = str(group)
    return wrong


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_nothing_is_violated(server, mode):
    """Each operation, with requests as it describes them and with such as it does not."""
    assert violations(server, server.client.get("/openapi.json").json(), mode) == {}


def test_a_violation_would_be_found(server):
    description = copy.deepcopy(server.client.get("/openapi.json").json())
    description["paths"] = {"/health": description["paths"]["/health"]}
    description["components"]["schemas"]["Health"]["required"] = ["what it never says"]
    (said,) = violations(server, description, GenerationMode.POSITIVE).values()
    assert "what it never says" in said
