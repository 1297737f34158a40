"""Texts that the service writes: the teacher's in the student's place, and the student's own."""

import math
import re
import shutil

import pytest

from logitcask_consumer.rounds.capture import CaptureError
from logitcask_consumer.rounds.config import RoundsConfig, RoundsConfigError
from logitcask_consumer.rounds.sampler import logprobs_under, teacher_writes
from logitcask_consumer.rounds.samples import SAMPLES_NAME, append_chunk, read_chunks, sampled_texts
from logitcask_consumer.rounds.state import read_state
from logitcask_consumer.run_document import RunFolderError
from logitcask_consumer.student.loading import load_model
from logitcask_schemas.errors import IdentityMismatchError
from tests.support.consumer.cask_builder import tiny_model
from tests.support.consumer.rounds_runs import metrics, run, run_first_only


def texts_of(settings, number=1):
    chunks = read_chunks(settings["output"] / f"rounds/{number:04d}" / SAMPLES_NAME)
    return [text for chunk in chunks for text in chunk]


def _killed(place):
    raise KeyboardInterrupt


class TestTeacherMix:
    """`--teacher-mix`."""

    @pytest.fixture
    def settings(self, settings):
        return {**settings, "recipe": "minillm", "teacher_mix": 0.5}

    def test_some_texts_are_the_teachers_with_the_students_log_q(self, settings, tiny, service):
        result, said = run(settings)
        assert result.state.status == "finished"
        texts = texts_of(settings)
        expected = [flag for chunk in range(3) for flag in teacher_writes(0, 1, chunk, min(8, 20 - 8 * chunk), 0.5)]
        assert [text.writer == "teacher" for text in texts] == expected
        assert result.state.rounds[0].sampled.by_teacher == sum(expected)
        assert 0 < sum(expected) < 20
        student = load_model(tiny.folder / "student")
        for text in texts:
            want = logprobs_under(student, text.input_ids, text.sampled)
            assert text.logprobs == pytest.approx(want, abs=1e-4)
        assert any(f"{sum(expected)} by the teacher" in line for line in said)
        assert len(service.generations) == 2
        assert all(own["teacher_name"] is None for own in service.generations.values())
        assert all("loss/policy_rkl" in line for line in metrics(settings["output"]))

    def test_weights_of_the_mixture_are_trained_with(self, settings, monkeypatch):
        """Negative control: as if all texts were the student's is another training."""
        run(settings, rounds=1)
        monkeypatch.setattr(
            "logitcask_consumer.rounds.phases.sampled_texts",
            lambda rounds, *, teacher_share: sampled_texts(rounds, teacher_share=0.0),
        )
        naive = {**settings, "output": settings["output"].with_name("naive"), "name": "naive"}
        run(naive, rounds=1)
        ours, other = (metrics(each["output"])[0]["loss/policy_rkl"] for each in (settings, naive))
        assert ours != pytest.approx(other, rel=1e-3)

    def test_a_failed_generation_is_taken_up_again_by_the_same_command(self, settings, service):
        service.fail_writing = "the engine fell over"
        with pytest.raises(CaptureError, match=r"the engine fell over.*give the same command again"):
            run(settings, rounds=1)
        assert read_state(settings["output"]).status == "running"
        result, said = run(settings, rounds=1)
        assert result.state.status == "finished"
        assert len(service.generations) == 1
        assert any("taking it up again" in line for line in said)

    def test_another_teacher_writes_no_text_of_a_round(self, settings, service):
        """The weights are made with the log t of who reads."""
        service.identity_fields = {"weights_digest": "a" * 64}
        service.fail = "the disk broke"
        with pytest.raises(CaptureError, match="the disk broke"):
            run(settings)
        service.identity_fields = {"weights_digest": "b" * 64}
        with pytest.raises(IdentityMismatchError, match="another"):
            run(settings)
        service.identity_fields = {"weights_digest": "a" * 64}
        run_first_only(settings, service)
        shutil.rmtree(settings["output"] / "rounds/0002")
        service.identity_fields = {"weights_digest": "b" * 64}
        with pytest.raises(IdentityMismatchError, match="another"):
            run(settings)
        assert not (settings["output"] / "rounds/0002").exists()

    def test_a_teacher_that_changes_while_it_writes_is_told(self, settings, service):
        service.writer = {"weights_digest": "c" * 64}
        with pytest.raises(CaptureError, match=r"written by a teacher of other weights .c{64}"):
            run(settings, rounds=1)
        assert not (settings["output"] / "rounds/0001" / SAMPLES_NAME).exists()
        service.writer = {}
        result, _ = run(settings, rounds=1)
        assert result.state.status == "finished"
        assert len(service.generations) == 2

    def test_another_share_is_another_run(self, settings):
        run(settings, rounds=1)
        with pytest.raises(RunFolderError, match=r"teacher_mix: 0\.5 there, 0\.25 now"):
            run(settings, rounds=1, teacher_mix=0.25)

    def test_none_asks_for_no_text(self, settings, service):
        run(settings, teacher_mix=0.0, rounds=1)
        assert not service.generations

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"finish": "stop", "token_ids": [5, 6]}, "ended with token 6, at which the student would go on"),
            ({"finish": "abort"}, "rounds need `token_ids`, `finish` and `mean_logprob`"),
            ({"token_ids": [5] * 15 + [1 << 20]}, "its token 1048576 is none of the student's"),
            ({"token_ids": [5] * 15 + [-1]}, "its token -1 is none of the student's"),
            ({"finish": "length", "token_ids": [5] * 17}, "it has 17 tokens, at most 16 were asked for"),
            ({"finish": "length", "token_ids": [5, 6]}, "cut after 2 tokens, where the student goes on up to 16"),
            ({"finish": "length", "token_ids": []}, "cut after 0 tokens"),
            ({"finish": "stop", "token_ids": []}, "ended with token nothing"),
            ({"token_ids": None}, "rounds need `token_ids`, `finish` and `mean_logprob`"),
        ],
    )
    def test_a_text_that_cannot_be_weighed_is_refused(self, settings, service, changes, says):
        service.row_changes = changes
        with pytest.raises(CaptureError, match=says):
            run(settings, rounds=1)

    @pytest.mark.parametrize(
        ("more", "says"),
        [
            ({"teacher_mix": 1.0}, "below 1, got 1"),
            ({"teacher_mix": -0.1}, "at least 0"),
            ({"teacher_mix": math.nan}, "below 1, got nan"),
            ({"recipe": "gkd"}, "teacher_mix goes with policy_rkl"),
            ({"loss": "cross_entropy + policy_rkl"}, "reads the token that was written"),
        ],
    )
    def test_what_has_no_weights_is_refused(self, settings, more, says):
        with pytest.raises(RoundsConfigError, match=says):
            RoundsConfig(**{**settings, **more})


class TestServiceSampler:
    """`--sampler service`."""

    @pytest.fixture
    def settings(self, settings, service, tmp_path):
        service.students = tmp_path / "students"
        service.students.mkdir()
        return {**settings, "sampler": "service", "students": service.students}

    def test_the_service_writes_with_the_students_of_each_round(self, settings, service, tiny):
        result, said = run(settings)
        assert result.state.status == "finished"
        probes = [re.search(r"probe: of the first 8 texts .* by ([\d.e-]+) nats", line) for line in said]
        assert [float(found[1]) < 1e-4 for found in probes if found] == [True, True]
        names = [own["teacher_name"] for own in service.generations.values()]
        assert names == [f"students/{result.state.run}.r{number:04d}" for number in (1, 2)]
        assert list(service.students.iterdir()) == []
        student = load_model(tiny.folder / "student")
        for text in texts_of(settings):
            assert text.writer == "student"
            assert text.logprobs == pytest.approx(logprobs_under(student, text.input_ids, text.sampled), abs=1e-6)

    def test_other_weights_are_refused_and_new_texts_asked_for(self, settings, service):
        service.stale_student = tiny_model(layers=2, seed=77)
        with pytest.raises(CaptureError, match=r"wrote with other weights .* by [\d.]+ nats.*restart the service"):
            run(settings, rounds=1)
        assert not (settings["output"] / "rounds/0001" / SAMPLES_NAME).exists()
        service.stale_student = None
        result, _ = run(settings, rounds=1)
        assert result.state.status == "finished"
        assert result.state.rounds[0].writing == 1
        assert len(service.generations) == 2

    def test_a_student_that_was_damaged_where_the_service_finds_it_is_saved_again(self, settings, service):
        service.fail_writing = "the engine fell over"
        with pytest.raises(CaptureError, match="the engine fell over"):
            run(settings, rounds=1)
        (place,) = service.students.iterdir()
        modes = {(place / name).stat().st_mode for name in ("config.json", "model.safetensors")}
        assert len(modes) == 1, "the service, which may be another user's, reads the weights too"
        tiny_model(layers=2, seed=77).save_pretrained(place)
        with pytest.raises(CaptureError, match="wrote with other weights"):
            run(settings, rounds=1)
        assert list(service.students.iterdir()) == []
        assert run(settings, rounds=1)[0].state.status == "finished"

    def test_what_a_kill_leaves_of_a_student_is_removed(self, settings, service, monkeypatch):
        with monkeypatch.context() as patched:
            patched.setattr("logitcask_consumer.rounds.writing.shutil.rmtree", _killed)
            with pytest.raises(KeyboardInterrupt):
                run(settings, rounds=1)
        (left,) = service.students.iterdir()
        assert left.name.startswith("."), "no student of the service has such a name"
        assert run(settings, rounds=1)[0].state.status == "finished"
        assert list(service.students.iterdir()) == []

    def test_the_teachers_texts_are_asked_for_anew_too(self, settings, service):
        """A key is one request's, and their seed is another then."""
        service.stale_student = tiny_model(layers=2, seed=77)
        mixed = {**settings, "recipe": "minillm", "teacher_mix": 0.5}
        with pytest.raises(CaptureError, match="wrote with other weights"):
            run(mixed, rounds=1)
        service.stale_student = None
        assert run(mixed, rounds=1)[0].state.status == "finished"
        assert len(service.generations) == 4

    @pytest.mark.parametrize("lost", [("corpora",), ("corpora", "generations", "keys", "rows")])
    def test_a_service_that_lost_what_it_had_is_asked_anew(self, settings, service, monkeypatch, lost):
        def stopped(*arguments):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr("logitcask_consumer.rounds.writing.append_chunk", stopped)
            with pytest.raises(KeyboardInterrupt):
                run(settings, rounds=1)
        for name in lost:
            getattr(service, name).clear()
        service.corpus_ids = "again-"
        assert run(settings, rounds=1)[0].state.status == "finished"

    def test_a_service_that_is_busy_while_it_writes_is_waited_for(self, settings, service):
        answer, busy = service.answer, iter(range(2))

        def sometimes_busy(method, target, headers, body):
            if target.endswith("/events") and next(busy, None) is not None:
                return service._json(503, {"error": {"code": "not_ready", "message": "it restarts"}})
            return answer(method, target, headers, body)

        service.answer = sometimes_busy
        assert run(settings, rounds=1)[0].state.status == "finished"

    def test_a_kill_between_writing_and_keeping_asks_for_the_same_texts(self, settings, service, monkeypatch):
        def killed(path, number, texts):
            if number == 1:
                raise KeyboardInterrupt
            append_chunk(path, number, texts)

        with monkeypatch.context() as patched:
            patched.setattr("logitcask_consumer.rounds.writing.append_chunk", killed)
            with pytest.raises(KeyboardInterrupt):
                run(settings, rounds=1)
        run(settings, rounds=1)
        assert len(service.generations) == 1
        ((_, rows),) = service.rows.items()
        written = [row["written"]["output"]["token_ids"] for row in rows]
        assert [text.input_ids[-text.sampled :] for text in texts_of(settings)] == written

    def test_with_the_teachers_texts_too(self, settings, service):
        result, _ = run(settings, recipe="minillm", teacher_mix=0.5, rounds=1)
        assert result.state.status == "finished"
        assert sorted(own["teacher_name"] is None for own in service.generations.values()) == [False, True]

    def test_a_students_folder_that_is_not_there_is_told(self, settings, tmp_path):
        with pytest.raises(CaptureError, match=r"--students .*nowhere is no folder"):
            run(settings, students=tmp_path / "nowhere")

    @pytest.mark.parametrize(
        ("more", "says"),
        [
            ({"temperature": 11.0}, "temperatures of at most 10, got 11"),
            ({"sampler": "vllm"}, "sampler must be hf or service, got 'vllm'"),
            ({"students": None}, "name it, as it is seen from here, with --students"),
            ({"sampler": "hf"}, "the sampler is hf: leave it out"),
        ],
    )
    def test_settings_that_contradict_each_other_are_refused(self, settings, more, says):
        with pytest.raises(RoundsConfigError, match=says):
            RoundsConfig(**{**settings, **more})
