"""The promise for generations: killed at random, corpus and cask are those of one that was left alone.

Real server processes, SIGKILL at random moments, restarts. `LOGITCASK_KILLS` sets how many (default 6).
"""

import os
import random
import time

from tests.support.services.generations import files_of
from tests.support.services.server_process import ServerProcess
from tests.support.services.service_harness import jsonl, wait_for

KILLS = int(os.environ.get("LOGITCASK_KILLS", "6"))
IN_FLIGHT = 5
STEPS = [
    {"kind": "generate", "template": "question", "sampling": {"n": 2, "temperature": 1.0, "max_tokens": 64}},
    {"kind": "keep", "finish": "stop", "min_tokens": 12},
    {"kind": "verify", "template": "judge-pair", "accept": "^[0-7]", "sampling": {"max_tokens": 64}},
    {"kind": "dedupe", "field": "output", "rouge_l": 1.0},
]
JUDGE = "---\nkind: text\ndescription: judges\nfields: [output, question]\n---\n{{ question }} {{ output }} Good?"


class WritingServer(ServerProcess):
    def __init__(self, folder, templates, **writer):
        super().__init__(
            folder,
            settings={"templates": str(templates)},
            writer={"log": str(folder / "asked"), "in_flight": IN_FLIGHT, **writer},
            max_model_len=4096,
        )

    def generation(self, generation_id):
        return self.client.get(f"/v1/generations/{generation_id}").raise_for_status().json()


def start(server):
    questions = jsonl([{"question": f"what is {number}?", "custom_id": f"q{number}"} for number in range(200)])
    corpus = server.client.post("/v1/corpora", content=questions).raise_for_status().json()
    body = {
        "corpus_id": corpus["id"],
        "steps": STEPS,
        "emit": [{"prompt": "question", "completion": "output"}],
        "extraction": {"cask": "cask"},
    }
    answer = server.client.post("/v1/generations", json=body)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def finish(server, generation_id):
    def done():
        generation = server.generation(generation_id)
        assert generation["status"] not in ("failed", "cancelled"), generation["error"]
        ids = [entry["extraction_id"] for entry in generation["corpora"]]
        return bool(ids) and all(server.status(identity)["status"] == "completed" for identity in ids)

    wait_for(done, 120)
    return server.generation(generation_id)


def corpus_of(folder, generation):
    """The bytes of the corpus that was written, with the generation's id, which is random, taken out."""
    (made,) = generation["corpora"]
    path = folder / "state" / "corpora" / f"{made['sha256']}.jsonl"
    return path.read_bytes().replace(generation["id"].encode(), b"generation")


def asked(folder):
    """(process, key of the request) of all that the teacher was asked."""
    return [tuple(line.split("\t")[:2]) for line in (folder / "asked").read_text().splitlines()]


def test_killed_at_random(tmp_path):
    templates = tmp_path / "templates"
    templates.mkdir()
    (templates / "judge-pair.md").write_text(JUDGE)
    calm = WritingServer(tmp_path / "calm", templates)
    expected = finish(calm, start(calm))
    assert calm.end() == 0
    assert expected["rows"]["kept"] > 50
    assert expected["rows"]["dropped"].keys() == {"too_short", "not_accepted"}

    rough, kills, clock = tmp_path / "rough", 0, random.Random(3)
    server = WritingServer(rough, templates, seconds_per_request=0.004)
    generation_id = start(server)
    while kills < KILLS:
        time.sleep(clock.uniform(0.05, 0.4))
        server.kill()
        kills += 1
        server = WritingServer(rough, templates, seconds_per_request=0.004)
    generation = finish(server, generation_id)
    assert server.end() == 0

    assert generation["rows"] == expected["rows"]
    assert corpus_of(rough, generation) == corpus_of(tmp_path / "calm", expected)
    shards = files_of(rough / "casks" / "cask" / "shards")
    assert shards == files_of(tmp_path / "calm" / "casks" / "cask" / "shards")
    assert shards
    # A request that was answered is not asked again; those with the teacher at a kill are.
    requests = asked(rough)
    assert {key for _, key in requests} == {key for _, key in asked(tmp_path / "calm")}
    processes = len({process for process, _ in requests})
    assert len(requests) <= len(asked(tmp_path / "calm")) + IN_FLIGHT * processes
    assert processes > KILLS / 3


def test_a_server_that_was_killed_while_it_waits_for_nothing_says_what_it_knows(tmp_path):
    """What a job has done is there at once after a restart, before a teacher is loaded."""
    templates = tmp_path / "templates"
    templates.mkdir()
    (templates / "judge-pair.md").write_text(JUDGE)
    server = WritingServer(tmp_path / "one", templates)
    generation = finish(server, start(server))
    server.kill()
    server = WritingServer(tmp_path / "one", templates)
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    assert server.generation(generation["id"]) == generation
    assert server.end() == 0
