"""The promise of rounds: killed at random, texts, casks and weights are those of a run that was left alone.

`LOGITCASK_KILLS` sets how many (default 6).
"""

import os
import random
import time

import pytest

from logitcask_consumer.rounds.samples import read_chunks
from logitcask_consumer.rounds.state import read_state
from tests.support.consumer.fake_service import FakeService
from tests.support.consumer.rounds_process import RoundsProcess, begin_forking

KILLS = int(os.environ.get("LOGITCASK_KILLS", "6"))


@pytest.fixture
def options(tiny, settings):
    """MiniLLM, so that what was sampled must come back as well; a checkpoint after every step."""
    return {
        **settings,
        "recipe": "minillm",
        "casks": (str(tiny.folder / "fixed"),),
        "held_out": str(tiny.folder / "held"),
        "steps_per_round": 4,
        "save_steps": 1,
        "sample_batch": 4,
        "patience_seconds": 60.0,
    }


def texts(output):
    return [(output / f"rounds/{number:04d}/samples.jsonl").read_bytes() for number in (1, 2)]


def shards(casks):
    return {path.name: path.read_bytes() for path in casks.glob("run.r*/shards/*.arrow")}


@pytest.mark.timeout(900)
def test_killed_at_random(options, tiny, tmp_path):
    results = {}
    begin_forking()
    seconds = 0.0
    for place, kills in (("calm", 0), ("rough", KILLS)):
        folder = tmp_path / place
        folder.mkdir()
        service = FakeService(folder / "casks", tiny.teacher)
        own = {**options, "output": folder / "run", "server": service.url, "cask_root": folder / "casks"}
        clock, killed, calls = random.Random(3), 0, 0
        while killed < kills and calls < 4 * kills:
            # Parts of what the calm run took, whatever the machine.
            killed += RoundsProcess(own, folder / "stderr").kill_after(seconds * clock.uniform(0.05, 0.3))
            calls += 1
            if (state := read_state(own["output"])) is not None and state.status == "finished":
                break
        began = time.monotonic()
        RoundsProcess(own, folder / "stderr").finish()
        service.close()
        if place == "calm":
            seconds = time.monotonic() - began
            results = {
                "weights": (own["output"] / "model.safetensors").read_bytes(),
                "metrics": (own["output"] / "metrics.jsonl").read_text().splitlines(),
                "texts": texts(own["output"]),
                "shards": shards(folder / "casks"),
                "state": read_state(own["output"]),
            }
            continue
        assert killed >= min(kills, 4)
        assert texts(own["output"]) == results["texts"]
        assert shards(folder / "casks") == results["shards"]
        assert (own["output"] / "model.safetensors").read_bytes() == results["weights"]
        state = read_state(own["output"])
        assert [round_state.held_out for round_state in state.rounds] == [
            round_state.held_out for round_state in results["state"].rounds
        ]
        # One extraction a round, however often it was asked for.
        assert len(service.extractions) == 2
        assert len((own["output"] / "metrics.jsonl").read_text().splitlines()) == len(results["metrics"])


def test_a_chunk_is_not_written_again(options, service):
    """Killed between two chunks: those that are there stay, byte by byte."""
    process = RoundsProcess(options, options["output"].with_suffix(".stderr"))
    samples = options["output"] / "rounds/0001/samples.jsonl"
    while not samples.exists() or not samples.stat().st_size:
        time.sleep(0.002)
    process.kill_after(0.0)
    there = len(read_chunks(samples))
    before = samples.read_bytes()
    complete = before[: before.rindex(b"\n") + 1]
    changed = samples.stat().st_ino
    RoundsProcess(options, options["output"].with_suffix(".stderr")).finish()
    assert there >= 1
    assert samples.read_bytes().startswith(complete)
    assert samples.stat().st_ino == changed


def test_a_polite_end_keeps_what_is_done(options, service):
    """SIGTERM at any point ends with 0, and the same command goes on."""
    codes = [
        RoundsProcess(options, options["output"].with_suffix(".stderr")).terminate_after(seconds)
        for seconds in (1.5, 2.5, 4.0)
    ]
    assert set(codes) <= {0}
    RoundsProcess(options, options["output"].with_suffix(".stderr")).finish()
    assert read_state(options["output"]).status == "finished"
