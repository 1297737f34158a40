"""Runs in rounds against a service with a tiny teacher: what is trained, and what stands in the way."""

import json
import shutil

import pytest
import torch

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.rounds import driver
from logitcask_consumer.rounds.capture import CaptureError
from logitcask_consumer.rounds.phases import EmptyRoundError
from logitcask_consumer.run_document import RunFolderError
from logitcask_consumer.training.run import train
from logitcask_schemas.cask import Cask
from logitcask_schemas.errors import IdentityMismatchError
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.consumer.cask_builder import VOCAB, build_cask, random_documents, tiny_model, tiny_tokenizer
from tests.support.consumer.rounds_runs import metrics, run, run_first_only, weights


class TestARun:
    """What comes out."""

    @pytest.fixture
    def done(self, settings, tiny):
        result, said = run(settings, held_out=str(tiny.folder / "held"))
        return result, said

    def test_trains_on_a_cask_of_its_own_texts_in_every_round(self, done, service, settings):
        result, _ = done
        assert result.state.status == "finished"
        assert [own.stage for own in result.state.rounds] == ["trained", "trained"]
        for number in (1, 2):
            cask = Cask.open(service.casks / f"run.r{number:04d}")
            assert len(cask) == result.state.rounds[number - 1].documents == 20
            lines = (settings["output"] / f"rounds/{number:04d}/corpus.jsonl").read_text().splitlines()
            assert {tuple(json.loads(line)["input_ids"]) for line in lines} == {
                tuple(cask.read(at).token_ids_L.tolist()) for at in range(len(cask))
            }
            assert cask.num_positions == sum(
                stop - start for line in lines for start, stop in json.loads(line)["recorded"]
            )
        first, second = (Cask.open(service.casks / f"run.r000{number}") for number in (1, 2))
        assert {row.tobytes() for row in first.document_ids()} != {row.tobytes() for row in second.document_ids()}

    def test_the_student_gets_nearer_to_its_teacher(self, done):
        state = done[0].state
        kl = [state.held_out["kl"], *(own.held_out["kl"] for own in state.rounds)]
        assert kl == sorted(kl, reverse=True)

    def test_one_schedule_over_all_phases(self, done, settings):
        lines = metrics(settings["output"])
        assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
        rates = [line["lr"] for line in lines[1:]]
        assert rates == sorted(rates, reverse=True)
        assert rates[0] == pytest.approx(3e-3)

    def test_the_run_document_names_all_casks(self, done, settings):
        document = json.loads((settings["output"] / "logitcask.json").read_text())
        assert document["status"] == "finished"
        assert [place.rpartition("/")[2] for place in document["places"]] == ["run.r0001", "run.r0002"]
        assert [phase["stop"] for phase in document["phases"]] == [3, 6]

    def test_given_again_does_nothing(self, done, settings, service, tiny):
        asked = len(service.requests)
        before = (settings["output"] / "model.safetensors").read_bytes()
        result, said = run(settings, held_out=str(tiny.folder / "held"))
        assert result.state == done[0].state
        assert len(service.requests) == asked
        assert (settings["output"] / "model.safetensors").read_bytes() == before
        assert said == [f"{settings['output']} is finished; nothing to do"]

    def test_seconds_of_every_stage_are_kept(self, done):
        for own in done[0].state.rounds:
            assert own.seconds.keys() == {"sample", "capture", "train"}


class TestPhases:
    """One optimizer, one schedule: phases on one cask are one run on it."""

    def plain(self, tiny, output, **more):
        options = {
            "casks": (tiny.folder / "fixed",), "student": str(tiny.folder / "student"), "output": output,
            "loss": "skew_reverse_kl:alpha=0.1", "max_steps": 6, "seq_len": 64, "batch_tokens": 256,
            "micro_tokens": 128, "lr": 3e-3,
        }  # fmt: skip
        train(TrainConfig(**{**options, **more}))
        return weights(output)

    def phases(self, settings, tiny, **more):
        """DistiLLM that never sees its loss rise: the fixed cask alone."""
        fixed = (str(tiny.folder / "fixed"),)
        run(settings, recipe="distillm", casks=fixed, held_out=str(tiny.folder / "held"), **more)
        return weights(settings["output"])

    def test_the_weights_are_those_of_one_run(self, settings, tiny, tmp_path, service):
        assert len(Cask.open(tiny.folder / "fixed")) == 24
        one, several = self.plain(tiny, tmp_path / "plain"), self.phases(settings, tiny)
        assert one.keys() == several.keys()
        assert all(torch.equal(one[name], several[name]) for name in one)
        assert not service.requests, "lambda 0 asks nobody"

    @pytest.mark.parametrize(("optimizer", "scheduler"), [("muon", "wsd"), ("adafactor", "linear")])
    def test_so_are_those_of_other_optimizers_and_schedules(self, settings, tiny, tmp_path, optimizer, scheduler):
        named = {"optimizer": optimizer, "scheduler": scheduler} | ({"decay": 0.5} if scheduler == "wsd" else {})
        one, several = self.plain(tiny, tmp_path / "plain", **named), self.phases(settings, tiny, **named)
        assert all(torch.equal(one[name], several[name]) for name in one)
        assert max(float((one[name] - value).abs().max()) for name, value in weights(tiny.folder / "student").items())

    def test_negative_control_two_runs_are_another_thing(self, settings, tiny, tmp_path):
        """As a script would do it: each phase with an optimizer and a schedule of its own."""
        self.plain(tiny, tmp_path / "first", max_steps=3)
        two = self.plain(tiny, tmp_path / "second", max_steps=3, student=str(tmp_path / "first"))
        several = self.phases(settings, tiny)
        assert max(float((two[name] - several[name]).abs().max()) for name in two) > 1e-4


def test_lambda_divides_the_loss_and_every_step(settings, tiny):
    _, said = run(settings, casks=(str(tiny.folder / "fixed"),), share=0.25)
    shares = {line.partition(":")[0]: line for line in said if "of what is trained" in line}
    assert "25.0%" in shares["student"]
    assert "75.0%" in shares["fixed"]
    for line in metrics(settings["output"]):
        assert line["positions/student"] > 0
        assert line["positions/fixed"] > line["positions/student"]


def test_minillm_trains_both_parts(settings, tiny):
    result, _ = run(settings, recipe="minillm", casks=(str(tiny.folder / "fixed"),))
    assert result.state.status == "finished"
    for line in metrics(settings["output"]):
        assert {"loss/reverse_kl/student", "loss/policy_rkl/student"} <= line.keys()
        assert line["loss/policy_rkl/student"] != 0


def test_distillm_raises_lambda_where_the_loss_rises_and_keeps_texts_in_a_buffer(settings, tiny, monkeypatch):
    measured = iter([1.0, 2.0, 1.9, 1.95, 1.0])
    monkeypatch.setattr(driver._Run, "_measure", lambda self, folder: {"kl": next(measured), "nll": 0.0})
    more = {"casks": (str(tiny.folder / "fixed"),), "held_out": str(tiny.folder / "held"), "rounds": 4}
    result, said = run(settings, recipe="distillm", buffer=2, adapt_by=0.4, **more)
    assert [own.share for own in result.state.rounds] == [0.0, 0.4, 0.4, 0.8]
    assert "the held-out loss rose: lambda 0 becomes 0.4" in said
    phases = json.loads((settings["output"] / "logitcask.json").read_text())["phases"]
    names = [[place.rpartition("/")[2] for place in phase["places"]] for phase in phases]
    assert names[0] == ["fixed"]
    assert names[1:] == [
        ["run.r0002", "fixed"],
        ["run.r0002", "run.r0003", "fixed"],
        ["run.r0003", "run.r0004", "fixed"],
    ]


class TestTheStudent:
    """Texts that cannot be used."""

    @pytest.fixture
    def student(self, tmp_path):
        """Writes one token, whatever it read."""

        def build(token):
            model = tiny_model(layers=1)
            with torch.no_grad():
                for parameter in model.model.layers.parameters():
                    parameter.zero_()
                model.model.embed_tokens.weight.fill_(1.0)
                model.lm_head.weight.fill_(0.0)
                model.lm_head.weight[token] = 10.0
            model.save_pretrained(tmp_path / "constant")
            tiny_tokenizer().save_pretrained(tmp_path / "constant")
            return str(tmp_path / "constant")

        return build

    def test_that_writes_nothing_is_told(self, settings, student):
        with pytest.raises(EmptyRoundError, match=r"none of the student's 20 texts.*20 empty"):
            run(settings, student=student(1))
        assert len((settings["output"] / "rounds/0001/samples.jsonl").read_text().splitlines()) == 3

    def test_that_repeats_itself_is_capped_and_counted(self, settings, student):
        result, said = run(settings, student=student(7), rounds=1)
        assert result.state.rounds[0].sampled.model_dump() == {
            "texts": 20, "tokens": 320, "kept": 5, "empty": 0, "looping": 20, "looping_left_out": 15, "duplicates": 0,
            "unfinished": 5, "by_teacher": 0,
        }  # fmt: skip
        assert any("20 repeat themselves, 15 of these left out" in line for line in said)

    def test_that_only_repeats_itself_can_be_allowed_to_in_the_same_folder(self, settings, student):
        where = student(7)
        with pytest.raises(EmptyRoundError, match="--max-looping 1"):
            run(settings, student=where, max_looping=0.0)
        samples = (settings["output"] / "rounds/0001/samples.jsonl").read_bytes()
        result, _ = run(settings, student=where, max_looping=1.0)
        assert result.state.rounds[0].sampled.kept == 20
        assert (settings["output"] / "rounds/0001/samples.jsonl").read_bytes() == samples


def test_a_held_out_cask_of_another_tokenizer_is_refused(settings, tiny, tmp_path):
    spec = CaptureSpec(tail_logprobs=True)
    build_cask(tmp_path / "held", tiny.teacher, random_documents(4), spec=spec, tokenizer_fingerprint="f" * 64)
    with pytest.raises(IdentityMismatchError, match="tokenizer_fingerprint"):
        run(settings, held_out=str(tmp_path / "held"))


class TestTheFolder:
    """Of a run."""

    def test_of_other_settings_is_refused_with_both_values(self, settings):
        run(settings, rounds=1)
        with pytest.raises(RunFolderError, match="rounds: 1 there, 2 now"):
            run(settings)

    def test_begun_before_optimizers_had_names_goes_on(self, settings):
        run(settings, rounds=1)
        path = settings["output"] / "rounds.json"
        state = json.loads(path.read_text())
        for name in ("optimizer", "scheduler", "decay"):
            del state["settings"][name]
        path.write_text(json.dumps(state))
        assert run(settings, rounds=1)[1] == [f"{settings['output']} is finished; nothing to do"]
        with pytest.raises(RunFolderError, match="optimizer: 'adamw' there, 'muon' now"):
            run(settings, rounds=1, optimizer="muon")

    def test_with_other_prompts_is_refused(self, settings, tmp_path):
        run(settings, rounds=1)
        (tmp_path / "p.jsonl").write_text('{"prompt": "w3"}\n')
        with pytest.raises(RunFolderError, match="prompts"):
            run(settings, rounds=1, prompts=tmp_path / "p.jsonl")

    def test_of_a_plain_training_run_is_refused(self, settings, tiny):
        config = TrainConfig(
            casks=(tiny.folder / "fixed",), student=settings["student"], output=settings["output"], max_steps=1,
            seq_len=64,
        )  # fmt: skip
        train(config)
        with pytest.raises(RunFolderError, match="another output folder"):
            run(settings)

    def test_of_rounds_is_refused_by_training(self, settings, tiny):
        run(settings, rounds=1)
        config = TrainConfig(
            casks=(tiny.folder / "fixed",), student=settings["student"], output=settings["output"], max_steps=1,
            seq_len=64,
        )  # fmt: skip
        with pytest.raises(RunFolderError, match="`logitcask rounds`"):
            train(config)

    @pytest.mark.parametrize("gone", ["corpus.jsonl", "samples.jsonl"])
    def test_whose_texts_are_gone_writes_the_same_again(self, settings, service, gone):
        service.fail = "the disk broke"
        with pytest.raises(CaptureError):
            run(settings, rounds=1)
        path = settings["output"] / "rounds/0001" / gone
        before = path.read_bytes()
        path.unlink()
        for lost in (service.extractions, service.keys, service.corpora):
            lost.clear()
        result, said = run(settings, rounds=1)
        assert result.state.status == "finished"
        assert path.read_bytes() == before
        assert any(f"{gone} are gone" in line for line in said)

    def test_whose_cask_was_removed_is_captured_again_while_it_is_in_the_buffer(self, settings, service):
        run_first_only({**settings, "buffer": 2}, service)
        shutil.rmtree(service.casks / "run.r0001")
        result, _ = run(settings, buffer=2)
        assert result.state.status == "finished"
        assert [own.attempt for own in result.state.rounds] == [2, 1]
        assert len(Cask.open(service.casks / "run.r0001")) == 20

    def test_of_texts_without_their_state_is_refused(self, settings, service):
        """They would be taken for texts of whatever settings are given now."""
        service.fail = "the disk broke"
        with pytest.raises(CaptureError):
            run(settings)
        (settings["output"] / "rounds.json").unlink()
        with pytest.raises(RunFolderError, match=r"rounds holds texts of a run whose rounds\.json is gone"):
            run(settings, temperature=0.5, name="other")

    @pytest.mark.parametrize(
        ("change", "what"),
        [
            ({"number": 7}, "round 2 says that it is round 7"),
            ({"share": 2.0}, "less than or equal to 1"),
            ({"stage": "captured"}, "round 2 is captured and has no cask"),
            ({"stage": "trained", "cask": "somewhere"}, "says that every round is trained, the run document does not"),
        ],
    )
    def test_a_state_that_no_run_writes_is_refused(self, settings, service, change, what):
        run_first_only(settings, service)
        path = settings["output"] / "rounds.json"
        state = json.loads(path.read_text())
        state["rounds"][1] |= change
        path.write_text(json.dumps(state))
        with pytest.raises(RunFolderError, match=what):
            run(settings)

    def test_a_damaged_state_is_told(self, settings):
        settings["output"].mkdir()
        (settings["output"] / "rounds.json").write_text('{"format": "logitcask-rounds"')
        with pytest.raises(RunFolderError, match=r"rounds\.json is not the state"):
            run(settings)


def test_a_student_of_the_teachers_layers_is_saved_before_it_writes(settings, tiny):
    result, _ = run(settings, student="from-teacher:layers=2", teacher=tiny.folder / "teacher", rounds=1)
    assert result.state.status == "finished"
    assert (settings["output"] / "initial/model.safetensors").is_file()
    assert weights(settings["output"])["model.embed_tokens.weight"].shape[0] == VOCAB
