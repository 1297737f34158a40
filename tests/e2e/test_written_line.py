"""From questions to a cask on a real teacher: it writes under demonstrations, what is kept is captured under them.

The teacher is loaded in each role in turn, with the reference engines, which start in a second.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from logitcask_schemas.api.generation import GenerationRequest
from logitcask_schemas.cask import Cask
from logitcask_services.cli.serve import load_teacher, require_teacher
from logitcask_services.generation.recipes import RecipeBook
from logitcask_services.service import Service
from logitcask_services.settings import ServiceSettings
from tests.support.services.engine_captures import real_teacher
from tests.support.services.generations import corpus_lines, put_corpus, wait_until_ended
from tests.support.services.service_harness import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
DEMONSTRATIONS = [
    {"question": "Ann has two pens and gets one more. How many has she?", "rationale": "2 + 1 = 3.", "answer": 3},
    {"question": "Bob has five cups and gets two more. How many has he?", "rationale": "5 + 2 = 7.", "answer": 7},
    {"question": "Eve has four keys and gets four more. How many has she?", "rationale": "4 + 4 = 8.", "answer": 8},
]
QUESTIONS = [
    {"question": f"Tom has {count} apples and gets one more. How many has he?", "answer": answer, "custom_id": count}
    for count, answer in (("two", 3), ("three", 4), ("six", 7))
]


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """Lines of the corpus that was written, casks under the teacher's context and without, and the loads."""
    folder = tmp_path_factory.mktemp("written")
    settings = ServiceSettings(
        teacher=Path(real_teacher()),
        cask_root=folder / "casks",
        engine="transformers",
        dtype="float32",
        max_model_len=512,
        disk_floor_bytes=0,
    )
    source = require_teacher(settings)
    service = Service(settings, lambda role: load_teacher(settings, source, role))
    demonstrations, questions = put_corpus(service, DEMONSTRATIONS), put_corpus(service, QUESTIONS)
    request = GenerationRequest.model_validate(
        {
            "corpus_id": questions,
            "recipe": "cot",
            "parameters": {"temperature": 0.0, "demonstrations": demonstrations, "k": 3, "max_tokens": 32},
            "emit": [
                {"suffix": context, "completion": "output", "context": context} for context in ("teacher", "none")
            ],
            "extraction": {"cask": "written", "capture": {"mode": "topk", "k": 50}},
        }
    )
    row, _ = service.generations.create(RecipeBook(None).resolve(request), None)
    service.start()
    try:
        row = wait_until_ended(service, row.id, 600)
        assert row.status == "completed", row.error
        ids = [made["extraction_id"] for made in row.corpora]
        wait_for(lambda: all(service.extractions.get(each).status == "completed" for each in ids), 300)
        lines = {context: corpus_lines(service, row, context) for context in ("teacher", "none")}
        loads = service.teacher.loads
    finally:
        service.stop()
    return lines, folder / "casks", loads


def test_the_teacher_is_loaded_once_to_write_and_once_to_capture(line):
    assert line[2] == 2


def test_rows_say_what_was_read_and_written(line):
    lines, _, _ = line
    assert [entry["custom_id"] for entry in lines["teacher"]] == [entry["custom_id"] for entry in lines["none"]]
    for entry in lines["teacher"]:
        origin = entry["logitcask"]
        assert "Ann has" not in origin["prompt"]
        assert origin["fields"]["question"] in origin["prompt"]
        assert origin["written"]["output"]["finish"] == "stop"
        assert json.dumps(origin["fields"]["predicted"]) in origin["completion"]
        first = len(entry["input_ids"]) - origin["written"]["output"]["tokens"]
        assert entry["recorded"] == [[first - 1, len(entry["input_ids"]) - 1]]
        assert len(entry["context_ids"]) > 60
    assert not any("context_ids" in entry for entry in lines["none"])


@pytest.fixture(scope="module")
def logprobs_of():
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(real_teacher(), dtype=torch.float32).eval()

    @torch.inference_mode()
    def dense(ids):
        """Log-probabilities [L, V] behind each token."""
        return model(torch.tensor([ids])).logits[0].double().log_softmax(-1).numpy()

    return dense


@pytest.mark.parametrize("context", ["teacher", "none"])
def test_the_cask_holds_the_distributions_of_what_the_teacher_read(line, logprobs_of, context):
    """Against a plain forward pass over context and document; one position off must differ."""
    lines, casks, _ = line
    cask = Cask.open(casks / f"written.{context}")
    assert len(cask) == len({tuple(entry["input_ids"]) for entry in lines[context]}) > 0
    by_ids = {tuple(cask.read(place).token_ids_L.tolist()): cask.read(place) for place in range(len(cask))}
    for entry in lines[context]:
        document, ids = by_ids[tuple(entry["input_ids"])], entry["input_ids"]
        replaced, context_ids = entry.get("context_replaces", 0), entry.get("context_ids", [])
        read = [*context_ids, *ids[replaced:]]
        shift = len(context_ids) - replaced
        dense_LV = logprobs_of(read)
        ((start, stop),) = entry["recorded"]
        counts_P = document.records.head_counts_P.astype(int)
        assert len(counts_P) == stop - start
        rows_H = np.repeat(np.arange(start, stop) + shift, counts_P)
        ids_H, stored_H = document.records.head_ids_H.astype(int), document.records.head_logprobs_H.astype(float)
        # Greedy texts are likely ones, so the tolerance of float16 log-probabilities is absolute.
        np.testing.assert_allclose(stored_H, dense_LV[rows_H, ids_H], atol=0.02)
        assert np.abs(stored_H - dense_LV[rows_H - 1, ids_H]).max() > 1


def test_the_context_sharpens_what_is_captured(line):
    """The reason for it: the same texts are far more certain to the teacher with what it had read."""
    _, casks, _ = line
    entropies = {}
    for context in ("teacher", "none"):
        cask = Cask.open(casks / f"written.{context}")
        documents = [cask.read(place) for place in range(len(cask))]
        entropies[context] = np.concatenate([document.records.entropy_P.astype(float) for document in documents]).mean()
    assert entropies["teacher"] < 0.7 * entropies["none"]
