"""The file of teachers: what it may say, and that every fault is told with its place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcask_services.teachers.file import TeachersFileError, read_teachers


@pytest.fixture
def write(tmp_path):
    """A function: the path of a file with this text, beside a folder `model`."""
    (tmp_path / "model").mkdir()

    def make(text):
        path = tmp_path / "teachers.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return make


def test_all_that_can_be_said(write, tmp_path):
    listed = read_teachers(
        write(
            """
[teachers.small]
model = "model"

[teachers.large]
model = "ORG/Large@0123abc"
dtype = "bfloat16"
max_model_len = 4096
[teachers.large.options]
tensor_parallel_size = 2
quantization = "fp8"

[teachers.reference]
model = "model"
engine = "transformers"

[students]
engine = "transformers"
max_model_len = 64
"""
        )
    )
    small, large, reference = listed.teachers
    assert (small.name, small.model, small.engine, small.dtype) == ("small", str(tmp_path / "model"), "vllm", "auto")
    assert (small.max_model_len, small.options) == (None, {})
    assert (large.model, large.dtype, large.max_model_len) == ("ORG/Large@0123abc", "bfloat16", 4096)
    assert large.options == {"tensor_parallel_size": 2, "quantization": "fp8"}
    assert (reference.name, reference.engine) == ("reference", "transformers")
    assert (listed.students.engine, listed.students.max_model_len) == ("transformers", 64)


MODEL = '[teachers.a]\nmodel = "model"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[teachers.a\n", "is not TOML, or says a thing twice: Expected ']'"),
        (MODEL + MODEL, "Cannot declare ('teachers', 'a') twice (at line 3"),
        (MODEL + 'model = "model"\n', "(at line 3, column"),
        ("", "expected at least one teacher, a table such as [teachers.small]"),
        ("[teachers]\n", "expected at least one teacher"),
        ("teachers = 3\n", "expected at least one teacher"),
        (MODEL + "[teacher.b]\n", "line 3: `teacher` is none of its tables; did you mean teachers?"),
        ("[teachers.a]\n", "line 1: [teachers.a] `model`: Field required"),
        ('teachers.a = "model"\n', "expected a table [teachers.a], got 'model'"),
        ('[teachers."a b"]\nmodel = "model"\n', "line 1: [teachers.a b] the name 'a b' cannot be asked for: 1 to 128"),
        ('[teachers."../a"]\nmodel = "model"\n', "the name '../a' cannot be asked for"),
        ('[teachers.a]\nmodel = "gone"\n', "line 2: [teachers.a] "),
        (
            '[teachers.a]\nmodel = "gone"\n',
            "gone is not there, and 'gone' is no model of the Hub with a pinned revision",
        ),
        ('[teachers.a]\nmodel = "ORG/NAME"\n', "expected a folder, relative to this file, or ORG/NAME@REVISION"),
        ('[teachers.a]\nmodel = ""\n', "line 2: [teachers.a] `model`: String should have at least 1 character, got ''"),
        (MODEL + 'engine = "openai"\n', "line 3: [teachers.a] `engine`: Input should be 'vllm' or 'transformers'"),
        (MODEL + "max_model_len = 1\n", "line 3: [teachers.a] `max_model_len`: Input should be greater than or equal"),
        (
            MODEL + 'dtypes = "auto"\n',
            "line 3: [teachers.a] there is no `dtypes`; did you mean dtype? Arguments of vLLM",
        ),
        (MODEL + "tensor_parallel_size = 2\n", "Arguments of vLLM go into [teachers.a.options]"),
        (MODEL + 'adapter = "lora"\n', "lora is no folder; expected one, relative to this file"),
        (MODEL + "options = 3\n", "line 3: [teachers.a] `options`: Input should be a valid dictionary, got 3"),
        (
            MODEL + "[teachers.a.options]\ntensor_paralel_size = 2\n",
            "line 1: [teachers.a.options]: vLLM has no option 'tensor_paralel_size'; did you mean tensor_parallel_size",
        ),
        (MODEL + "[students]\nadapter = 'x'\n", "line 4: [students] there is no `adapter`"),
    ],
)
def test_every_fault_is_told_with_its_place(write, text, words):
    path = write(text)
    with pytest.raises(TeachersFileError) as told:
        read_teachers(path)
    assert str(told.value).startswith((str(path), f"the file of teachers {path}"))
    assert words in str(told.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(TeachersFileError, match="cannot be read"):
        read_teachers(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(TeachersFileError, match="cannot be read"):
        read_teachers(tmp_path / "bytes.toml")


@given(text=st.text(alphabet='[]."=a\n teachrsmodl{}1#', max_size=60))
def test_no_text_raises_anything_else(text, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TeachersFileError):  # no such text names a model that is there
        read_teachers(path)
