"""A server for `logitcask generate`, with a recipe of its operator's."""

import json
from pathlib import Path
from typing import Any

from logitcask_services.jobs.loaded_teacher import Teacher
from tests.support.services.fake_generator import FakeGenerator
from tests.support.services.fake_teacher import FakeEngine, FakeTokenizer
from tests.support.services.service_harness import wait_for
from tests.support.services.simple_steps import EMIT, STEPS, TEMPLATE

LINES = [{"question": f"what is {number}?", "custom_id": f"q{number}"} for number in range(20)]


def start_server(serve: Any, tmp_path: Path, **writer: Any) -> Any:
    """A server with a recipe of its operator's, whose teacher captures and writes."""
    folder = tmp_path / "templates"
    folder.mkdir()
    (folder / "ask.md").write_text(TEMPLATE)
    shown = "{% for shown in demonstrations %}{{ shown.question }} {% endfor %}"
    (folder / "ask-shown.md").write_text(TEMPLATE.replace("Q:", f"{shown}Q:"))
    generate = {**STEPS[0], "sampling": {"n": "$n", "temperature": 1, "max_tokens": 30}}
    recipe = {
        "description": "Ask [n times].",
        "parameters": {"n": 2, "check": "[05]", "demonstrations": None},
        "steps": [
            {**generate, "unless": "$demonstrations"},
            {
                **generate,
                "when": "$demonstrations",
                "template": "ask-shown",
                "demonstrations": {"corpus_id": "$demonstrations", "k": 1},
            },
            {**STEPS[1], "matches": "$check"},
            {"kind": "check", "of": "output", "against": "question", "equal": "text", "otherwise": "mark"},
        ],
        "emit": EMIT,
    }
    (folder / "asking.yaml").write_text(json.dumps(recipe))

    def load() -> Teacher:
        generator = FakeGenerator(max_model_len=512, **writer)
        return Teacher(engine=FakeEngine(max_model_len=512), generator=generator, tokenizer=FakeTokenizer())

    started = serve(load=load, templates=folder)
    wait_for(lambda: started.client.get("/health/ready").status_code == 200)
    return started


def generations(server: Any) -> Any:
    """What the server lists."""
    return server.client.get("/v1/generations").json()["data"]
