"""What every engine must do, on a real teacher: agree with a plain forward pass, stream, stop, name faults.

The real teacher comes from `demo.fetch_teacher`; set LOGITCASK_TEST_MODELS to a folder to keep it elsewhere than in
the user's cache. Engines are small on purpose: 160 tokens a step make vLLM cut every longer document into chunks.
"""

import inspect
import itertools
import os
import signal
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from logitcask_schemas.errors import CaptureSpecError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.corpora.context_tokens import ContextTokens
from logitcask_services.engines.engine import CaptureTask, EngineError

MAX_LENGTH = 700
STEP_TOKENS = 160


@pytest.fixture(scope="session")
def teacher_folder():
    pytest.importorskip("gguf")
    from demo.fetch_teacher import default_folder, fetch_model

    name = "smollm2-135m"
    where = os.environ.get("LOGITCASK_TEST_MODELS")
    return fetch_model(name, Path(where) / name if where else default_folder(name))


@pytest.fixture(scope="session")
def texts():
    """Token ids of real text: sources and docstrings of the standard library, 20 to 600 tokens."""

    def tokenized(folder):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        source = inspect.getsource(textwrap)
        lengths = [600, 333, 161, 160, 159, 64, 20]
        starts = [0, 900, 2500, 4000, 6000, 8000, 10000]
        return [
            np.array(tokenizer(source[start:]).input_ids[:length], dtype=np.uint16)
            for start, length in zip(starts, lengths, strict=True)
        ]

    return tokenized


@pytest.fixture(scope="session")
def documents(teacher_folder, texts):
    return texts(teacher_folder)


@pytest.fixture(scope="session")
def dense(teacher_folder, documents):
    """Log-probabilities of a plain Hugging Face forward pass, float64 [L - 1, V] per document."""
    return dense_logprobs(teacher_folder, documents)


def dense_logprobs(folder, documents):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        return [
            torch.log_softmax(model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0, :-1].double(), -1).numpy()
            for ids in documents
        ]


def start_engine(kind, folder, max_model_len):
    from logitcask_services.engines.factory import load_engine

    options = {"max_num_batched_tokens": STEP_TOKENS, "max_num_seqs": 8} if kind == "vllm" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's imports warn of their own accord
        return load_engine(kind, folder, max_model_len=max_model_len, options=options)


@pytest.fixture(scope="session", params=["transformers", pytest.param("vllm", marks=pytest.mark.engine)])
def engine(request, teacher_folder):
    pytest.importorskip(request.param)
    engine = start_engine(request.param, teacher_folder, MAX_LENGTH)
    yield engine
    engine.close()
    engine.close()  # idempotent


@pytest.fixture(scope="session")
def odd_teacher(tmp_path_factory):
    """A tiny random Gemma 2: soft-capped logits, tied and scaled embeddings, sliding windows; nothing like a Llama."""
    from tokenizers import Tokenizer, models
    from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("odd") / "tiny-gemma2"
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=1000,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=512,
        sliding_window=64,
        query_pre_attn_scalar=64,
        final_logit_softcapping=4.0,
        initializer_range=0.3,
    )
    Gemma2ForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(1000)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def odd_engine(odd_teacher):
    pytest.importorskip("vllm")
    engine = start_engine("vllm", odd_teacher, 256)
    yield engine
    engine.close()


SPEC = CaptureSpec(tau=0.02, pinned_ids=(0, 2), tail_logprobs=True, temperatures=(2.0,), logprob_codec="f32")


def tasks_of(documents):
    return [CaptureTask(key=f"document {i}", token_ids_L=ids) for i, ids in enumerate(documents)]


def captured(engine, tasks, spec=SPEC):
    """Documents by key; no task may fail, be lost or come twice."""
    results = list(engine.capture(tasks, spec))
    assert sorted(result.key for result in results) == sorted(task.key for task in tasks)
    assert [result.error for result in results] == [None] * len(tasks)
    return {result.key: result.document for result in results}


def rows_of(counts):
    return np.repeat(np.arange(len(counts)), counts)


@pytest.fixture(scope="module")
def records(engine, documents):
    found = captured(engine, tasks_of(documents))
    return [found[f"document {i}"].records for i in range(len(documents))]


def test_every_document_has_one_position_less_than_tokens(records, documents):
    assert [r.num_positions for r in records] == [len(ids) - 1 for ids in documents]
    for r in records:
        r.check(49_152, where="conformance")


def test_head_ids_agree_with_a_plain_forward_pass(records, documents, dense):
    agreeing = entries = 0
    for r, ids, logprobs in zip(records, documents, dense, strict=True):
        expected = logprobs >= np.log(SPEC.tau)
        rows = np.arange(len(logprobs))
        expected[rows, logprobs.argmax(-1)] = True
        expected[rows, ids[1:]] = True
        expected[:, SPEC.pinned_ids] = True
        got = np.zeros_like(expected)
        got[rows_of(r.head_counts_P), r.head_ids_H] = True
        assert got.sum() == len(r.head_ids_H)
        agreeing += int((got & expected).sum())
        entries += int((got | expected).sum())
    assert agreeing / entries >= 0.999, f"{entries - agreeing} of {entries} head entries differ"


def test_values_agree_with_a_plain_forward_pass(records, dense):
    for r, logprobs in zip(records, dense, strict=True):
        head, tail = rows_of(r.head_counts_P), rows_of(r.tail_counts_P)
        t = np.exp(logprobs)
        np.testing.assert_allclose(r.head_logprobs_H, logprobs[head, r.head_ids_H], atol=1e-3)
        np.testing.assert_allclose(r.tail_logprobs_N, logprobs[tail, r.tail_ids_N], atol=1e-3)
        np.testing.assert_allclose(r.entropy_P, -(t * logprobs).sum(-1), atol=1e-3)
        np.testing.assert_allclose(r.log_z_PT[:, 0], np.log((t**0.5).sum(-1)), atol=1e-3)
        covered = t.copy()
        covered[head, r.head_ids_H] = 0
        np.testing.assert_allclose(np.exp(r.log_tail_mass_P), covered.sum(-1), atol=1e-4)


def test_the_next_token_and_pinned_ids_are_in_every_head(records, documents):
    for r, ids in zip(records, documents, strict=True):
        rows = rows_of(r.head_counts_P)
        for next_ids in (ids[1:], np.zeros(len(ids) - 1), np.full(len(ids) - 1, 2)):
            assert len(np.unique(rows[r.head_ids_H == next_ids[rows]])) == len(ids) - 1


def test_draws_do_not_depend_on_company_or_chunks(engine, records, documents):
    """Alone, a document meets other chunk boundaries than among others; ids and draws stay, but for logit noise."""
    same = total = 0
    for i in (0, 1, 3):
        alone = captured(engine, [CaptureTask(key="alone", token_ids_L=documents[i])])["alone"].records
        for a, b in ((alone.head_ids_H, records[i].head_ids_H), (alone.tail_ids_N, records[i].tail_ids_N)):
            if len(a) == len(b):
                same += int((a == b).sum())
            total += max(len(a), len(b))
    assert same / total >= 0.999


def test_specs_change_from_one_capture_to_the_next(engine, documents):
    tasks = tasks_of(documents[-3:])
    topk = captured(engine, tasks, CaptureSpec(mode="topk", k=5))
    sampled = captured(engine, tasks, CaptureSpec(mode="sampled", draws=9))
    other_seed = captured(engine, tasks, CaptureSpec(mode="sampled", draws=9, seed=1))
    for task in tasks:
        assert set(topk[task.key].records.head_counts_P.tolist()) <= {5, 6}
        assert len(topk[task.key].records.tail_ids_N) == 0
        assert topk[task.key].records.head_logprobs_H.dtype == np.float16
        assert set(sampled[task.key].records.tail_counts_P.tolist()) == {9}
        assert (sampled[task.key].records.tail_ids_N != other_seed[task.key].records.tail_ids_N).mean() > 0.2


def test_faults_belong_to_their_document(engine, documents):
    assert engine.max_model_len == 700
    faulty = {
        "long": (np.ones(701, np.uint32), "701 tokens exceeds the teacher's 700"),
        "foreign": (np.array([5, 49_152, 6], np.uint32), "token id 49152 is outside the teacher's vocabulary of 49152"),
        "single": (np.array([5], np.uint32), "needs at least 2 tokens"),
        "empty": (np.array([], np.uint32), "needs at least 2 tokens"),
    }
    tasks = [CaptureTask(key=key, token_ids_L=ids) for key, (ids, _) in faulty.items()]
    tasks.insert(1, CaptureTask(key="good", token_ids_L=documents[-1]))
    tasks.append(CaptureTask(key="shortest", token_ids_L=np.array([5, 6], np.uint32)))
    results = {result.key: result for result in engine.capture(tasks, SPEC)}
    for key, (_, reason) in faulty.items():
        assert results[key].document is None
        assert reason in results[key].error
    assert results["good"].document.records.num_positions == len(documents[-1]) - 1
    assert results["shortest"].document.records.num_positions == 1


def test_the_longest_document_fits(engine):
    document = np.random.default_rng(0).integers(3, 49_000, 700).astype(np.uint16)
    found = captured(engine, [CaptureTask(key="longest", token_ids_L=document)])
    assert found["longest"].records.num_positions == 699


def test_tasks_are_drawn_as_needed_and_closing_aborts(engine, documents):
    drawn = itertools.count()

    def endless():
        for i in drawn:
            yield CaptureTask(key=i, token_ids_L=documents[-1])

    stream = engine.capture(endless(), SPEC)
    first = {next(stream).key for _ in range(3)}
    stream.close()
    assert len(first) == 3
    assert next(drawn) < 1000
    # Nothing of the aborted capture turns up in the next one.
    assert captured(engine, tasks_of(documents[-2:])).keys() == {"document 0", "document 1"}


def test_one_capture_at_a_time(engine, documents):
    if engine.identity.engine != "vllm":
        pytest.skip("plain forward passes do not mind")
    stream = engine.capture(tasks_of(documents[-2:]), SPEC)
    next(stream)
    with pytest.raises(EngineError, match="another capture of this engine is still open"):
        next(engine.capture(tasks_of(documents[-1:]), SPEC))
    assert len(list(stream)) == 1


def test_no_tasks_no_results(engine):
    assert list(engine.capture([], SPEC)) == []


def test_pinned_ids_outside_the_vocabulary_are_refused(engine, documents):
    with pytest.raises(CaptureSpecError, match=r"pinned ids \[50000\] are outside"):
        list(engine.capture(tasks_of(documents[:1]), CaptureSpec(pinned_ids=(50_000,))))


def test_identity(engine, teacher_folder):
    identity = engine.identity
    assert identity.model == teacher_folder.name
    assert identity.vocab_size == 49_152
    assert identity.dtype in ("float32", "bfloat16")
    assert identity.template_hash is not None
    assert identity.engine in ("vllm", "transformers")


@pytest.mark.engine
def test_soft_capped_and_tied_logits_are_the_models_own(odd_engine, odd_teacher):
    """The wrapper on an architecture that is nothing like a Llama: its own logits, not a guess at them."""
    generator = np.random.default_rng(1)
    documents = [generator.integers(3, 1000, length).astype(np.uint16) for length in (250, 100, 30)]
    spec = CaptureSpec(mode="topk", k=20, logprob_codec="f32")
    tasks = [CaptureTask(key=i, token_ids_L=ids) for i, ids in enumerate(documents)]
    found = {result.key: result for result in odd_engine.capture(tasks, spec)}
    dense = dense_logprobs(odd_teacher, documents)
    spreads = np.concatenate([logprobs.max(-1) - logprobs.min(-1) for logprobs in dense])
    assert 6 < spreads.max() <= 8  # the cap of 4 is at work
    for i, logprobs in enumerate(dense):
        assert found[i].error is None
        records = found[i].document.records
        rows = np.repeat(np.arange(records.num_positions), records.head_counts_P)
        np.testing.assert_allclose(records.head_logprobs_H, logprobs[rows, records.head_ids_H], atol=1e-3)


@pytest.mark.engine
def test_a_killed_engine_process_is_reported_and_not_waited_for(odd_engine):
    """Last, since it ends the engine: what the kernel does to a process that takes too much memory."""
    ids = np.random.default_rng(2).integers(3, 1000, 200).astype(np.uint16)
    stream = odd_engine.capture((CaptureTask(key=i, token_ids_L=ids) for i in itertools.count()), CaptureSpec())
    assert next(stream).error is None
    (process,) = odd_engine._engine.engine_core.resources.engine_manager.processes
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="engine process died"):
        list(stream)
    with pytest.raises(EngineError, match="engine process died"):
        next(odd_engine.capture([CaptureTask(key="late", token_ids_L=ids)], CaptureSpec()))


CONTEXT, OWN_START = 40, 3
"""Tokens of context, and how many of a document's first ones it stands in place of."""


def under_context(documents):
    """Tasks that read the beginning of one document before others, some in place of their beginning, or in part."""
    shared = documents[0][:CONTEXT].astype(np.uint32)
    halves = np.array([[10, 14], [30, 31]], np.uint32)
    shapes = [
        (ContextTokens(token_ids_C=shared), None),
        (ContextTokens(token_ids_C=shared, replaced=1), halves),
        (ContextTokens(token_ids_C=shared, replaced=OWN_START), np.array([[OWN_START - 1, 50]], np.uint32)),
        (ContextTokens(token_ids_C=documents[0][:300].astype(np.uint32)), halves),
        (None, halves),
        (ContextTokens(token_ids_C=documents[0][:300].astype(np.uint32)), None),
    ]
    ids = documents[5]
    return [
        CaptureTask(key=f"shape {number}", token_ids_L=ids, context=context, recorded_R2=recorded)
        for number, (context, recorded) in enumerate(shapes)
    ]


@pytest.fixture(scope="session")
def dense_under_context(teacher_folder, documents):
    """A plain forward pass over context and document, float64, all rows."""
    tasks = under_context(documents)
    read = [task.token_ids_L if task.context is None else task.read_ids for task in tasks]
    return dense_logprobs(teacher_folder, read)


def worst_difference(document, logprobs_RV, shift):
    """Between the stored log-probability of each next token and the dense one in the row `shift` behind."""
    records, positions = document.records, document.extent.positions(len(document.token_ids_L))
    next_ids = document.token_ids_L[positions + 1]
    at_next = records.head_ids_H == next_ids[rows_of(records.head_counts_P)]
    stored = records.head_logprobs_H[at_next]
    assert len(stored) == len(positions)
    return np.abs(stored - logprobs_RV[positions + shift, next_ids]).max()


def test_records_under_a_context_are_those_of_context_and_document(engine, documents, dense_under_context):
    """The first document under each context fills the engine's prefix cache, later ones may read it."""
    tasks = under_context(documents)
    for _ in range(2):
        done = captured(engine, tasks)
        for task, logprobs in zip(tasks, dense_under_context, strict=True):
            document = done[task.key]
            assert document.extent == task.extent or np.array_equal(document.extent.recorded_R2, task.recorded_R2)
            assert worst_difference(document, logprobs, task.shift) < 2e-4
            if len(document.records.head_counts_P) > 10:
                assert worst_difference(document, logprobs, task.shift - 1) > 1, "shifted by one is seen"
    alone = captured(engine, [CaptureTask(key="alone", token_ids_L=documents[5])])["alone"]
    assert worst_difference(alone, dense_under_context[5], tasks[5].shift) > 0.5, "the context makes a difference"


def test_records_of_some_positions_are_those_of_a_whole_capture(engine, documents):
    """Byte for byte in draws: they are keyed by the document's tokens and the position, whatever else is recorded."""
    ids = documents[1]
    ranges = np.array([[0, 1], [5, 6], [100, 180], [200, 201], [330, 332]], np.uint32)
    whole = captured(engine, [CaptureTask(key=0, token_ids_L=ids)])[0].records
    part = captured(engine, [CaptureTask(key=0, token_ids_L=ids, recorded_R2=ranges)])[0].records
    keep = np.zeros(len(ids) - 1, dtype=np.bool_)
    keep[np.concatenate([np.arange(start, stop) for start, stop in ranges])] = True
    same = whole.select(keep)
    assert np.array_equal(part.tail_ids_N, same.tail_ids_N)
    assert np.array_equal(part.head_ids_H, same.head_ids_H)
    np.testing.assert_allclose(part.head_logprobs_H, same.head_logprobs_H, atol=1e-4)


def test_what_lies_in_the_prefix_cache_is_computed_again_where_it_is_recorded(engine, documents):
    """Documents that go on alike behind their context: a cached prefix reaches into what must be recorded."""
    context = ContextTokens(token_ids_C=documents[0][:300].astype(np.uint32))
    ids = documents[1][:300]
    other = ids.copy()
    other[-1] = 17
    tasks = [CaptureTask(key=n, token_ids_L=row, context=context) for n, row in enumerate([ids, other, ids])]
    done = [captured(engine, [task])[task.key].records for task in tasks]
    for records in done[1:]:
        assert records.num_positions == 299
        assert np.array_equal(records.head_ids_H[:500], done[0].head_ids_H[:500])


def test_a_context_that_leaves_no_room_is_refused(engine, documents):
    context = ContextTokens(token_ids_C=np.resize(documents[0], MAX_LENGTH - 10).astype(np.uint32))
    wide = ContextTokens(token_ids_C=np.array([engine.identity.vocab_size], np.uint32))
    tasks = [CaptureTask(key=n, token_ids_L=documents[6], context=each) for n, each in enumerate([context, wide])]
    errors = {result.key: result.error for result in engine.capture(tasks, SPEC)}
    assert f"20 tokens under a context of {MAX_LENGTH - 10} exceeds the teacher's {MAX_LENGTH}" in errors[0]
    assert "outside the teacher's vocabulary" in errors[1]
