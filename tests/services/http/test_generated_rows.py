"""Pages of the rows of a generation: together the whole list, at the cost of going through it once."""

import threading

import pytest

from logitcask_services.generation.pipeline import StageOpenError
from logitcask_services.generation.rows import Row
from logitcask_services.generation.source import source_rows
from logitcask_services.http.generated_rows import PagePlace, RowReader, RowReaders
from logitcask_services.jobs import generation_work
from tests.support.services.generation_calls import LINES, create, finish
from tests.support.services.service_harness import wait_for


@pytest.fixture
def lines_read(monkeypatch):
    """The lines of corpora that have been read as rows, one entry for each time."""
    counted = []

    def counting(*arguments):
        for staged in source_rows(*arguments):
            counted.append(staged)
            yield staged

    monkeypatch.setattr(generation_work, "source_rows", counting)
    return counted


def pages(server, path, query, limit, after=0):
    """All pages from a place on."""
    page = server.client.get(f"{path}/rows?limit={limit}&after={after}{query}").raise_for_status().json()
    yield page
    if page["has_more"]:
        yield from pages(server, path, query, limit, after + len(page["data"]))


@pytest.mark.parametrize("query", ["&step=-1", "&step=0", "", "&dropped=true"])
def test_pages_together_are_the_whole_list_and_are_read_once(start, lines_read, query):
    server = start()
    job = finish(server, create(server, server.upload([*LINES, {"other": 1}, *LINES])).json()["id"])
    path = f"/v1/generations/{job['id']}"
    [whole] = pages(server, path, query, 100)
    for limit in (1, 7, len(whole["data"])):
        lines_read.clear()
        got = list(pages(server, path, query, limit))
        assert [row for page in got for row in page["data"]] == whole["data"]
        assert [len(page["data"]) for page in got[:-1]] == [limit] * (len(got) - 1)
        assert len(lines_read) == 41
    lines_read.clear()
    [tail] = pages(server, path, query, 100, after=5)  # nobody stands there: it is gone through from the start
    assert tail["data"] == whole["data"][5:]
    assert len(lines_read) == 41


def test_pages_while_it_runs_are_the_beginning_of_the_whole_list(start, lines_read):
    """The teacher stops in the second chunk; a reader that waited meanwhile goes on where it stood."""
    stands, go_on = threading.Event(), threading.Event()

    def answer(prompt, seed):
        if "row 40\n" in prompt:
            stands.set()
            assert go_on.wait(60)
        return "5"

    server = start(writer={"in_flight": 1, "answers": answer})
    job = create(server, server.upload([{"question": f"row {number}"} for number in range(100)])).json()
    path = f"/v1/generations/{job['id']}"
    try:
        wait_for(lambda: any(stage["requests_done"] == 64 for stage in server.client.get(path).json()["stages"]))
        assert stands.wait(60)  # the job reads no more lines meanwhile
        lines_read.clear()
        got = list(pages(server, path, "&step=0", 10))
        assert len(lines_read) == 33  # the first without answers ends it
        assert [page["is_open"] for page in got] == [False] * 6 + [True]
        [waiting] = [server.client.get(f"{path}/rows?limit=10&step=0").json()]
    finally:
        go_on.set()
    finish(server, job["id"])
    rest = list(pages(server, path, "&step=0", 10, after=10))
    [first, second] = pages(server, path, "&step=0", 100)
    whole = [*first["data"], *second["data"]]
    assert [row for page in got for row in page["data"]] == whole[:64]
    assert [*waiting["data"], *(row for page in rest for row in page["data"])] == whole
    assert (len(whole), rest[-1]["is_open"]) == (200, False)


def place(number):
    return PagePlace(generation_id="g", step=0, dropped=False, after=number)


def test_so_many_readers_wait_and_no_longer_than_so_long(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("logitcask_services.http.generated_rows.time.monotonic", lambda: now[0])
    readers, made = RowReaders(most=2, idle_seconds=10), [RowReader(iter(())) for _ in range(3)]
    for number, reader in enumerate(made):
        readers.put(place(number), reader)
    assert len(readers) == 2
    assert readers.take(place(0)) is None
    assert readers.take(place(1)) is made[1]
    assert readers.take(place(1)) is None  # it is in use
    now[0] = 10.5
    assert readers.take(place(2)) is None
    assert len(readers) == 0


def test_a_reader_ends_where_the_teacher_is_waited_for():
    one, two, three = (Row(id=name, parent=name, line=1) for name in "abc")

    def rows():
        yield from (one, two, three)
        raise StageOpenError

    reader = RowReader(rows())
    assert (reader.take(2), reader.has_more(), reader.is_open) == ([one, two], True, False)
    assert (reader.take(2), reader.is_open, reader.has_more()) == ([three], True, False)
