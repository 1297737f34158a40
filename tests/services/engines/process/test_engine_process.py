"""An engine in a process of its own: what it gives, what it dies of, and that nothing of it is left."""

import errno
import io
import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from logitcask_schemas.api.generation_steps import Sampling
from logitcask_schemas.errors import CaptureSpecError, ModelError
from logitcask_schemas.model_source import ModelSource
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_services.corpora.context_tokens import ContextTokens
from logitcask_services.engines.engine import CaptureTask, EngineError
from logitcask_services.engines.factory import load_engine
from logitcask_services.engines.generator import GenerationTask, ScoreTask, TeacherTask
from logitcask_services.engines.process import log_lines
from logitcask_services.engines.process.door import start_engine
from logitcask_services.engines.process.frames import (
    MAGIC,
    MAX_BODY_BYTES,
    PREFIX,
    ConnectionGoneError,
    Frame,
    encode,
)
from logitcask_services.engines.process.loads import interrupt_loading
from logitcask_services.engines.process.log_lines import forward_lines
from logitcask_services.engines.process.process import EngineProcess
from tests.support.services.fake_generator import FakeGenerator
from tests.support.services.fake_teacher import GARBAGE, POISON, FakeEngine
from tests.support.services.process_engines import fake_engine, fake_writer, is_alive
from tests.support.services.service_harness import server_environment, wait_for

SPEC = CaptureSpec()


def tasks_of(count, start=0):
    return [
        CaptureTask(key=("key", number), token_ids_L=np.arange(number % 90, number % 90 + 2 + number % 40, dtype="u2"))
        for number in range(start, start + count)
    ]


@pytest.fixture
def started():
    """A function: an engine of `process_engines`, which is ended with the test."""
    engines = []

    def start(*arguments, **document):
        engines.append(fake_engine(*arguments, **document))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()
        assert not is_alive(engine.pid)


def same(result, expected):
    assert (result.key, result.error) == (expected.key, expected.error)
    if expected.document is None:
        assert result.document is None
        return
    mine, theirs = result.document, expected.document
    assert mine.id == theirs.id
    for name in ("head_counts_P", "head_ids_H", "head_logprobs_H", "tail_counts_P", "tail_ids_N", "tail_logprobs_N"):
        np.testing.assert_equal(getattr(mine.records, name), getattr(theirs.records, name))
    assert list(mine.records.position_columns) == list(theirs.records.position_columns)
    for name, column in theirs.records.position_columns.items():
        np.testing.assert_array_equal(mine.records.position_columns[name], column, strict=True)
    assert (mine.hints is None) == (theirs.hints is None)
    if mine.hints is not None:
        for name, array in theirs.hints.arrays.items():
            np.testing.assert_array_equal(mine.hints.arrays[name], array, strict=True)


def test_results_are_those_of_the_engine_itself(started):
    """Order, errors, contexts, ranges, hints and records that no engine should give."""
    hints = HintSpec(layers=(0, 2), positions="last")
    tasks = tasks_of(200)
    tasks[3] = CaptureTask(key=3, token_ids_L=np.array([1, POISON, 5], np.uint32))
    tasks[4] = CaptureTask(key=4, token_ids_L=np.array([1, GARBAGE, 5], np.uint32))
    context = ContextTokens(token_ids_C=np.array([4, 5, 6], np.uint32), replaced=1)
    tasks[5] = CaptureTask(
        key=None,
        token_ids_L=np.arange(20, dtype=np.uint32),
        context=context,
        recorded_R2=np.array([[2, 5], [7, 9]], np.uint32),
        spec=CaptureSpec(seed=5, hints=hints),
    )
    engine, itself = started(), FakeEngine()
    for result, expected in zip(engine.capture(tasks, SPEC), itself.capture(tasks, SPEC), strict=True):
        same(result, expected)
    assert (engine.identity, engine.max_model_len, engine.hint_shape) == (
        itself.identity, itself.max_model_len, itself.hint_shape,
    )  # fmt: skip
    assert list(engine.capture([], SPEC)) == []


def test_texts_and_scores_are_those_of_the_generator_itself():
    prompt = np.arange(30, 60, dtype=np.uint32)
    tasks: list[TeacherTask] = [
        GenerationTask(
            key=number, prompt_ids_C=prompt[number:], sampling=Sampling(temperature=0.5), seed=2**63 + number
        )
        for number in range(8)
    ]
    tasks += [ScoreTask(key="score", token_ids_L=prompt, first=3), ScoreTask(key="none", token_ids_L=prompt, first=99)]
    generator = fake_writer()
    results = list(generator.generate(tasks))
    for result, expected in zip(results, FakeGenerator().generate(tasks), strict=True):
        assert type(result) is type(expected)
        for name in type(expected).__slots__:
            np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))
    generator.close()
    generator.close()
    assert not is_alive(generator.pid)


def test_which_hints_it_gives(started):
    plain, hinted = started(), started(hints={"layers": [1, 3], "of": "qkv"})
    for engine, expected in ((plain, set()), (hinted, {("qkv", (1,)), ("qkv", (1, 3))})):
        asked = {(of, layers) for of in ("hidden", "v", "qkv") for layers in ((1,), (2,), (1, 3), (1, 2, 3))}
        assert {each for each in asked if engine.gives_hints(HintSpec(of=each[0], layers=each[1]))} == expected
    with pytest.raises(CaptureSpecError, match="loaded without hints"):
        next(plain.capture(tasks_of(1), CaptureSpec(hints=HintSpec(layers=(1,)))))
    assert len(list(plain.capture(tasks_of(3), SPEC))) == 3, "a spec that is refused costs no engine"


def test_hints_of_a_real_teacher(tiny_llama):
    source = ModelSource(folder=tiny_llama, name="tiny")
    engine = start_engine("transformers", source)
    itself = load_engine("transformers", source)
    spec = CaptureSpec(hints=HintSpec(layers=(0, 2), codec="i8"), temperatures=(2.0,), tail_logprobs=True)
    tasks = [CaptureTask(key=n, token_ids_L=np.arange(n, n + 30, dtype=np.uint16)) for n in range(4)]
    for result, expected in zip(engine.capture(tasks, spec), itself.capture(tasks, spec), strict=True):
        assert result.error is None
        same(result, expected)
    assert engine.identity == itself.identity
    for of in ("hidden", "v", "qkv"):
        hints = HintSpec(layers=(1, 2), of=of)
        assert engine.gives_hints(hints) == itself.gives_hints(hints)
    engine.close()


def test_few_tasks_are_drawn_ahead_and_a_closed_stream_leaves_nothing(started):
    engine, drawn = started(), itertools.count()
    endless = (CaptureTask(key=number, token_ids_L=np.arange(9, dtype="u2")) for number in drawn)
    stream = engine.capture(endless, SPEC)
    next(stream)
    assert next(drawn) <= 7 + 8 + 1, "what the engine has in hand, and a few ahead"
    with pytest.raises(EngineError, match="another capture of this engine is still open"):
        next(engine.capture(tasks_of(1), SPEC))
    stream.close()
    assert [result.key for result in engine.capture(tasks_of(3), SPEC)] != []
    assert {result.key for result in engine.capture(tasks_of(5), SPEC)} == {task.key for task in tasks_of(5)}


def test_none_just_now_is_no_end(started):
    """The engine asks again, and is not asked for more than it gives meanwhile."""
    engine, waiting = started(in_flight=3), tasks_of(20)
    asked = []

    def some():
        for task in waiting:
            yield task
            asked.append(task.key)
            yield None

    assert {result.key for result in engine.capture(some(), SPEC)} == {task.key for task in waiting}
    assert len(asked) == 20


def test_what_the_source_raises_is_the_callers_and_the_engine_goes_on(started):
    def broken():
        yield from tasks_of(10)
        raise OSError("the disk is gone")

    engine = started()
    with pytest.raises(OSError, match="the disk is gone"):
        list(engine.capture(broken(), SPEC))
    assert len(list(engine.capture(tasks_of(9), SPEC))) == 9


@pytest.mark.parametrize(
    ("fault", "words"), [("killed", "SIGKILL"), ("memory", "MemoryError"), ("raised", "RuntimeError: a fault of")]
)
def test_faults_are_engine_errors_and_end_nothing_else(started, tmp_path, fault, words):
    faults = tmp_path / "faults"
    faults.write_text(fault)
    engine = started(faults=str(faults), after=20)
    stream, got = engine.capture(tasks_of(500), SPEC), []
    with pytest.raises(EngineError, match=words):
        got.extend(stream)
    assert engine.interrupt()
    with pytest.raises(EngineError, match=f"process {engine.pid} ended"):
        list(engine.capture(tasks_of(3), SPEC))


@pytest.mark.parametrize("fault", ["hung", "stopped"])
def test_a_step_that_does_not_come_back_is_seen_and_interrupted(started, tmp_path, fault):
    faults = tmp_path / "faults"
    faults.write_text(fault)
    engine = started(faults=str(faults), after=20)
    raised = []

    def work():
        with pytest.raises(EngineError, match="SIGKILL") as error:
            list(engine.capture(tasks_of(500), SPEC))
        raised.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    wait_for(lambda: engine.step_silence > 2.5)
    assert worker.is_alive()
    assert engine.interrupt()
    worker.join(30)
    assert raised
    assert not is_alive(engine.pid)


def test_a_slow_engine_that_steps_is_not_silent(started):
    engine = started(seconds_per_document=0.2, in_flight=1)
    silences = [engine.step_silence for _ in engine.capture(tasks_of(15), SPEC)]
    assert max(silences) < 1.5, "a beat a second, a step in 0.2 s"


def test_a_load_that_is_refused_says_why(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json"):
        start_engine("transformers", ModelSource(folder=tmp_path, name="empty"))
    with pytest.raises(EngineError, match="RuntimeError: a fault of the engine's own"):
        fake_engine("load_nothing", fault="raised")
    with pytest.raises(EngineError, match="SIGKILL"):
        fake_engine("load_nothing", fault="killed")
    with pytest.raises(EngineError, match="no_such_module"):
        EngineProcess("no_such_module:load", {})


def test_a_load_can_be_interrupted_with_all_that_it_started(tmp_path):
    pids, ended = tmp_path / "pids", []

    def load():
        with pytest.raises(EngineError, match="SIGKILL") as error:
            fake_engine("load_slowly", pids=str(pids))
        ended.append(error)

    loader = threading.Thread(target=load)
    loader.start()
    wait_for(lambda: pids.exists() and pids.read_text())
    processes = [int(pid) for pid in pids.read_text().split()]
    assert all(map(is_alive, processes))
    assert loader.ident is not None
    assert not interrupt_loading(threading.get_ident()), "this thread loads nothing"
    assert interrupt_loading(loader.ident)
    loader.join(30)
    assert ended
    wait_for(lambda: not any(map(is_alive, processes)))


PARENT = """
import sys, threading
from tests.support.services.process_engines import fake_engine
fake_engine("load_slowly", pids=sys.argv[1])
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_service_that_is_killed_leaves_no_process_behind(tmp_path, number):
    pids = tmp_path / "pids"
    with subprocess.Popen([sys.executable, "-c", PARENT, str(pids)], env=server_environment()) as parent:
        wait_for(lambda: pids.exists() and pids.read_text(), 60)
        processes = [int(pid) for pid in pids.read_text().split()]
        assert all(map(is_alive, processes))
        parent.send_signal(number)
        parent.wait()
    wait_for(lambda: not any(map(is_alive, processes)))


PLAIN = Frame(head={"is": "beat", "age": "long"})


def said(frame):
    return b"".join(bytes(part) for part in encode(frame))


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (b"not a frame at all", "sent what is no message, and was ended .*a frame starts with"),
        (PREFIX.pack(MAGIC, 10, MAX_BODY_BYTES + 1), "sent what is no message, and was ended .*a body of at most"),
        (said(PLAIN), "sent what is no message, and was ended .*should say what it `is`"),
        (said(Frame(head={"stream": 1})), "sent what is no message, and was ended .*should say what it `is`"),
        (said(Frame(head={"is": "result", "stream": 1, "number": 99})), r"\('result'\) that cannot be read: KeyError"),
        (said(Frame(head={"is": "result", "stream": 1, "number": 3})), r"\('result'\) that cannot be read: KeyError"),
        (said(Frame(head={"is": "drawn", "stream": 1, "tasks": 99})), r"\('drawn'\) that cannot be read: IndexError"),
        (said(Frame(head={"is": "failed", "stream": 1})), r"\('failed'\) that cannot be read: KeyError"),
        (said(Frame(head={"is": "singing", "stream": 1})), r"\('singing'\) that cannot be read"),
    ],
    ids=["bytes", "size", "beat", "nameless", "number", "no-records", "count", "no-error", "unknown"],
)
def test_what_is_no_message_ends_the_engine_and_is_told(says, words):
    engine = fake_engine("load_babbling", says=says.hex())
    with pytest.raises(EngineError, match=words):
        list(engine.capture(tasks_of(500), SPEC))
    engine.close()
    assert not is_alive(engine.pid)


def test_a_flood_of_lines_holds_nothing_up(caplog):
    caplog.set_level(logging.INFO)
    engine = fake_engine("load_flooding", blocks=300)
    assert len(list(engine.capture(tasks_of(9), SPEC))) == 9
    engine.close()
    lines = [record.getMessage() for record in caplog.records if record.name == log_lines.__name__]
    told = sum(int(line.split("(")[1].split()[0]) for line in lines if "more lines left out" in line)
    assert sum("a line of the engine" in line for line in lines) + told == 300 * 3000
    assert told > 800_000


def test_lines_that_are_left_out_are_counted_across_blocks(caplog):
    caplog.set_level(logging.INFO)
    lines = [b"%d\n" % number for number in range(200)] + [b"y" * 200_000 + b"\n", b"z\n" * 70_000, b"w" * 100_000]
    forward_lines(io.BufferedReader(io.BytesIO(b"".join(lines))), "engine 7")
    texts = [record.getMessage() for record in caplog.records if record.name == log_lines.__name__]
    assert (len(texts), texts[-1]) == (201, "[engine 7] (70002 more lines left out)")


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_descriptor_is_left_of_an_engine_or_of_one_that_could_not_be_started(monkeypatch):
    before = descriptors()
    for _ in range(3):
        engine = fake_engine()
        engine.interrupt()
        engine.close()
    assert descriptors() == before

    def none_left(*arguments, **options):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(subprocess, "Popen", none_left)
    with pytest.raises(OSError, match="Too many open files"):
        fake_engine()
    assert descriptors() == before


def test_a_process_that_ends_or_stands_still_while_nobody_asks_it_is_seen(started):
    engine = started()
    assert engine.ended is None
    os.kill(engine.pid, signal.SIGSTOP)
    wait_for(lambda: engine.stillness > 2)
    assert engine.ended is None
    os.kill(engine.pid, signal.SIGKILL)
    wait_for(lambda: engine.ended is not None)
    assert "SIGKILL" in str(engine.ended)


def test_a_process_that_takes_nothing_can_be_closed():
    """Stopped, with a socket that is full."""
    engine = fake_engine()
    os.kill(engine.pid, signal.SIGSTOP)
    frame = Frame(head={"do": "none", "filler": "x" * (1 << 24)})
    with pytest.raises(ConnectionGoneError, match=r"took nothing for 0\.05 s"):
        engine._process._connection.send(frame, seconds=0.05)
    engine.close()
    assert not is_alive(engine.pid)


def test_a_signal_for_the_service_alone_does_not_end_the_engine(started):
    engine = started()
    os.kill(engine.pid, signal.SIGTERM)
    assert len(list(engine.capture(tasks_of(30), SPEC))) == 30


def test_what_the_process_prints_is_marked_cut_and_bounded(caplog):
    caplog.set_level(logging.INFO)
    lines = [b"first\n", b"x" * 5000 + b"\n", b"\xff\xfe\n", *(b"%d\n" % n for n in range(1000)), b"no end"]
    forward_lines(io.BufferedReader(io.BytesIO(b"".join(lines))), "engine 7")
    texts = [record.getMessage() for record in caplog.records if record.name == log_lines.__name__]
    assert texts[:3] == ["[engine 7] first", f"[engine 7] {'x' * 2000} ...", "[engine 7] \\xff\\xfe"]
    assert len(texts) == 201
    assert texts[-1] == "[engine 7] (804 more lines left out)"
