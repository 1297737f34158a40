"""Runs in rounds when something is wrong with the service; no round is lost."""

import shutil

import pytest

from logitcask_consumer.rounds import phases
from logitcask_consumer.rounds.capture import CaptureError
from logitcask_consumer.rounds.phases import EmptyRoundError
from logitcask_consumer.rounds.state import read_state
from logitcask_consumer.run_document import RunFolderError
from logitcask_schemas.api.connection import ServiceError
from logitcask_schemas.cask import Cask
from logitcask_schemas.errors import DocumentMismatchError, IdentityMismatchError
from tests.support.consumer.cask_builder import build_cask, random_documents, tiny_model, tiny_tokenizer
from tests.support.consumer.rounds_runs import run, run_first_only


class TestTheService:
    """What can be wrong with it; no round is lost."""

    def test_is_waited_for_while_its_teacher_loads_and_while_it_is_busy(self, settings, service):
        service.loading, service.busy = 2, 6  # more often than the client itself asks again
        result, said = run(settings)
        assert result.state.status == "finished"
        assert any("waiting for the service" in line for line in said)

    @pytest.mark.parametrize(
        ("place", "status", "times"),
        [("corpora", 507, 3), ("models", 502, 3), ("extractions", 504, 3), ("check", 502, 3), ("events", 502, 1)],
    )
    def test_is_waited_for_while_its_disk_is_full_or_a_proxy_answers(self, settings, service, place, status, times):
        answer, left = service.answer, [times]

        def later(method, target, headers, body):
            if left[0] and target.partition("?")[0].endswith(f"/{place}"):
                left[0] -= 1
                return service._json(status, {"error": {"code": "later", "message": "not yet"}})
            return answer(method, target, headers, body)

        service.answer = later
        assert run(settings, rounds=1, steps_per_round=1)[0].state.status == "finished"
        assert not left[0]
        assert len(service.extractions) == 1

    def test_one_that_does_not_answer_ends_the_call_after_the_patience(self, settings, service):
        service.close()
        with pytest.raises(ConnectionError, match="no service answers"):
            run(settings, patience_seconds=0.2)
        assert read_state(settings["output"]).status == "running"

    def test_another_teacher_between_rounds_is_refused_with_both(self, settings, service):
        service.identity_fields = {"weights_digest": "a" * 64}
        service.fail = "the disk broke"
        with pytest.raises(CaptureError):
            run(settings)
        run_first_only(settings, service)
        service.identity_fields = {"weights_digest": "b" * 64}
        with pytest.raises(IdentityMismatchError) as raised:
            run(settings)
        assert "a" * 64 in str(raised.value)
        assert "b" * 64 in str(raised.value)
        assert "Start the service with the first teacher" in str(raised.value)
        state = read_state(settings["output"])
        assert [own.stage for own in state.rounds] == ["trained", "sampled"]
        service.identity_fields = {"weights_digest": "a" * 64}
        assert run(settings)[0].state.status == "finished"

    def test_a_failed_extraction_is_taken_up_again_by_the_same_command(self, settings, service):
        service.fail = "the disk broke"
        with pytest.raises(CaptureError, match=r"the disk broke.*give the same command again"):
            run(settings)
        state = read_state(settings["output"])
        assert state.rounds[0].stage == "sampled"
        samples = (settings["output"] / "rounds/0001/samples.jsonl").read_bytes()
        result, said = run(settings)
        assert result.state.status == "finished"
        assert (settings["output"] / "rounds/0001/samples.jsonl").read_bytes() == samples
        assert result.state.rounds[0].extraction == state.rounds[0].extraction
        assert any("taking it up again" in line for line in said)

    def test_a_cancelled_extraction_is_begun_anew(self, settings, service):
        service.fail = "cancelled"
        with pytest.raises(CaptureError, match="has cancelled"):
            run(settings)
        result, _ = run(settings)
        assert result.state.status == "finished"
        assert result.state.rounds[0].attempt == 2

    def test_one_that_lost_its_jobs_is_asked_anew(self, settings, service):
        service.fail = "the disk broke"
        with pytest.raises(CaptureError):
            run(settings, rounds=1)
        for lost in (service.extractions, service.keys, service.corpora):
            lost.clear()
        result, _ = run(settings, rounds=1)
        assert result.state.status == "finished"
        assert result.state.rounds[0].attempt == 2

    def test_a_corpus_that_was_deleted_is_sent_again(self, settings, service):
        """It comes back under another id; of the first one the service knows an extraction that the run does not."""
        answer = service.answer

        def lost_answer(method, target, headers, body):
            given = answer(method, target, headers, body)
            if (method, target) == ("POST", "/v1/extractions") and given[0] == 202:
                service.answer = answer
                return service._json(400, {"error": {"code": "gone", "message": "the answer was lost"}})
            return given

        service.answer = lost_answer
        with pytest.raises(ServiceError, match="the answer was lost"):
            run(settings, rounds=1)
        service.corpora.clear()
        service.corpus_ids = "again"
        result, _ = run(settings, rounds=1)
        assert result.state.status == "finished"
        assert len(service.extractions) == 2

    def test_what_it_refuses_is_not_asked_again(self, settings, service):
        answer = service.answer

        def refusing(method, target, headers, body):
            if (method, target) == ("POST", "/v1/extractions"):
                service.requests.append("refused")
                return service._json(400, {"error": {"code": "bad_capture", "message": "tau is too small for it"}})
            return answer(method, target, headers, body)

        service.answer = refusing
        with pytest.raises(ServiceError, match="tau is too small for it"):
            run(settings, rounds=1)
        assert service.requests.count("refused") == 1
        service.answer = answer
        assert run(settings, rounds=1)[0].state.status == "finished"

    def test_a_cask_of_the_rounds_name_that_is_there_is_refused(self, settings, service, tiny):
        build_cask(service.casks / "run.r0001", tiny.teacher, random_documents(3))
        with pytest.raises(CaptureError, match=r"has a cask run\.r0001 already.*--name"):
            run(settings)

    def test_documents_of_others_in_the_cask_are_refused(self, settings, service, tiny, monkeypatch):
        service.fail = "later"
        with pytest.raises(CaptureError):
            run(settings)
        (extraction,) = service.extractions.values()
        extraction["status"] = "completed"
        build_cask(service.casks / "run.r0001", tiny.teacher, random_documents(3))
        with pytest.raises(DocumentMismatchError, match=r"3 of 3 documents .* are none of the texts"):
            run(settings)

    @pytest.mark.parametrize("number", [1, 2])
    def test_documents_that_another_run_adds_later_are_not_trained(self, settings, service, tiny, monkeypatch, number):
        """Of two runs with one name; the cask of round 1 is trained on in round 2, too."""
        settings = {**settings, "buffer": 2, "steps_per_round": 1}
        make = phases.phase_of

        def phase_of(config, state, own, **more):
            if own.number == number:
                place = config.cask_place(1)
                manifest = Cask.open(place).manifest
                build_cask(place, tiny.teacher, random_documents(3), spec=manifest.capture, recorded=[None] * 3)
            return make(config, state, own, **more)

        monkeypatch.setattr("logitcask_consumer.rounds.driver.phase_of", phase_of)
        with pytest.raises(
            DocumentMismatchError, match=r"3 of 23 documents .* none of the texts .* in round 1.*remove"
        ):
            run(settings)
        monkeypatch.setattr("logitcask_consumer.rounds.driver.phase_of", make)
        shutil.rmtree(service.casks / "run.r0001")
        result, _ = run(settings)
        assert result.state.status == "finished"
        assert result.state.rounds[0].documents == len(Cask.open(service.casks / "run.r0001")) == 20

    def test_texts_that_were_deleted_are_not_missed_by_losses_without_them(self, settings, monkeypatch):
        settings = {**settings, "buffer": 2, "steps_per_round": 1}
        make = phases.phase_of

        def phase_of(config, state, own, **more):
            shutil.rmtree(config.output / "rounds/0001", ignore_errors=True)
            return make(config, state, own, **more)

        monkeypatch.setattr("logitcask_consumer.rounds.driver.phase_of", phase_of)
        result, _ = run(settings)
        assert [own.stage for own in result.state.rounds] == ["trained", "trained"]
        assert not (settings["output"] / "rounds/0001").exists()

    def test_an_empty_cask_says_what_to_do_and_loses_nothing(self, settings, service):
        service.drop_all = True
        with pytest.raises(
            EmptyRoundError, match=r"holds no document.*logitcask jobs errors extraction-0.*texts are kept"
        ):
            run(settings)
        assert read_state(settings["output"]).rounds[0].stage == "sampled"

    def test_a_cask_that_was_removed_is_captured_again(self, settings, service, monkeypatch):
        def stopped(*arguments, **more):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr("logitcask_consumer.rounds.driver.train_phase", stopped)
            with pytest.raises(KeyboardInterrupt):
                run(settings, rounds=1)
        assert read_state(settings["output"]).rounds[0].stage == "captured"
        shutil.rmtree(service.casks / "run.r0001")
        (settings["output"] / "rounds/0001/corpus.jsonl").unlink()
        result, said = run(settings, rounds=1)
        assert result.state.status == "finished"
        assert result.state.rounds[0].attempt == 2
        assert len(service.extractions) == 2
        assert len(Cask.open(service.casks / "run.r0001")) == result.state.rounds[0].documents == 20
        assert any("its cask was removed" in line for line in said)

    def test_a_fixed_cask_of_another_teacher_is_refused_before_anything_is_written(self, settings, service, tiny):
        service.identity_fields = {"weights_digest": "a" * 64}
        with pytest.raises(IdentityMismatchError, match=rf"fixed cask .*fixed is of the teacher.*weights {'a' * 64}"):
            run(settings, casks=(str(tiny.folder / "fixed"),))
        assert not (settings["output"] / "rounds").exists()

    def test_a_moved_folder_keeps_its_casks_names(self, settings, service):
        service.fail = "the disk broke"
        with pytest.raises(CaptureError):
            run(settings)
        moved = settings["output"].with_name("moved")
        settings["output"].rename(moved)
        with pytest.raises(RunFolderError, match="name: 'run' there, 'moved' now"):
            run(settings, output=moved)
        assert run(settings, output=moved, name="run")[0].state.status == "finished"

    def test_a_teacher_that_raises_is_an_answer(self, settings, service, monkeypatch):
        """Of this test's own service: its client must not wait for ever."""
        monkeypatch.setattr(service, "teacher", None)
        with pytest.raises(ServiceError, match="Traceback"):
            run(settings, rounds=1)

    def test_a_wrong_cask_root_is_told_and_the_right_one_goes_on(self, settings, service, tmp_path):
        with pytest.raises(EmptyRoundError, match="--cask-root"):
            run(settings, cask_root=tmp_path / "elsewhere")
        assert run(settings)[0].state.status == "finished"
        assert len(service.extractions) == 2

    def test_another_tokenizer_is_refused_before_anything_is_written(self, settings, tmp_path):
        tiny_model(layers=1).save_pretrained(tmp_path / "other")
        tiny_tokenizer("v").save_pretrained(tmp_path / "other")
        (tmp_path / "p.jsonl").write_text('{"prompt": "v3 v4"}\n')
        with pytest.raises(IdentityMismatchError, match="tokenizer_fingerprint"):
            run(settings, student=str(tmp_path / "other"), prompts=tmp_path / "p.jsonl")
        assert not (settings["output"] / "rounds").exists()
