"""A teacher behind a service, a student, prompts and casks, all tiny."""

import json
from types import SimpleNamespace

import pytest

from logitcask_consumer.rounds import capture as capture_module
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.consumer.cask_builder import build_cask, random_documents, save_teacher, tiny_model, tiny_tokenizer
from tests.support.consumer.fake_service import FakeService

SPEC = CaptureSpec(tail_logprobs=True)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folders of a teacher, a student, prompts, a fixed and a held-out cask."""
    folder = tmp_path_factory.mktemp("rounds")
    teacher = save_teacher(folder / "teacher")
    tiny_model(layers=2, seed=1).save_pretrained(folder / "student")
    tiny_tokenizer().save_pretrained(folder / "student")
    build_cask(folder / "fixed", teacher, random_documents(24), spec=SPEC)
    build_cask(folder / "held", teacher, random_documents(8, seed=5), spec=SPEC)
    lines = [{"prompt": f"w{number + 2} w{2 * number + 3}"} for number in range(20)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return SimpleNamespace(folder=folder, teacher=teacher)


@pytest.fixture
def service(tiny, tmp_path):
    """A service whose casks lie in this test's folder."""
    own = FakeService(tmp_path / "casks", tiny.teacher)
    yield own
    own.close()


@pytest.fixture
def settings(tiny, service, tmp_path):
    """Options of a run that takes a second or two."""
    return {
        "recipe": "gkd",
        "prompts": tiny.folder / "prompts.jsonl",
        "student": str(tiny.folder / "student"),
        "server": service.url,
        "output": tmp_path / "run",
        "cask_root": service.casks,
        "rounds": 2,
        "steps_per_round": 3,
        "max_new_tokens": 16,
        "sample_batch": 8,
        "seq_len": 64,
        "batch_tokens": 256,
        "micro_tokens": 128,
        "lr": 3e-3,
        "patience_seconds": 5.0,
    }


@pytest.fixture(autouse=True)
def no_long_pauses(monkeypatch):
    monkeypatch.setattr(capture_module, "FIRST_PAUSE", 0.01)
