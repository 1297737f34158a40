"""What every generator must do, on a real teacher: write and score as a plain forward pass says, stop, name faults."""

import itertools
import os
import signal
import warnings

import numpy as np
import pytest

from logitcask_schemas.api.generation_steps import Sampling
from logitcask_schemas.model_source import ModelSource
from logitcask_services.engines.engine import EngineError
from logitcask_services.engines.factory import load_engine, load_generator
from logitcask_services.engines.generator import GenerationTask, ScoreTask
from logitcask_services.engines.process.door import ProcessGenerator, start_generator
from tests.support.services.dense_teacher import DenseTeacher, sampled_from

WINDOW = 700
OPTIONS = {"vllm": {"max_num_batched_tokens": 160, "max_num_seqs": 16}, "transformers": {}}
"""Steps far below the window: a CPU that writes must not cut prompts into them."""
TIE = 1e-3
"""Nats between two tokens within which either may be the greedy one."""
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n",
    "<|im_start|>user\nWrite one sentence about the sea.<|im_end|>\n<|im_start|>assistant\n",
)
END = 2


COMPUTING = ("transformers", pytest.param("vllm", marks=pytest.mark.engine))


@pytest.fixture(scope="module", params=[*COMPUTING, "process"])
def generator(request, teacher_folder):
    """`process`: transformers in a process of its own."""
    if request.param == "process":
        source = ModelSource(folder=teacher_folder, name=teacher_folder.name)
        in_process = start_generator("transformers", source, dtype="float32", max_model_len=WINDOW)
        yield in_process
        in_process.close()
        in_process.close()
        return
    pytest.importorskip(request.param)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's imports warn of their own accord
        generator = load_generator(
            request.param, teacher_folder, dtype="float32", max_model_len=WINDOW, options=OPTIONS[request.param]
        )
    yield generator
    generator.close()
    generator.close()  # idempotent


@pytest.fixture(scope="module")
def teacher(teacher_folder):
    return DenseTeacher(teacher_folder)


@pytest.fixture(scope="module")
def tokenizer(teacher_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(teacher_folder)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return [np.array(tokenizer(text).input_ids, np.uint32) for text in PROMPTS]


def write(key, prompt_ids, seed=0, **sampling):
    return GenerationTask(
        key=key, prompt_ids_C=prompt_ids, sampling=Sampling(**{"max_tokens": 24, **sampling}), seed=seed
    )


def results_of(generator, tasks):
    """Results by key; no task may fail, be lost or come twice."""
    results = list(generator.generate(tasks))
    assert sorted(repr(result.key) for result in results) == sorted(repr(task.key) for task in tasks)
    assert [result.error for result in results] == [None] * len(tasks)
    return {result.key: result for result in results}


def chosen(logprobs_NV, token_ids_N):
    return np.take_along_axis(logprobs_NV, token_ids_N[:, None].astype(np.int64), 1)[:, 0]


def test_greedy_text_is_that_of_a_plain_loop(generator, teacher, prompts, tokenizer):
    """Each token has the largest logit behind those before it: by induction the text is the loop's."""
    results = results_of(generator, [write(i, ids) for i, ids in enumerate(prompts)])
    for i, ids in enumerate(prompts):
        logprobs_NV = teacher.of_written(ids, results[i].token_ids_N)
        of_text = chosen(logprobs_NV, results[i].token_ids_N)
        assert (of_text >= logprobs_NV.max(-1) - TIE).all()
        assert results[i].logprob == pytest.approx(of_text.sum(), abs=1e-3 * len(of_text))
        assert results[i].text == tokenizer.decode(results[i].token_ids_N, skip_special_tokens=True)
        assert results[i].finish == ("stop" if results[i].token_ids_N[-1] == END else "length")
        assert len(results[i].token_ids_N) == 24 or results[i].finish == "stop"


@pytest.mark.parametrize("sampling", [{"temperature": 0.7, "top_p": 0.9}, {"temperature": 1.5, "top_k": 40}])
def test_logprobs_are_the_models_own_whatever_was_sampled_with(generator, teacher, prompts, sampling):
    results = results_of(generator, [write(i, ids, seed=i, **sampling) for i, ids in enumerate(prompts)])
    for i, ids in enumerate(prompts):
        logprobs_NV = teacher.of_written(ids, results[i].token_ids_N)
        assert results[i].logprob == pytest.approx(chosen(logprobs_NV, results[i].token_ids_N).sum(), abs=1e-3)
        scaled = logprobs_NV / sampling["temperature"]
        scaled -= np.log(np.exp(scaled).sum(-1, keepdims=True))
        assert abs(results[i].logprob - chosen(scaled, results[i].token_ids_N).sum()) > 0.1  # a wrong formula is seen


def test_a_seed_decides_the_text_alone_and_in_company(generator, prompts):
    sampling = {"temperature": 1.0, "max_tokens": 12}
    company = results_of(generator, [write(i, prompts[i % 3], seed=i, **sampling) for i in range(16)])
    for i in (0, 4):
        alone = results_of(generator, [write(i, prompts[i % 3], seed=i, **sampling)])[i]
        np.testing.assert_array_equal(alone.token_ids_N, company[i].token_ids_N)
        assert alone.text == company[i].text
        assert alone.logprob == pytest.approx(company[i].logprob, abs=1e-3)
    assert len({company[i].token_ids_N.tobytes() for i in range(0, 16, 3)}) == 6  # another seed, another text


@pytest.mark.parametrize("generator", COMPUTING, indirect=True)
@pytest.mark.parametrize(
    "sampling",
    [{"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.8}, {"temperature": 1.0, "top_k": 5, "min_p": 0.05}],
)
def test_first_tokens_are_drawn_from_the_models_distribution(generator, teacher, prompts, sampling):
    """Chi-square over 100 fixed seeds; the bound is four standard deviations over its mean.

    In another process it is the same generator, whose draws depend on the seed alone.
    """
    ids, seeds = prompts[0], 100
    tasks = [write(seed, ids, seed=seed, max_tokens=1, **sampling) for seed in range(seeds)]
    drawn = np.array([result.token_ids_N[0] for result in results_of(generator, tasks).values()], np.int64)
    counts = np.bincount(drawn, minlength=49_152)
    logprobs_V = teacher.logprobs(ids)[-1]

    def excess(expected_V):
        frequent = expected_V * seeds >= 5
        observed = np.append(counts[frequent], counts[~frequent].sum())
        expected = np.append(expected_V[frequent], max(expected_V[~frequent].sum(), 1e-4)) * seeds
        freedom = len(expected) - 1
        return (((observed - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)

    assert excess(sampled_from(logprobs_V, Sampling(**sampling))) < 4
    assert (sampled_from(logprobs_V, Sampling(**sampling))[drawn] > 0).all()
    hotter = {**sampling, "temperature": 2 * sampling["temperature"], "top_k": 0, "min_p": 0}
    assert excess(sampled_from(logprobs_V, Sampling(**hotter))) > 4


def test_the_most_likely_token_alone_is_greedy(generator, prompts):
    greedy = results_of(generator, [write(i, ids) for i, ids in enumerate(prompts)])
    single = results_of(generator, [write(i, ids, seed=7, temperature=1.0, top_k=1) for i, ids in enumerate(prompts)])
    for i in range(len(prompts)):
        np.testing.assert_array_equal(single[i].token_ids_N, greedy[i].token_ids_N)


def test_a_stop_text_ends_a_text_before_it(generator, teacher, prompts, tokenizer):
    """Stop texts within a token, across two, at the very start, and one that never comes."""
    ids = prompts[0]
    plain = results_of(generator, [write("plain", ids)])["plain"]
    written = plain.token_ids_N.tolist()
    texts = [tokenizer.decode(written[:count]) for count in range(len(written) + 1)]
    pieces = [after[len(before) :] for before, after in itertools.pairwise(texts)]
    inside = next(piece for piece in pieces[3:] if len(piece) >= 4)[1:-1]
    across = pieces[8][-1] + pieces[9][:2]
    stops: dict[str, tuple[str, ...]] = {
        "inside": (inside,),
        "across": (across,),
        "start": (pieces[0][:2],),
        "never": ("\N{SNOWMAN}",),
    }
    stops["both"] = ("\N{SNOWMAN}", across, inside)
    results = results_of(generator, [write(key, ids, stop=stop) for key, stop in stops.items()])
    logprobs_N = chosen(teacher.of_written(ids, plain.token_ids_N), plain.token_ids_N)
    for key, stop in stops.items():
        starts = [texts[-1].find(one) for one in stop if one in texts[-1]]
        kept = max(count for count, text in enumerate(texts) if not starts or len(text) <= min(starts))
        np.testing.assert_array_equal(results[key].token_ids_N, written[:kept])
        assert results[key].text == texts[kept]
        assert results[key].finish == ("stop" if starts else "length")
        assert results[key].logprob == pytest.approx(logprobs_N[:kept].sum(), abs=1e-3)
    assert len(results["start"].token_ids_N) == 0
    assert 0 < len(results["both"].token_ids_N) < 24


def test_the_end_token_ends_a_text_and_stays(generator, prompts):
    tasks = [write("ends", prompts[2], max_tokens=200), write("longer", prompts[2], max_tokens=200, min_tokens=100)]
    results = results_of(generator, tasks)
    assert results["ends"].finish == "stop"
    assert results["ends"].token_ids_N.tolist().index(END) == len(results["ends"].token_ids_N) - 1 < 100
    assert "<|im_end|>" not in results["ends"].text
    assert END not in results["longer"].token_ids_N[:100]
    assert len(results["longer"].token_ids_N) >= 100


def test_a_stop_text_does_not_count_before_min_tokens(generator, prompts):
    plain = results_of(generator, [write(0, prompts[0])])[0]
    stop = next(character for character in plain.text if not character.isspace())
    later = results_of(generator, [write(0, prompts[0], stop=(stop,), min_tokens=20)])[0]
    np.testing.assert_array_equal(later.token_ids_N[:20], plain.token_ids_N[:20])


def test_scores_are_those_of_a_plain_forward_pass(generator, teacher, tokenizer, prompts):
    """Also behind a prompt that was written after before, whose keys are cached."""
    ids_L = np.array(tokenizer(PROMPTS[2] + "The sea is wide and blue, and it never sleeps.").input_ids, np.uint32)
    expected = chosen(teacher.logprobs(ids_L)[:-1], ids_L[1:])
    results_of(generator, [write("cached", ids_L, max_tokens=2)])
    firsts = (1, 2, len(prompts[2]), len(ids_L) - 2, len(ids_L) - 1)
    tasks = [ScoreTask(key=first, token_ids_L=ids_L, first=first) for first in firsts]
    results = results_of(generator, [*tasks, write("beside", prompts[0], seed=1, temperature=1.0)])
    for first in firsts:
        assert len(results[first].logprobs_N) == len(ids_L) - first
        np.testing.assert_allclose(results[first].logprobs_N, expected[first - 1 :], atol=1e-3)
    assert abs(results[2].logprobs_N[:-1] - expected[2:]).max() > 1  # shifted by one


def test_the_whole_window_can_be_read_and_written(generator, teacher):
    ids_L = np.random.default_rng(0).integers(3, 49_000, WINDOW).astype(np.uint32)
    tasks = [ScoreTask(key="score", token_ids_L=ids_L, first=WINDOW - 3), write("write", ids_L[:-3], max_tokens=3)]
    results = results_of(generator, tasks)
    expected = chosen(teacher.logprobs(ids_L)[:-1], ids_L[1:])[WINDOW - 4 :]
    np.testing.assert_allclose(results["score"].logprobs_N, expected, atol=1e-3)
    assert len(results["write"].token_ids_N) == 3


def test_prompts_longer_than_a_step_have_seeds(generator):
    """On a CPU, vLLM's own settings would cut them into chunks, and die of the seeds."""
    rng = np.random.default_rng(1)
    tasks = [
        write(i, rng.integers(3, 49_000, 400 + 50 * i).astype(np.uint32), seed=i, temperature=1.0, max_tokens=2)
        for i in range(4)
    ]
    results = results_of(generator, tasks)
    assert [len(results[i].token_ids_N) for i in range(4)] == [2] * 4


def test_faults_belong_to_their_task(generator, prompts):
    assert generator.max_model_len == WINDOW
    ids, long = prompts[0], np.ones(WINDOW, np.uint32)
    foreign = np.array([5, 49_152], np.uint32)
    faulty = {
        "empty": (write("empty", ids[:0]), "the prompt has no tokens"),
        "long": (write("long", long), "the prompt has 700 tokens, the teacher's window 700; shorten it"),
        "budget": (write("budget", ids, max_tokens=699), "exceed the teacher's window of 700"),
        "foreign": (write("foreign", foreign), "token id 49152 is outside the teacher's vocabulary of 49152"),
        "first": (ScoreTask(key="first", token_ids_L=ids, first=0), "expected 1 <= first"),
        "behind": (ScoreTask(key="behind", token_ids_L=ids, first=len(ids)), "expected 1 <= first"),
        "none": (ScoreTask(key="none", token_ids_L=ids[:0], first=1), "expected 1 <= first"),
        "longer": (ScoreTask(key="longer", token_ids_L=np.ones(701, np.uint32), first=1), "701 tokens"),
        "alien": (ScoreTask(key="alien", token_ids_L=foreign, first=1), "token id 49152 is outside"),
    }
    if generator.identity.engine == "vllm":
        faulty["hot"] = (
            write("hot", ids, temperature=2.5),
            "samples at temperatures from 0.01 to 2.0, and at 0, not 2.5",
        )
        faulty["cold"] = (write("cold", ids, temperature=0.001), "and at 0, not 0.001")
    tasks = [task for task, _ in faulty.values()]
    tasks.insert(1, write("good", ids, max_tokens=2))
    results = {result.key: result for result in generator.generate(tasks)}
    assert results.keys() == {"good", *faulty}
    for key, (task, reason) in faulty.items():
        assert reason in results[key].error
        values = results[key].token_ids_N if isinstance(task, GenerationTask) else results[key].logprobs_N
        assert len(values) == 0
    assert results["good"].error is None
    assert len(results["good"].token_ids_N) == 2


def test_tasks_are_drawn_as_needed_and_closing_aborts(generator, prompts):
    drawn = itertools.count()
    stream = generator.generate(write(i, prompts[0], max_tokens=2) for i in drawn)
    assert len({next(stream).key for _ in range(3)}) == 3
    stream.close()
    assert next(drawn) < 200
    # Nothing of what was aborted turns up later.
    assert results_of(generator, [write("after", prompts[1], max_tokens=2)]).keys() == {"after"}


def test_results_come_as_they_are_done(generator, prompts):
    lengths = (40, 1, 8, 2)
    results = list(
        generator.generate([write(length, prompts[0], max_tokens=length, min_tokens=length) for length in lengths])
    )
    assert {result.key: len(result.token_ids_N) for result in results} == {length: length for length in lengths}
    if generator.identity.engine == "vllm":
        assert [result.key for result in results] == sorted(lengths)


def test_one_stream_at_a_time(generator, prompts):
    if generator.identity.engine != "vllm":
        pytest.skip("plain forward passes do not mind")
    stream = generator.generate([write(i, prompts[0], max_tokens=2) for i in range(2)])
    next(stream)
    with pytest.raises(EngineError, match="another `generate` of this teacher is still open"):
        next(generator.generate([write("second", prompts[0])]))
    assert len(list(stream)) == 1


def test_no_tasks_no_results(generator):
    assert list(generator.generate([])) == []


def test_the_identity_is_that_of_the_engine_that_captures(generator, teacher_folder):
    kind = generator.identity.engine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = load_engine(kind, teacher_folder, dtype="float32", max_model_len=WINDOW, options=OPTIONS[kind])
    try:
        assert engine.identity == generator.identity
    finally:
        engine.close()


def test_a_killed_engine_process_is_reported_and_not_waited_for(generator, prompts):
    """Last, since it ends the engine: what the kernel does to a process that takes too much memory."""
    if not isinstance(generator, ProcessGenerator) and generator.identity.engine != "vllm":
        assert not generator.interrupt()  # there is no process but this one
        return
    stream = generator.generate(write(i, prompts[0]) for i in itertools.count())
    assert next(stream).error is None
    if isinstance(generator, ProcessGenerator):
        assert generator.interrupt()
        death = "process .* ended"
    else:
        (process,) = generator._engine.engine_core.resources.engine_manager.processes
        os.kill(process.pid, signal.SIGKILL)
        death = "engine process died"
    with pytest.raises(EngineError, match=death):
        list(stream)
    with pytest.raises(EngineError, match=death):
        next(generator.generate([write("late", prompts[0])]))
