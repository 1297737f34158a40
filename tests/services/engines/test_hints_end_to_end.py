"""A tiny teacher behind the real service: what a cask holds of its layers is what plain Hugging Face says of them."""

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from logitcask_schemas.cask import Cask
from logitcask_services.engines.factory import load_engine
from logitcask_services.jobs.loaded_teacher import Teacher
from tests.support.services.engine_hints import hidden_of, projections_of, relative_error
from tests.support.services.fake_teacher import FakeTokenizer


@pytest.mark.parametrize(
    ("hints", "layers", "bound"),
    [
        ({"layers": [0, 1, -1]}, (0, 1, 2), 1e-3),
        ({"layers": [1, 2], "codec": "i8"}, (1, 2), 1e-2),
        ({"layers": [-1], "of": "qkv"}, (2,), 1e-3),
        ({"layers": [1], "of": "v", "positions": "last"}, (1,), 1e-3),
    ],
)
def test_a_corpus_becomes_a_cask_with_hints(serve, tiny_llama, tmp_path, hints, layers, bound):
    server = serve(load=lambda: Teacher(engine=load_engine("transformers", tiny_llama), tokenizer=FakeTokenizer()))
    random = np.random.default_rng(0)
    lines = [{"input_ids": random.integers(2, 300, length).tolist()} for length in (5, 30, 90)]
    lines.append({"input_ids": random.integers(2, 300, 20).tolist(), "recorded": [[1, 3], [7, 12]]})
    corpus = server.upload(lines)
    submitted = server.submit(corpus, capture={"hints": hints})
    done = server.finish(submitted["id"])
    assert done["status"] == "completed", done["error"]
    cask, model = Cask.open(tmp_path / "casks" / "cask"), AutoModelForCausalLM.from_pretrained(tiny_llama)
    spec = cask.manifest.capture.hints
    assert spec is not None
    assert (spec.layers, len(cask), cask.has_hints) == (layers, 4, True)
    partial = 0
    for number in range(len(cask)):
        document = cask.read(number)
        ids = document.token_ids_L
        expected = hidden_of(model, ids, layers) if spec.of == "hidden" else projections_of(model, ids, layers, spec.of)
        rows = document.extent.positions(len(ids)) if spec.positions == "all" else [-1]
        assert relative_error(cask.hints(number), expected[rows]) <= bound
        partial += document.extent.recorded_R2 is not None
    assert partial == 1
