"""What a dry run says of time and price: from the pace of this teacher's latest extractions, or nothing."""

import json

import pytest


def dry_run(run, server, corpus, *more):
    code, out, err = run(server, "submit", corpus, "--dry-run", "--json", *more)
    assert code == 0, err
    return json.loads(out)


def test_nothing_is_known_before_anything_was_captured(serve, run, corpus):
    server = serve()
    seen = dry_run(run, server, corpus, "--price-per-hour", "4")
    assert (seen["tokens_per_second"], seen["estimate"]["seconds"], seen["estimate"]["price"]) == (None, None, None)
    code, out, _ = run(server, "submit", corpus, "--dry-run")
    assert (code, "time: not known" in out) == (0, True)
    assert "Asked with --pilot 100, a service captures 100 lines, measures, and forgets them" in out
    assert seen["pilot"] is None


def test_time_and_price_follow_from_the_latest_extractions(serve, run, corpus, documents):
    server = serve(fake={"seconds_per_document": 0.02})
    jobs = [server.finish(server.submit(server.upload(documents), cask=name)["id"]) for name in ("a", "b")]
    rows = [server.service.extractions.get(job["id"]) for job in jobs]
    pace = sum(row.tokens_captured for row in rows) / sum(row.capture_seconds for row in rows)
    seen = dry_run(run, server, corpus, "--price-per-hour", "3600")
    assert seen["tokens_per_second"] == pytest.approx(pace)
    assert seen["estimate"]["seconds"] == pytest.approx(seen["estimate"]["tokens"] / pace)
    assert seen["estimate"]["price"] == pytest.approx(seen["estimate"]["seconds"])
    assert dry_run(run, server, corpus)["estimate"]["price"] is None
    code, out, _ = run(server, "submit", corpus, "--dry-run", "--price-per-hour", "3600")
    assert code == 0
    assert "of the teacher's time, a price of " in out
    assert run(server, "submit", corpus, "--dry-run", "--price-per-hour", "-1")[0] == 2


def test_another_teachers_pace_is_not_this_ones(serve, run, corpus, documents):
    server = serve()
    job = server.finish(server.submit(server.upload(documents))["id"])
    with server.service.database.write() as session:
        row = session.merge(server.service.extractions.get(job["id"]))
        row.teacher = {**row.teacher, "weights_digest": "1" * 64}
    assert dry_run(run, server, corpus)["tokens_per_second"] is None
