"""Fixtures of servers whose teacher captures and writes."""

import pytest

from logitcask_services.jobs.loaded_teacher import Teacher
from tests.support.services.fake_generator import FakeGenerator
from tests.support.services.fake_teacher import FakeEngine, FakeTokenizer
from tests.support.services.service_harness import wait_for
from tests.support.services.simple_steps import TEMPLATE


@pytest.fixture
def templates(tmp_path):
    folder = tmp_path / "templates"
    folder.mkdir()
    (folder / "ask.md").write_text(TEMPLATE)
    (folder / "ask-chat.md").write_text(TEMPLATE.replace("kind: text", "kind: chat").replace("Q:", "[user]\nQ:"))
    return folder


@pytest.fixture
def start(serve, templates):
    """A server whose teacher captures and writes; `writer`: what to script into the generator."""

    def start_(template=True, writer=None, **settings):
        def load():
            return Teacher(
                engine=FakeEngine(max_model_len=512),
                generator=FakeGenerator(max_model_len=512, **(writer or {})),
                tokenizer=FakeTokenizer(template=template),
            )

        server = serve(load=load, templates=templates, **settings)
        wait_for(lambda: server.client.get("/health/ready").status_code == 200)
        return server

    return start_
