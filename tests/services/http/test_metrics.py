"""`/metrics`: what a running service says, that labels are bounded, and that the dashboard asks for what there is."""

import json
import re
import threading
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.services.fake_teacher import HANGS, fake_teacher
from tests.support.services.service_harness import wait_for

DASHBOARD = Path(__file__).resolve().parents[3] / "deploy" / "grafana" / "logitcask.json"
OF_PROMETHEUS = frozenset({"job", "instance"})
"""Labels that Prometheus adds."""


def samples(server):
    """{name: [(labels, value)]} of what is told now."""
    told = {}
    for family in text_string_to_metric_families(server.client.get("/metrics").text):
        for sample in family.samples:
            told.setdefault(sample.name, []).append((sample.labels, sample.value))
    return told


def value(told, name, **labels):
    (found,) = [number for known, number in told[name] if labels.items() <= known.items()]
    return found


@pytest.fixture
def worked(serve, documents):
    """A server that has captured a corpus and refused this and that."""
    server = serve()
    job = server.submit(server.upload(documents))
    assert server.finish(job["id"])["status"] == "completed"
    server.client.get("/v1/corpora/nothing")
    server.client.post("/v1/corpora", content=b"")
    return server


def test_what_a_job_leaves_behind(worked, documents):
    tokens = sum(len(document["input_ids"]) for document in documents)
    wait_for(lambda: samples(worked)["logitcask_tokens_per_second"] == [({}, 0.0)])
    told = samples(worked)
    chunks = value(told, "logitcask_chunk_seconds_count")
    assert chunks == value(told, "logitcask_publish_seconds_count") > 1
    assert value(told, "logitcask_publish_seconds_sum") > 0
    assert value(told, "logitcask_feed_wait_seconds_total") >= 0
    assert value(told, "logitcask_tokens_captured_total") == tokens
    assert by_state(told) == {"queued": 0, "in_progress": 0, "paused": 0}
    assert {labels["state"]: number for labels, number in told["logitcask_teacher_state"] if number} == {"ready": 1.0}
    assert value(told, "logitcask_refusals_total", code="not_found") == 1
    assert value(told, "logitcask_refusals_total", code="empty_body") == 1
    assert value(told, "logitcask_upload_bytes_total", route="/v1/corpora") > tokens


def by_state(told):
    return {labels["state"]: tokens for labels, tokens in told["logitcask_queue_tokens"]}


def test_what_is_ahead_and_what_is_held(serve):
    """A held job is no backlog that the teacher works off, but its tokens do not vanish either."""
    server = serve(fake={"seconds_per_document": 1.0})
    corpus = server.upload([{"input_ids": [number] * 50} for number in range(3)])
    jobs = [server.submit(corpus, cask=f"c{number}") for number in range(4)]
    wait_for(lambda: by_state(samples(server)) == {"queued": 3 * 150, "in_progress": 150, "paused": 0})
    wait_for(lambda: value(samples(server), "logitcask_tokens_per_second") > 0)
    assert server.client.post(f"/v1/extractions/{jobs[3]['id']}/pause").status_code == 202
    assert by_state(samples(server)) == {"queued": 2 * 150, "in_progress": 150, "paused": 150}
    assert value(samples(server), "logitcask_extractions", status="paused") == 1
    assert value(samples(server), "logitcask_queue_paused") == 0
    server.client.post("/v1/pause")
    told = samples(server)
    assert value(told, "logitcask_queue_paused") == 1
    assert by_state(told)["paused"] == 150, "the queue is held, not the jobs in it"


def test_labels_are_bounded(worked):
    """Whatever clients write, one label stands for it."""
    before = {name: len(series) for name, series in samples(worked).items()}
    for number in range(50):
        worked.client.get(f"/nowhere/{number}")
        worked.client.post(f"/nowhere/{number}", content=b"x")
        worked.client.get(f"/v1/corpora/{number}?x={number}")
        worked.client.post("/v1/extractions", json={f"field{number}": number})
    after = samples(worked)
    grown = {name: len(series) - before.get(name, 0) for name, series in after.items()}
    assert max(grown.values()) < 60  # buckets of four routes, at most
    assert value(after, "logitcask_http_requests_total", route="unmatched", method="POST") == 50
    assert value(after, "logitcask_refusals_total", code="not_found") == 151


def engine_state(server):
    """What the engine is at; the other states are told as 0."""
    states = {labels["state"]: number for labels, number in samples(server)["logitcask_engine_state"]}
    assert sorted(states.values()) == [0.0, 0.0, 0.0, 1.0]
    return next(state for state, number in states.items() if number)


def test_what_the_engine_is_at(serve, tmp_path):
    hang_file = tmp_path / "hang"
    hang_file.touch()
    may_load = threading.Event()

    def load():
        may_load.wait(60)
        return fake_teacher(hang_file=hang_file, in_flight=1)

    server = serve(load=load, engine_hang_seconds=1000.0)
    wait_for(lambda: engine_state(server) == "loading")
    may_load.set()
    wait_for(lambda: engine_state(server) == "idle")
    server.submit(server.upload([{"input_ids": [5, HANGS, 7]}]))
    wait_for(lambda: engine_state(server) == "working")
    hang_file.unlink()
    wait_for(lambda: engine_state(server) == "idle")
    server.service.teacher.close()
    assert engine_state(server) == "absent"


def test_the_engines_own_are_not_told_unless_it_keeps_them(serve):
    """What is told where it does is tested beside the engine's process."""
    server = serve()
    wait_for(lambda: value(samples(server), "logitcask_teacher_state", state="ready") == 1)
    assert "vllm:" not in server.client.get("/metrics").text


def queries():
    """Every query of the dashboard."""
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
    (job,) = [variable["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    yield pytest.param(job, id="variable job")


FUNCTIONS = frozenset({"max", "rate", "sum", "by", "histogram_quantile", "label_values"})


def unknown(expression, told):
    """Metrics, labels and label values of a query that are none of ours."""
    wrong = []
    names = re.findall(r"[a-z_]+(?=\{|,|\[)", re.sub(r"\{[^}]*\}", "{", re.sub(r"by \([^)]*\)", "", expression)))
    names = [name for name in names if name not in FUNCTIONS]
    assert names, expression
    wrong += [name for name in names if name not in told]
    labels = {label for name in names for known, _ in told.get(name, []) for label in known}
    used = re.findall(r'(\w+)(?:=~?)"', expression) + re.findall(
        r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", expression))
    )
    wrong += [label for label in used if label not in labels | OF_PROMETHEUS]
    for label, values in re.findall(r'(\w+)=~"([^"]+)"', expression):
        known = {series[label] for name in names for series, _ in told.get(name, []) if label in series}
        wrong += sorted(set(values.split("|")) - known)
    return wrong


def test_the_dashboard_asks_for_what_there_is(worked, subtests):
    server_told = samples(worked)
    # Counters with labels have no series before something happens.
    server_told.setdefault("logitcask_scoring_refusals_total", [({"code": "x"}, 0.0)])
    server_told.setdefault("logitcask_connections_let_go_total", [({"reason": "x"}, 0.0)])
    asked = list(queries())
    assert len(asked) > 20
    for query in asked:
        with subtests.test(query.id):
            assert unknown(query.values[0], server_told) == []


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ('logitcask_no_such{job="$job"}', ["logitcask_no_such"]),
        ('sum by (nothing) (rate(logitcask_refusals_total{job="$job"}[5m]))', ["nothing"]),
        ('logitcask_extractions{job="$job",status=~"queued|lost"}', ["lost"]),
        ('histogram_quantile(0.5, rate(logitcask_chunk_seconds{job="$job"}[5m]))', ["logitcask_chunk_seconds"]),
    ],
)
def test_a_query_for_what_is_not_there_would_be_found(worked, query, wrong):
    assert unknown(query, samples(worked)) == wrong


def test_panels_have_names_and_places():
    dashboard = json.loads(DASHBOARD.read_text())
    titles = [panel["title"] for panel in dashboard["panels"]]
    assert len(set(titles)) == len(titles)
    cells = [
        (x, y)
        for panel in dashboard["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
