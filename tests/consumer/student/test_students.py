"""Students from the teacher's layers, from folders and from configs; bad descriptions give clear errors."""

import io
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from logitcask_consumer.student.from_teacher import StudentSpecError, spread_layers
from logitcask_consumer.student.loading import load_config, load_model, load_tokenizer
from logitcask_consumer.student.students import StudentSpec
from logitcask_schemas.errors import ModelError
from tests.support.consumer.cask_builder import save_teacher, tiny_model, tiny_tokenizer

IDS = torch.arange(2, 20)[None]


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [(30, 10, (0, 3, 6, 10, 13, 16, 19, 23, 26, 29)), (4, 4, (0, 1, 2, 3)), (12, 2, (0, 11)), (5, 1, (0,))],
)
def test_layers_are_spread_evenly(total, count, expected):
    assert spread_layers(total, count) == expected


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gpt2"])
def test_layers_of_the_teacher_compute_what_they_did_there(kind, tmp_path):
    more = {"n_embd": 32, "n_head": 2, "n_layer": 4, "n_positions": 256} if kind == "gpt2" else {}
    teacher = save_teacher(tmp_path, kind=kind, **more)
    student = StudentSpec.parse("from-teacher:layers=0,2,3").build(tmp_path, seed=0)
    assert student.config.num_hidden_layers == 3
    # The teacher without layer 1, by hand: same layers, so the same hidden states.
    layers = teacher.transformer.h if kind == "gpt2" else teacher.model.layers
    del layers[1]
    teacher.config.num_hidden_layers = 3
    if kind == "gemma2":
        teacher.config.layer_types = [t for i, t in enumerate(teacher.config.layer_types) if i != 1]
        assert student.config.layer_types == teacher.config.layer_types
    torch.testing.assert_close(logits(student), logits(teacher), rtol=0, atol=1e-5)


def test_a_student_with_all_layers_is_the_teacher(tmp_path):
    teacher = save_teacher(tmp_path)
    student = StudentSpec.parse("from-teacher:layers=4").build(tmp_path, seed=0)
    torch.testing.assert_close(logits(student), logits(teacher), rtol=0, atol=0)
    student.save_pretrained(tmp_path / "student")
    torch.testing.assert_close(logits(load_model(tmp_path / "student")), logits(teacher), rtol=0, atol=0)


def test_folder_and_config(tmp_path):
    saved = save_teacher(tmp_path)
    torch.testing.assert_close(logits(StudentSpec.parse(str(tmp_path)).build(None, seed=0)), logits(saved))
    fresh = StudentSpec.parse(str(tmp_path / "config.json"))
    same, other = fresh.build(None, seed=1), fresh.build(None, seed=2)
    torch.testing.assert_close(logits(same), logits(fresh.build(None, seed=1)), rtol=0, atol=0)
    assert not torch.equal(logits(same), logits(other))


def test_a_tokenizer_is_the_students_own_or_the_teachers(tmp_path):
    save_teacher(tmp_path / "teacher")
    tiny_model().save_pretrained(tmp_path / "bare")
    teacher = tmp_path / "teacher"
    assert StudentSpec.parse(str(teacher)).tokenizer_folder(None) == teacher
    assert StudentSpec.parse(str(tmp_path / "bare")).tokenizer_folder(teacher) == teacher
    assert StudentSpec.parse("from-teacher:layers=2").tokenizer_folder(teacher) == teacher
    with pytest.raises(StudentSpecError, match="--teacher"):
        StudentSpec.parse(str(tmp_path / "bare")).tokenizer_folder(None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from-teacher:layers=ten", "neither a number"),
        ("from-teacher:layers=3,1", "ascending"),
        ("from-teacher:layers=1,1,2", "ascending"),
        ("no/such/thing", "neither"),
    ],
)
def test_descriptions_that_mean_nothing(text, message):
    with pytest.raises(StudentSpecError, match=message):
        StudentSpec.parse(text)


def test_layers_that_do_not_exist(tmp_path):
    save_teacher(tmp_path)
    for text, message in (("5", "has 4"), ("0,4", "layers 0 to 3")):
        with pytest.raises(StudentSpecError, match=message):
            StudentSpec.parse(f"from-teacher:layers={text}").build(tmp_path, seed=0)
    with pytest.raises(StudentSpecError, match="--teacher"):
        StudentSpec.parse("from-teacher:layers=2").build(None, seed=0)


def test_folders_that_are_no_models(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        StudentSpec.parse(str(tmp_path))
    with pytest.raises(ModelError, match="does not exist"):
        load_model(tmp_path / "gone")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match="safetensors"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nonsense"}))
    with pytest.raises(ModelError, match="causal LM"):
        StudentSpec.parse(str(tmp_path / "config.json")).build(None, seed=0)
    with pytest.raises(ModelError, match="tokenizer"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_of_a_kind_that_is_not_known_is_refused(tmp_path):
    """The Rust backend raises bare Exception there."""
    tiny_tokenizer().save_pretrained(tmp_path)
    written = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(written | {"model": {"type": "Newer", "vocab": {}}}))
    with pytest.raises(ModelError, match="holds no tokenizer that can be loaded: Exception: data did not match"):
        load_tokenizer(tmp_path)


def test_a_config_that_cannot_be_read_is_refused(tmp_path):
    for written in ('{"model_type": "nonsense"}', "{", '{"model_type": "llama", "layer_types": -1}'):
        (tmp_path / "config.json").write_text(written)
        with pytest.raises(ModelError, match=r"holds no config.json of a causal LM"):
            load_config(tmp_path)


def test_a_config_with_infinity_is_read_as_it_is(tmp_path):
    model = tiny_model("mamba2", layers=2, num_heads=8, head_dim=8, n_groups=1, state_size=8, chunk_size=8)
    model.save_pretrained(tmp_path)
    fresh = StudentSpec.parse(str(tmp_path / "config.json")).build(None, seed=0)
    assert list(fresh.config.time_step_limit) == list(model.config.time_step_limit)
    assert float("inf") in fresh.config.time_step_limit


def test_code_in_a_folder_is_never_run(tmp_path, monkeypatch):
    """Not even where somebody would say yes."""
    monkeypatch.setattr("builtins.input", lambda prompt="": pytest.fail("it asked"))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Evil: pass\n")
    auto = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"), "evil.Evil")
    content = json.dumps({"model_type": "evil", "auto_map": auto})
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text(content)
    for load in (
        load_model,
        load_tokenizer,
        lambda folder: StudentSpec.parse(f"{folder}/config.json").build(None, seed=0),
    ):
        with pytest.raises(ModelError):
            load(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_model_whose_file_is_half_written_is_refused(tmp_path):
    save_teacher(tmp_path / "half")
    file = tmp_path / "half" / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ModelError, match="half cannot be loaded as a causal LM with safetensors weights"):
        load_model(tmp_path / "half")


def test_weights_that_are_missing_are_not_made_up(tmp_path):
    """Transformers warns, and goes on with random numbers."""
    save_teacher(tmp_path / "part")
    file = tmp_path / "part" / "model.safetensors"
    weights = load_file(file)
    for name in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks the weights model.layers.1.mlp.up_proj.weight and 1 other"):
        load_model(tmp_path / "part")


def test_a_head_that_is_tied_to_the_embedding_is_not_missing(tmp_path):
    tiny_model(tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    assert load_model(tmp_path / "tied").num_parameters() == tiny_model(tie_word_embeddings=True).num_parameters()
