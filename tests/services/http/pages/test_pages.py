"""Pages and their data over HTTP: what they show, that both agree, what they refuse, and that nothing is unescaped."""

import html
import json
import re
from contextlib import ExitStack

import pytest

from logitcask_services.http.pages import overview
from logitcask_services.http.pages.overview import overview_of
from logitcask_services.http.pages.viewer import rendering
from tests.services.http.pages.conftest import HOSTILE
from tests.support.services.service_harness import wait_for


def pages_of(server):
    """The path of every kind of page."""
    jobs = server.client.get("/v1/extractions").json()["data"]
    corpora = server.client.get("/v1/corpora").json()["data"]
    document = server.client.get("/ui/api/casks/stories/documents/0").json()
    return [
        "/",
        *(f"/ui/jobs/{job['id']}" for job in jobs),
        *(f"/ui/corpora/{corpus['id']}" for corpus in corpora),
        f"/ui/corpora/{corpora[0]['id']}?loss_on=assistant",
        "/ui/casks",
        "/ui/casks/stories",
        "/ui/casks/stories?q=story",
        "/ui/casks/stories/documents/0",
        "/ui/casks/chats/documents/1?measure=probability",
        f"/ui/compare?left=stories&right=again&id={document['id']}",
        "/ui/runs",
        "/ui/runs/student",
    ]


def test_no_page_lets_anything_foreign_run(shown):
    for path in pages_of(shown):
        answer = shown.client.get(path)
        assert answer.status_code == 200, path
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert "<script>" not in answer.text, path
        assert 'onerror="' not in answer.text, path
        assert "49" not in re.findall(r"&amp;(\w*)", answer.text), path  # a template in a text stays a text
        assert " style=" not in answer.text, path
        assert "https://" not in answer.text, path


def test_hostile_names_are_shown_as_they_are(shown):
    overview = shown.client.get("/").text
    assert html.escape(HOSTILE, quote=False).replace("'", "&#39;").replace('"', "&#34;") in overview


def test_the_overview_says_what_the_interface_says(shown):
    overview = shown.client.get("/ui/api/overview").json()
    assert overview["extractions"] == shown.client.get("/v1/extractions").json()["data"]
    assert overview["corpora"] == shown.client.get("/v1/corpora").json()["data"]
    assert overview["generations"] == []
    assert overview["teacher"] == {
        "state": "ready",
        "reason": overview["teacher"]["reason"],
        "model": "fake-teacher",
        "max_model_len": 512,
    }
    page = shown.client.get("/").text
    for job in overview["extractions"]:
        cell = re.search(rf'data-field="{job["id"]}.tokens">([^<]*)<', page)
        assert cell is not None
        assert cell[1] == f"{job['usage']['tokens_done']:,} of {job['usage']['tokens_total']:,}"


def test_events_bring_the_figures_of_the_page(shown):
    with shown.client.stream("GET", "/ui/api/overview/events") as stream:
        lines = iter(stream.iter_lines())
        data = next(line for line in lines if line.startswith("data: "))
    figures = json.loads(data.removeprefix("data: "))
    page = shown.client.get("/").text
    assert f'data-shape="{figures["shape"]}"' in page
    for name, text in figures["fields"].items():
        assert re.search(rf'data-field="{re.escape(name)}">{re.escape(html.escape(text))}<', page), name


def test_streams_have_places(serve):
    from logitcask_services.http.connections import ConnectionLimits

    server = serve(limits=ConnectionLimits(connections=3))
    with server.client.stream("GET", "/ui/api/overview/events") as stream:
        lines = stream.iter_lines()  # kept: a generator that nobody holds ends the stream
        assert next(lines) == "retry: 2000"
        with server.client.stream("GET", "/ui/api/overview/events") as refused:  # which must not be read to its end
            assert refused.status_code == 503


def test_a_job_has_its_own_figures(shown):
    job = next(each for each in shown.client.get("/v1/extractions").json()["data"] if each["cask"] == "stories")
    content = shown.client.get(f"/ui/api/jobs/{job['id']}").json()
    assert content["extraction"] == job
    manifest = shown.client.get(f"/v1/extractions/{job['id']}/manifest").json()
    assert [shard["name"] for shard in content["cask"]["shards"]] == [shard["name"] for shard in manifest["shards"]]
    assert sum(shard["bytes"] for shard in content["cask"]["shards"]) == job["usage"]["bytes_written"]
    assert content["pace"][-1]["tokens_done"] == job["usage"]["tokens_total"]
    page = shown.client.get(f"/ui/jobs/{job['id']}").text
    for row in content["cask"]["mass_at_k"]:
        assert f'data-v="{row["median"]}"' in page


def test_bad_lines_are_on_the_jobs_page(shown):
    job = next(each for each in shown.client.get("/v1/extractions").json()["data"] if each["cask"] == "chats")
    page = shown.client.get(f"/ui/jobs/{job['id']}").text
    assert "<h2>Errors</h2>" in page
    assert '<td class="n">13</td>' in page


def test_the_loss_mask_is_that_of_the_answers(shown):
    corpus = shown.client.get("/v1/corpora").json()["data"][0]
    rows = shown.client.get(f"/ui/api/corpora/{corpus['id']}/rows?loss_on=assistant").json()
    first = rows["documents"][0]
    trained = "".join(piece["text"] for piece in first["pieces"] if piece["trained"])
    assert trained == "in Paris, 0"
    assert first["recorded"] == first["answer_tokens"] == len("in Paris, 0")
    whole = shown.client.get(f"/ui/api/corpora/{corpus['id']}/rows").json()["documents"][0]
    assert whole["recorded"] == whole["tokens"] - 1
    assert whole["pieces"][0]["trained"] is False  # nothing predicts the first token


def test_lines_go_on_where_the_page_ends(shown):
    corpus = shown.client.get("/v1/corpora").json()["data"][0]
    first = shown.client.get(f"/ui/api/corpora/{corpus['id']}/rows").json()
    assert (len(first["documents"]), first["next_line"]) == (10, 11)
    path = f"/ui/api/corpora/{corpus['id']}/rows?start={first['next_start']}&line=11"
    second = shown.client.get(path).json()
    assert [document["line"] for document in second["documents"]] == [11, 12]
    assert [failure["line"] for failure in second["bad"]] == [13]
    assert second["next_start"] is None


def test_a_line_that_is_too_long_is_told_and_passed_over(serve):
    server = serve(max_line_bytes=200)
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    corpus = server.upload([{"text": "first"}, {"text": "x" * (3 << 20)}, {"text": "third"}])
    first = server.client.get(f"/ui/api/corpora/{corpus['id']}/rows").json()
    assert [document["line"] for document in first["documents"]] == [1, 3]
    assert [(failure["line"], failure["code"]) for failure in first["bad"]] == [(2, "line_too_long")]
    assert first["next_start"] is None


def test_watchers_share_a_look_at_the_database(shown, monkeypatch):
    looks = []

    def counted(service):
        looks.append(service)
        return overview_of(service)

    monkeypatch.setattr(overview, "overview_of", counted)
    watchers = []
    with ExitStack() as streams:
        for _ in range(8):
            stream = streams.enter_context(shown.client.stream("GET", "/ui/api/overview/events"))
            watchers.append(stream.iter_lines())  # kept: a generator that nobody holds ends the stream
            assert next(line for line in watchers[-1] if line.startswith("data: "))
    # Eight that come within a second or two; each by itself would look as often.
    assert len(looks) < 8


def test_documents_are_listed_in_pages_and_found(shown):
    content = shown.client.get("/ui/api/casks/stories/documents").json()
    assert (content["total"], len(content["documents"]), content["next"]) == (12, 12, None)
    assert [d["number"] for d in shown.client.get("/ui/api/casks/stories/documents?start=10").json()["documents"]] == [
        10,
        11,
    ]
    found = shown.client.get("/ui/api/casks/stories/documents", params={"q": "STORY 7"}).json()
    assert len(found["documents"]) == 1
    assert "story 7" in found["documents"][0]["text"]
    by_id = shown.client.get("/ui/api/casks/stories/documents", params={"q": found["documents"][0]["id"][:12]}).json()
    assert by_id["documents"][0]["number"] == found["documents"][0]["number"]
    assert shown.client.get("/ui/api/casks/stories/documents", params={"q": "nowhere"}).json()["documents"] == []


def test_search_stops_and_goes_on(shown, monkeypatch):
    from logitcask_services.http.pages.viewer import documents

    monkeypatch.setattr(documents, "SEARCHED_TOKENS", 1)
    first = shown.client.get("/ui/api/casks/stories/documents", params={"q": "nowhere"}).json()
    assert (first["documents"], first["searched"], first["next"]) == ([], 1, 1)
    last = shown.client.get("/ui/api/casks/stories/documents", params={"q": "nowhere", "start": 11}).json()
    assert last["next"] is None


def test_the_strip_shows_the_tokens_of_the_data(shown):
    content = shown.client.get("/ui/api/casks/stories/documents/2").json()
    page = shown.client.get("/ui/casks/stories/documents/2").text
    tokens = re.findall(r'role="option"[^>]*data-at="(\d+)" aria-label="([^"]*)">', page)
    assert [int(at) for at, _ in tokens] == [row["at"] for row in content["rows"]]
    for row, (_, label) in zip(content["rows"], tokens, strict=True):
        if row["entropy"] is not None:
            assert f"entropy {row['entropy']:,.2f}" in html.unescape(label)


NOT_THERE = [
    "/ui/casks/missing",
    "/ui/casks/..%2f..%2fetc",
    "/ui/casks/stories/documents/99",
    "/ui/casks/stories/documents/-1",
    "/ui/casks/stories/documents/9999999999999999999999",
    "/ui/casks/stories/documents/%D9%A3",
    "/ui/casks/stories/documents/0?start=100000",
    "/ui/compare?left=stories&right=missing&id=0",
    "/ui/compare",
    "/ui/jobs/missing",
    "/ui/corpora/missing",
    "/ui/runs/missing",
    "/ui/runs/..",
]
WRONG = [
    "/ui/casks/stories?start=x",
    "/ui/casks/stories?start=-1",
    "/ui/casks/stories/documents/0?start=1e3",
    "/ui/casks/stories/documents/0?count=0",
    "/ui/casks/stories/documents/0?count=99999999",
    "/ui/casks/stories/documents/0?measure=%3Cscript%3E",
]


@pytest.mark.parametrize("path", NOT_THERE)
def test_what_is_not_there_is_a_page_that_says_so(shown, path):
    answer = shown.client.get(path)
    assert answer.status_code == 404
    if path != "/ui/casks/..%2f..%2fetc" and path != "/ui/runs/..":  # no page of ours: the path has another shape
        assert "<h1>This cannot be shown</h1>" in answer.text


@pytest.mark.parametrize("path", WRONG)
def test_wrong_parameters_are_refused(shown, path):
    answer = shown.client.get(path)
    assert answer.status_code == 400
    assert "<script>" not in answer.text


def test_rows_begin_at_lines_only(shown):
    corpus = shown.client.get("/v1/corpora").json()["data"][0]
    for query in ("start=3", "start=99999999", "loss_on=nothing", "line=0"):
        answer = shown.client.get(f"/ui/api/corpora/{corpus['id']}/rows?{query}")
        assert answer.status_code == 400, query


@pytest.mark.parametrize(
    "path", ["/", "/ui/casks", "/ui/api/overview", "/ui/login", "/ui/logout", "/ui/static/page.css"]
)
def test_other_methods_are_refused(shown, path):
    for method in ("PUT", "DELETE", "PATCH"):
        answer = shown.client.request(method, path)
        assert answer.status_code == 405, (method, path)


def test_a_page_of_another_site_cannot_log_anybody_out(shown):
    answer = shown.client.post("/ui/logout", headers={"Origin": "http://evil.example"})
    assert answer.status_code == 403


@pytest.mark.parametrize(
    "file", ["../templates/base.html", "..%2ftemplates%2fbase.html", "missing.js", "", "vendor", "%00", "x" * 5000]
)
def test_only_files_of_the_page_are_served(shown, file):
    assert shown.client.get(f"/ui/static/{file}").status_code == 404


def test_files_are_cached_and_typed(shown):
    answer = shown.client.get("/ui/static/page.css")
    assert answer.headers["Content-Type"].startswith("text/css")
    assert answer.headers["Cache-Control"].startswith("public")
    assert (
        shown.client.get("/ui/static/strip.js")
        .headers["Content-Type"]
        .startswith(("text/javascript", "application/javascript"))
    )


def test_missing_assets_are_said(shown, monkeypatch, tmp_path):
    monkeypatch.setattr(rendering, "missing_assets", lambda: True)
    page = shown.client.get("/").text
    assert "python scripts/fetch_assets.py" in page
    assert "htmx" not in page.replace("htmx-config", "")
    monkeypatch.undo()
    monkeypatch.setattr(rendering, "STATIC", tmp_path)
    assert rendering.missing_assets()


def test_pages_are_no_part_of_the_described_interface(shown):
    assert not [
        path for path in shown.client.get("/openapi.json").json()["paths"] if path.startswith("/ui") or path == "/"
    ]


def test_metrics_name_the_route_not_the_path(shown):
    shown.client.get("/ui/casks/stories")
    exposed = shown.client.get("/metrics").text
    assert 'route="/ui/casks/{name}"' in exposed
    assert "/ui/casks/stories" not in exposed


def test_a_damaged_cask_is_a_line_not_a_failure(shown_once):
    folder = shown_once.service.folders.cask("stories")
    (folder / "cask.json").write_text("{")
    page = shown_once.client.get("/ui/casks").text
    assert "again" in page
    row = next(each for each in shown_once.client.get("/ui/api/casks").json()["data"] if each["name"] == "stories")
    assert row["error"]
    assert shown_once.client.get("/ui/casks/stories").status_code == 409


def test_while_the_teacher_loads_tokens_are_ids(shown_once):
    shown_once.service.teacher._known.clear()
    content = shown_once.client.get("/ui/api/casks/stories/documents/0").json()
    assert content["has_texts"] is False
    assert content["rows"][0]["text"] == str(content["rows"][0]["id"])
    assert "no tokenizer" in shown_once.client.get("/ui/casks/stories").text
    corpus = shown_once.client.get("/v1/corpora").json()["data"][0]
    assert shown_once.client.get(f"/ui/corpora/{corpus['id']}").status_code == 503
