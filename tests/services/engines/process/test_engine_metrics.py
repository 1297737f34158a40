"""Metrics that an engine keeps of itself: told by the service while it is loaded, and bounded."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.engines import metrics
from logitcask_services.engines.engine import CaptureTask
from logitcask_services.engines.metrics import (
    LEFT_OUT,
    by_role,
    joined,
    metrics_document,
    metrics_of_process,
    read_metrics,
)
from logitcask_services.jobs.loaded_teacher import Teacher
from tests.support.services.engine_fleets import fleet_teacher
from tests.support.services.fake_teacher import FakeTokenizer
from tests.support.services.process_engines import fake_engine
from tests.support.services.service_harness import wait_for


@pytest.fixture
def registry(monkeypatch):
    """Instead of this process's own."""
    made = CollectorRegistry()
    monkeypatch.setattr(metrics, "REGISTRY", made)
    return made


def series(text):
    """{name: {labels: value}} of the text format."""
    told = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values = told.setdefault(sample.name, {})
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in values, f"{sample.name} {labels} stands there twice"
            values[labels] = sample.value
    return told


class Told:
    """What a scrape would get of these families."""

    def __init__(self, families):
        self._families = list(families)

    def collect(self):
        return self._families

    def series(self):
        return series(generate_latest(self).decode())


def test_what_is_read_comes_whole_and_under_its_own_names_alone(registry):
    Counter("vllm:prompt_tokens", "Tokens read", ["model_name"], registry=registry).labels("tiny").inc(7)
    Histogram("vllm:seconds", "Time", ["model_name"], buckets=(1.0, 2.0), registry=registry).labels("tiny").observe(1.5)
    Counter("python_things", "Not the engine's", registry=registry).inc()
    kept = read_metrics(metrics_document(metrics_of_process("vllm:")))
    told = Told(by_role([("capture", kept)])).series()
    of = (("model_name", "tiny"), ("role", "capture"))
    assert told == {
        "vllm:prompt_tokens_total": {of: 7.0},
        "vllm:seconds_bucket": {
            (("le", "1.0"), *of): 0.0,
            (("le", "2.0"), *of): 1.0,
            (("le", "+Inf"), *of): 1.0,
        },
        "vllm:seconds_count": {of: 1.0},
        "vllm:seconds_sum": {of: 1.5},
        LEFT_OUT: {(("role", "capture"),): 0.0},
    }


def test_two_engines_have_series_of_their_own(registry):
    Counter("vllm:steps", "Steps", registry=registry).inc(3)
    kept = metrics_of_process("vllm:")
    text = generate_latest(Told(by_role([("capture", kept), ("generate", kept)]))).decode()
    assert text.count("# TYPE vllm:steps_total counter") == 1
    assert series(text)["vllm:steps_total"] == {(("role", role),): 3.0 for role in ("capture", "generate")}


def test_engines_of_a_fleet_are_told_apart(registry):
    Counter("vllm:steps", "Steps", registry=registry).inc(3)
    kept = replace(metrics_of_process("vllm:"), left_out=2)
    told = Told(by_role([("capture", joined("engine", [("0", kept), ("1", kept)]))])).series()
    assert told["vllm:steps_total"] == {(("engine", place), ("role", "capture")): 3.0 for place in "01"}
    assert told[LEFT_OUT] == {(("role", "capture"),): 4.0}


def test_there_is_a_bound(registry):
    """A family that does not fit is left out whole and counted; those that fit are told."""
    many = Counter("vllm:many", "By request" * 1000, ["request"], registry=registry)
    for number in range(metrics.MOST_SERIES + 1):
        many.labels(f"{number}-" + "x" * 1000)
    few = Counter("vllm:few", "By request" * 1000, ["request"], registry=registry)
    for number in range(10):
        few.labels(f"{number}-" + "x" * 10_000)
    kept = metrics_of_process("vllm:")
    assert [family.name for family in kept.families] == ["vllm:few"]
    assert kept.left_out == metrics.MOST_SERIES + 1
    text = generate_latest(Told(by_role([("capture", kept)]))).decode()
    assert len(text) < 10_000
    assert series(text)[LEFT_OUT] == {(("role", "capture"),): metrics.MOST_SERIES + 1}


def test_nothing_is_told_of_nothing():
    assert list(by_role([])) == []
    assert list(Teacher(tokenizer=FakeTokenizer()).metrics()) == []


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"families": [["vllm:x", "words", "no_such_type", []]], "left_out": 0},
        {"families": [["vllm:x", "words", "gauge", [["vllm:x", [], 1.0]]]], "left_out": 0},
        {"families": 7, "left_out": 0},
    ],
)
def test_what_is_no_list_of_metrics_is_refused(document):
    with pytest.raises((LookupError, TypeError, ValueError, AttributeError)):
        read_metrics(document)


def test_an_engine_without_any_tells_none():
    engine = fake_engine()
    try:
        task = CaptureTask(key=0, token_ids_L=np.arange(5, dtype="u2"))
        assert [result.error for result in engine.capture([task], CaptureSpec())] == [None]
        assert engine.metrics is None
    finally:
        engine.close()


STEPS, BIG = "vllm:num_documents_total", "vllm:of_requests_total"


@pytest.fixture
def measured(serve, tmp_path):
    """A server whose engine keeps metrics, which come ten times a second, and its engines' ids."""
    pids, faults = [], tmp_path / "faults"
    faults.write_text("hung")

    def start(**document):
        def load():
            engine = fake_engine("load_measured", **document)
            pids.append(engine.pid)
            return Teacher(engine=engine, tokenizer=FakeTokenizer())

        server = serve(load=load, engine_hang_seconds=2.5, engine_backoff_seconds=1.0)
        return server, pids

    return start


def told_by(server):
    return series(server.client.get("/metrics").text)


def test_the_service_tells_them_while_the_engine_is_loaded(measured, documents):
    server, pids = measured()
    of = (("model_name", "fake"), ("role", "capture"))
    wait_for(lambda: told_by(server).get(STEPS) == {of: 0.0})
    assert server.finish(server.submit(server.upload(documents))["id"])["status"] == "completed"
    wait_for(lambda: told_by(server)[STEPS] == {of: 40.0})
    os.kill(pids[0], signal.SIGKILL)
    wait_for(lambda: not any(name.startswith("vllm:") for name in told_by(server)))
    wait_for(lambda: told_by(server).get(STEPS) == {of: 0.0})
    assert len(pids) == 2, "those of the next one begin anew"
    server.service.teacher.close()
    assert not any(name.startswith("vllm:") or name == LEFT_OUT for name in told_by(server))


def test_each_engine_of_a_fleet_tells_its_own(serve, documents):
    server = serve(load=lambda: fleet_teacher(lambda place: fake_engine("load_measured"), 2))
    assert server.finish(server.submit(server.upload(documents))["id"])["status"] == "completed"
    wait_for(lambda: sum(told_by(server).get(STEPS, {}).values()) == 40.0)
    engines = {dict(labels)["engine"] for labels in told_by(server)[STEPS]}
    assert engines == {"0", "1"}


def test_an_engine_with_too_many_does_not_swell_the_service(measured):
    server, _ = measured(requests=metrics.MOST_SERIES + 1)
    wait_for(lambda: STEPS in told_by(server))
    told = told_by(server)
    assert BIG not in told
    assert told[LEFT_OUT] == {(("role", "capture"),): metrics.MOST_SERIES + 1}


def test_metrics_are_no_sign_that_a_step_was_made(measured, tmp_path, documents):
    """They come from another thread of the process: a step that does not return is noticed all the same."""
    server, pids = measured(faults=str(tmp_path / "faults"), after=10)
    done = server.finish(server.submit(server.upload(documents))["id"], 120)
    assert (done["status"], done["documents"]["captured"]) == ("completed", 40)
    assert (server.service.teacher.deaths, len(pids)) == (1, 2)


def test_a_scrape_does_not_wait_for_the_engine(measured):
    """It tells what the process sent last; one that stands still is asked nothing."""
    server, pids = measured()
    wait_for(lambda: STEPS in told_by(server))
    os.kill(pids[0], signal.SIGSTOP)
    assert STEPS in told_by(server)
    os.kill(pids[0], signal.SIGCONT)
