"""The draft check on tiny models, with a simulation in vLLM's place: figures, what is withheld, what is refused."""

import json
import shutil
from functools import cache

import numpy as np
import pytest
from typer.testing import CliRunner

from logitcask_schemas.errors import IdentityMismatchError, ModelError, OptionError
from logitcask_services.cli.draft_check import app
from logitcask_services.draft_check import DraftCheckError, require_draft
from logitcask_services.engines.factory import load_engine, load_generator
from logitcask_services.engines.model_folder import ModelFolder
from tests.support.services.dense_teacher import DenseTeacher, save_noisy_copy
from tests.support.services.simulated_speculation import SimulatedSpeculation


@pytest.fixture(scope="module")
def student(tiny_llama, tmp_path_factory):
    """The teacher with other weights by a little: right at most positions."""
    folder = save_noisy_copy(tiny_llama, tmp_path_factory.mktemp("student") / "student", noise=0.06, seed=3)
    (folder / "generation_config.json").unlink()  # as where a trainer wrote none
    return folder


@pytest.fixture
def held_out(tmp_path):
    path = tmp_path / "held.jsonl"
    lines = [{"input_ids": np.random.default_rng(n).integers(2, 300, 40).tolist()} for n in range(12)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@cache
def writer(folder):
    """The most likely token after some others; each is asked for once, in all tests."""
    dense = DenseTeacher(folder)

    @cache
    def after(text):
        return int(dense.logprobs(np.array(text))[-1].argmax())

    return lambda text: after(tuple(text))


@pytest.fixture
def simulated(monkeypatch, tiny_llama, student):
    """VLLM is a simulation; `teacher` may be another model than the one that is asked for."""
    made = []

    def use(teacher=tiny_llama):
        def load(kind, model, *, dtype, max_model_len, options):
            assert kind == "vllm"
            assert str(model) == str(tiny_llama)
            speculative = options["speculative_config"]
            assert speculative["model"] == str(student)
            made.append(SimulatedSpeculation(writer(teacher), writer(student), speculative["num_speculative_tokens"]))
            return made[-1]

        monkeypatch.setattr("logitcask_services.engines.factory.load_generator", load)
        return made

    return use


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


HOW = ("--texts", 6, "--prompt-tokens", 8, "--max-tokens", 24, "--draft-length", 3)


def test_measured_replayed_and_foretold_stand_side_by_side(simulated, tiny_llama, student, held_out):
    made = simulated()
    result = run("--teacher", tiny_llama, "--draft", student, "--sample", held_out, *HOW, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    (engine,) = made
    assert engine.closed
    assert document["measured"]["rates_g"] == [count / engine.steps for count in engine.accepted]
    assert document["measured"]["tokens_per_step"] == pytest.approx(1 + sum(engine.accepted) / engine.steps)
    assert document["control"]["passed"]
    assert document["control"]["value"] == 1
    assert document["withheld"] is None
    assert (document["texts"], document["tokens"], document["steps"]) == (6, 144, engine.steps)
    assert document["on_text"]["first"] == pytest.approx(document["measured"]["first"], abs=0.1)
    of_teacher, of_student = DenseTeacher(tiny_llama), DenseTeacher(student)
    same = [
        (of_teacher.logprobs(ids)[:-1].argmax(1) == of_student.logprobs(ids)[:-1].argmax(1))
        for ids in (np.array(json.loads(line)["input_ids"]) for line in held_out.read_text().splitlines()[:6])
    ]
    share = np.concatenate(same).mean()
    assert document["foretold"]["first"] == pytest.approx(share)
    assert document["foretold"]["rates_g"] == pytest.approx([share, share**2, share**3])
    assert document["foretold"]["low"] < share < document["foretold"]["high"]
    assert 0.2 < share < 0.95
    assert "no generation_config.json" in result.stderr


def test_figures_of_texts_that_are_not_the_teachers_are_withheld(simulated, tiny_llama, student, held_out):
    simulated(teacher=student)
    result = run("--teacher", tiny_llama, "--draft", student, "--sample", held_out, *HOW)
    assert result.exit_code == 3
    assert "withheld" in result.stdout
    assert "control failed" in result.stdout
    result = run("--teacher", tiny_llama, "--draft", student, "--sample", held_out, *HOW, "--json")
    document = json.loads(result.stdout)
    assert document["measured"] is None
    assert "of the written tokens are the teacher's most likely ones" in document["withheld"]
    # At temperature 1 the most likely tokens are no sample.
    simulated()
    result = run("--teacher", tiny_llama, "--draft", student, "--sample", held_out, *HOW, "--temperature", 1, "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 3
    assert document["control"]["value"] < -0.5
    assert document["foretold_by"] == "greedy_acceptance on 6 held-out texts"


def test_a_report_foretells(simulated, tiny_llama, student, held_out, tmp_path):
    simulated()
    metrics = {"agreement": {"value": 0.5, "standard_error": None, "low": None, "high": None}}
    report = {"format": "logitcask-report", "version": 1, "models": [{"label": "after", "metrics": metrics}]}
    (tmp_path / "report.json").write_text(json.dumps(report))
    result = run(
        "--teacher", tiny_llama, "--draft", student, "--sample", held_out, *HOW, "--report", tmp_path, "--json"
    )
    document = json.loads(result.stdout)
    assert document["foretold"]["rates_g"] == [0.5, 0.25, 0.125]
    assert document["foretold"]["tokens_per_step"] == 1.875


@pytest.fixture
def nothing_loads(monkeypatch):
    def load(*arguments, **options):
        raise AssertionError("an engine was loaded")

    monkeypatch.setattr("logitcask_services.engines.factory.load_generator", load)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"--draft": "nowhere"}, ModelError, "--draft nowhere: no such folder"),
        ({"--draft": "EMPTY"}, ModelError, "no config.json"),
        ({"--teacher": "nowhere"}, ModelError, "no such folder"),
        ({"--draft": "OTHER_VOCABULARY"}, IdentityMismatchError, "has another vocabulary than the teacher"),
        ({"--draft": "WIDER"}, ModelError, "has 320 logits, the teacher 300"),
        ({"--max-tokens": 200}, ModelError, "reads 128 tokens, and prompt, text and drafts have up to 236"),
        ({"--sample": "nowhere.jsonl"}, OptionError, "no such file"),
        ({"--prompt-tokens": 50, "--max-tokens": 20}, DraftCheckError, "no document of more than 50 tokens"),
        ({"--temperature": 0.5}, OptionError, "expected 0 or 1"),
        ({"--drafts": "sampled"}, OptionError, "at --temperature 1"),
        ({"--label": "after"}, OptionError, "--label: of --report"),
        ({"--report": "nowhere.json"}, DraftCheckError, "cannot be read"),
        ({"--engine-option": "tensor_parallel=2"}, OptionError, "vLLM has no option 'tensor_parallel'; did you mean"),
        ({"--cask": "casks/x"}, OptionError, "expected one of --cask and --sample"),
    ],
)
def test_what_cannot_be_checked_is_told_before_an_engine_starts(
    tiny_llama, student, held_out, tmp_path, nothing_loads, tokenizer_saver, changes, error, message
):
    (tmp_path / "empty").mkdir()
    places = {"EMPTY": tmp_path / "empty"}
    for name, width in (("OTHER_VOCABULARY", 300), ("WIDER", 320)):
        places[name] = tmp_path / name
        shutil.copytree(student, places[name])
        config = json.loads((places[name] / "config.json").read_text())
        (places[name] / "config.json").write_text(json.dumps(config | {"vocab_size": width}))
    tokenizer_saver(places["OTHER_VOCABULARY"], 299)
    options = {"--teacher": tiny_llama, "--draft": student, "--sample": held_out} | changes
    result = run(*(part for name, value in options.items() for part in (name, places.get(value, value))))
    assert isinstance(result.exception, error), result.output
    assert message in str(result.exception)


@pytest.mark.parametrize(
    ("package", "advice"), [("torchao", r" \(train it without --save-quantized\)"), ("bitsandbytes", "")]
)
def test_a_draft_or_teacher_of_a_packages_weights_needs_the_package(tiny_llama, tmp_path, monkeypatch, package, advice):
    draft = shutil.copytree(tiny_llama, tmp_path / "draft")
    config = json.loads((draft / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": package}}))
    teacher = ModelFolder.open(tiny_llama)
    monkeypatch.setattr("logitcask_services.engines.model_folder.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=rf"weights of {package}.*the student without its quantisation{advice}$"):
        require_draft(teacher, draft, tokens=8)
    for load in (load_engine, load_generator):
        with pytest.raises(ModelError, match=f"weights of {package}, which is not installed here: install it beside"):
            load("transformers", draft)
    monkeypatch.setattr("logitcask_services.engines.model_folder.find_spec", lambda name: object())
    assert require_draft(teacher, draft, tokens=8).path == draft
