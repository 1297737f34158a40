"""The reference engine on a tiny model: records against its own dense logits, padding, faults of single documents."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from logitcask_schemas.errors import CaptureSpecError, ModelError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.engines.engine import CaptureTask
from logitcask_services.engines.factory import load_engine
from logitcask_services.engines.process.progress import Stepping
from tests.support.wire_encoding import encode_wire

SPEC = CaptureSpec(tau=0.02, logprob_codec="f32")


def documents(count=9, seed=0):
    generator = np.random.default_rng(seed)
    return [
        CaptureTask(key=i, token_ids_L=generator.integers(2, 300, generator.integers(2, 100)).astype(np.uint32))
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def engine(tiny_llama):
    engine = load_engine("transformers", tiny_llama)
    yield engine
    engine.close()


def test_identity_and_length(engine):
    assert engine.identity.engine == "transformers"
    assert engine.identity.dtype == "float32"
    assert engine.identity.vocab_size == 300
    assert engine.max_model_len == 128


def test_a_model_is_loaded_without_bars_of_transformers(tiny_llama, capfd):
    load_engine("transformers", tiny_llama).close()
    assert capfd.readouterr().err == ""
    assert transformers_logging.is_progress_bar_enabled(), "whoever loads models of their own has theirs"


def test_each_layer_is_a_step(tiny_llama):
    """So that a long document, whose results are far apart, is told from a hang."""
    engine, steps = load_engine("transformers", tiny_llama), [0]
    assert isinstance(engine, Stepping)
    engine.on_step = lambda: steps.__setitem__(0, steps[0] + 1)
    layers = AutoModelForCausalLM.from_pretrained(tiny_llama).config.num_hidden_layers
    steps[0] = 0
    for number, _ in enumerate(engine.capture(documents(3), SPEC), start=1):
        assert steps[0] == number * layers
    engine.close()


def test_records_agree_with_the_dense_logits(engine, tiny_llama):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    tasks = documents()
    results = list(engine.capture(tasks, SPEC))
    assert [result.key for result in results] == [task.key for task in tasks]
    for task, result in zip(tasks, results, strict=True):
        with torch.no_grad():
            logits = model(torch.from_numpy(task.token_ids_L.astype(np.int64))[None]).logits[0, :-1]
        logprobs = torch.log_softmax(logits.double(), -1).numpy()
        records = result.document.records
        assert records.num_positions == len(task.token_ids_L) - 1
        rows = np.repeat(np.arange(records.num_positions), records.head_counts_P)
        np.testing.assert_allclose(records.head_logprobs_H, logprobs[rows, records.head_ids_H], atol=2e-5)
        for row, y in enumerate(task.token_ids_L[1:]):
            assert y in records.head_ids_H[rows == row]


def test_padded_batches_give_the_same_records(engine, tiny_llama):
    batched = load_engine("transformers", tiny_llama, options={"batch_documents": 4})
    for one, many in zip(engine.capture(documents(), SPEC), batched.capture(documents(), SPEC), strict=True):
        a, b = one.document.records, many.document.records
        assert one.key == many.key
        np.testing.assert_array_equal(a.head_ids_H, b.head_ids_H)
        np.testing.assert_array_equal(a.tail_ids_N, b.tail_ids_N)
        np.testing.assert_allclose(a.head_logprobs_H, b.head_logprobs_H, atol=2e-5)


def test_the_same_document_gives_the_same_bytes(engine):
    first, second = (list(engine.capture(documents(), SPEC)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert encode_wire(a.document.records, SPEC).tobytes() == encode_wire(b.document.records, SPEC).tobytes()


def test_a_document_whose_logits_are_not_finite_is_reported(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][7] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    engine = load_engine("transformers", folder)
    tasks = [
        CaptureTask(key=key, token_ids_L=np.array(ids, np.uint32))
        for key, ids in [("good", [3, 4]), ("bad", [3, 7, 4])]
    ]
    good, bad = engine.capture(tasks, SPEC)
    assert good.error is None
    assert bad.document is None
    assert bad.error is not None
    assert "is NaN; the teacher's logits were not finite" in bad.error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"dtype": "int8"}, "dtype 'int8' is not one of"), ({"max_model_len": 1000}, "exceeds the 128 positions")],
)
def test_what_the_model_cannot_do_is_refused(tiny_llama, arguments, message):
    with pytest.raises(ModelError, match=message):
        load_engine("transformers", tiny_llama, **arguments)


def test_an_architecture_transformers_does_not_know(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "odd")
    config = (folder / "config.json").read_text().replace('"model_type": "llama"', '"model_type": "odd"')
    (folder / "config.json").write_text(config)
    with pytest.raises(ModelError, match="cannot load"):
        load_engine("transformers", folder)


def test_weights_that_transformers_reads_by_a_package_that_is_missing(tiny_llama, tmp_path, monkeypatch):
    def missing(*_, **__):
        raise ImportError("Loading a GPTQ quantized model requires optimum (`pip install optimum`)")

    monkeypatch.setattr("transformers.quantizers.quantizer_gptq.GptqHfQuantizer.validate_environment", missing)
    folder = shutil.copytree(tiny_llama, tmp_path / "gptq")
    config = json.loads((folder / "config.json").read_text())
    rounded = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": rounded}))
    with pytest.raises(ModelError, match=r"cannot load.*requires optimum"):
        load_engine("transformers", folder)


def test_a_spec_that_the_teacher_cannot_honour_is_no_fault_of_the_teacher(engine):
    with pytest.raises(CaptureSpecError, match=r"pinned ids \[300\]"):
        next(engine.capture(documents(1), CaptureSpec(pinned_ids=(300,))))
    assert [result.error for result in engine.capture(documents(1), SPEC)] == [None]


def test_a_teacher_whose_weights_are_not_all_there_is_refused(tiny_llama, tmp_path):
    """Transformers would go on with random numbers in their place."""
    shutil.copytree(tiny_llama, tmp_path / "part")
    file = tmp_path / "part" / "model.safetensors"
    weights = load_file(file)
    del weights["model.norm.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks the weights model.norm.weight, which its config.json asks for"):
        load_engine("transformers", tmp_path / "part")
