"""The whole line over a real server: upload, extract, read the cask back."""

import numpy as np

from logitcask_schemas.cask import Cask
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.services.fake_teacher import records_of


def test_corpus_becomes_a_cask(serve, documents, tmp_path):
    server = serve()
    corpus = server.upload(documents)
    assert corpus["lines"] == 40
    done = server.finish(server.submit(corpus, metadata={"who": "test"})["id"])
    assert done["status"] == "completed", done
    assert done["request_counts"] == {"total": 40, "completed": 40, "failed": 0, "skipped": 0}
    cask = Cask.open(tmp_path / "casks" / "cask")
    assert len(cask) == 40
    assert done["usage"]["tokens_done"] == done["usage"]["tokens_total"] == cask.num_tokens
    assert done["usage"]["bytes_written"] == cask.num_bytes
    for number in range(len(cask)):
        document = cask.read(number)
        expected = records_of(np.asarray(document.token_ids_L, dtype=np.uint32), CaptureSpec())
        assert document.records.head_ids_H.tolist() == expected.records.head_ids_H.tolist()
        assert np.array_equal(document.records.entropy_P, expected.records.entropy_P)
    manifest = server.client.get(f"/v1/extractions/{done['id']}/manifest").json()
    assert manifest["partial"] is False
    assert sum(shard["documents"] for shard in manifest["shards"]) == 40
    assert {shard["name"] for shard in manifest["shards"]} == {entry.name for entry in cask.entries}
