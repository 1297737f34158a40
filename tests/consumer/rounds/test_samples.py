"""Texts on the disk, and which of them go to the teacher."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcask_consumer.rounds.samples import RoundTexts, SampledText, append_chunk, read_chunks, sampled_texts
from logitcask_consumer.run_document import RunFolderError
from logitcask_schemas.record.extent import Extent, document_id


def text(*tokens, prompt=(9, 8), finish="length"):
    return SampledText(prompt=0, input_ids=[*prompt, *tokens], logprobs=[-0.5] * len(tokens), finish=finish)


def kept_of(*texts, max_looping=1.0):
    return RoundTexts.of([texts], max_looping=max_looping)


@pytest.mark.parametrize(
    ("tokens", "loops"),
    [
        ([3] * 8, True),
        ([3] * 7, False),  # too short to tell
        ([1, 2, 3, 4] * 3, True),
        ([5, 6, 7, 8, 9, 10, 11] + [1, 2, 3] * 3, True),
        ([5, 6, 7, 8, 9, 10, 11, 12, 13, 14] + [1, 2, 3] * 3, False),  # 9 of 19
        (list(range(20)), False),
        ([1, 2, 3, 4, 5, 6, 7, 8] * 2, False),  # once more is no loop
        ([1, 5, 1, 6, 1, 7, 1, 8], False),  # exactly half
        ([1, 5, 1, 6, 1, 7, 1, 8, 1], True),
    ],
)
def test_what_repeats_itself(tokens, loops):
    assert text(*tokens).loops is loops


def test_the_prompt_may_repeat_itself():
    assert not text(*range(20), prompt=(3,) * 40).loops


def test_empty_texts_are_those_without_a_token_before_the_end():
    assert text(1, finish="stop").is_empty
    assert not text(1, finish="length").is_empty
    assert not text(5, 1, finish="stop").is_empty
    counts = kept_of(text(1, finish="stop"), text(5, 1, finish="stop")).counts
    assert (counts.texts, counts.kept, counts.empty) == (2, 1, 1)


def test_looping_texts_are_capped_as_a_share_of_all():
    looping = [text(*[token] * 10) for token in range(2, 8)]
    fine = [text(token, 1, finish="stop") for token in range(2, 6)]
    round_texts = kept_of(*looping, *fine, max_looping=0.25)
    assert round_texts.texts == [*looping[:2], *fine]
    assert (round_texts.counts.looping, round_texts.counts.looping_left_out) == (6, 4)
    assert kept_of(*looping, max_looping=0.0).texts == []


def test_a_text_that_was_written_twice_goes_to_the_teacher_once():
    round_texts = kept_of(text(5, 6), text(5, 6), text(5, 7))
    assert len(round_texts.texts) == 2
    assert round_texts.counts.duplicates == 1


def test_the_same_tokens_after_prompts_of_other_lengths_are_two_documents():
    one = text(5, 6, prompt=(9, 8))
    other = SampledText(prompt=1, input_ids=[9, 8, 5, 6], logprobs=[-0.1] * 3, finish="length")
    assert kept_of(one, other).counts.duplicates == 0


def test_identities_are_those_of_the_record():
    own = text(5, 6, 7)
    extent = Extent(recorded_R2=np.array([[1, 4]], dtype=np.uint32))
    assert own.id == document_id(np.array([9, 8, 5, 6, 7], dtype=np.uint32), extent)
    whole = text(5, prompt=(9,))
    assert whole.id == document_id(np.array([9, 5], dtype=np.uint32))
    known = sampled_texts([kept_of(own, whole)])
    np.testing.assert_array_equal(known.logprobs[own.id], np.full(3, -0.5, dtype=np.float32))


def test_lines_for_the_service_record_the_written_tokens_alone():
    (line,) = kept_of(text(5, 6, 7)).corpus(3).splitlines()
    assert json.loads(line) == {"input_ids": [9, 8, 5, 6, 7], "recorded": [[1, 4]], "custom_id": "r3-0"}


@given(logprobs=st.lists(st.floats(-50, 0, width=32), min_size=1, max_size=5))
def test_chunks_come_back_bit_by_bit(tmp_path_factory, logprobs):
    path = tmp_path_factory.mktemp("samples") / "samples.jsonl"
    own = SampledText(prompt=3, input_ids=[4] * 7, logprobs=logprobs, finish="stop")
    append_chunk(path, 0, [own, text(4)])
    append_chunk(path, 1, [])
    assert read_chunks(path) == [[own, text(4)], []]


class TestADamagedFile:
    """Of texts."""

    @pytest.fixture
    def path(self, tmp_path):
        for number in range(3):
            append_chunk(tmp_path / "samples.jsonl", number, [text(number + 2)])
        return tmp_path / "samples.jsonl"

    def test_a_torn_end_is_cut_wherever_it_was_torn(self, path):
        whole = path.read_bytes()
        second = whole.index(b"\n", whole.index(b"\n") + 1) + 1
        for end in range(second, len(whole)):
            path.write_bytes(whole[:end])
            assert len(read_chunks(path, mend=True)) == 2
            assert path.read_bytes() == whole[:second]
            append_chunk(path, 2, [text(4)])
            assert path.read_bytes() == whole

    def test_who_only_reads_leaves_a_torn_end(self, path):
        path.write_bytes(path.read_bytes()[:-3])
        before = path.read_bytes()
        assert len(read_chunks(path)) == 2
        assert path.read_bytes() == before

    @pytest.mark.parametrize(
        "line", ["{}", "[]", "no JSON", '{"chunk": 7, "texts": []}', '{"chunk": 1, "texts": [{"prompt": 1}]}']
    )
    def test_a_damaged_line_is_named(self, path, line):
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[0], line, lines[2]]) + "\n")
        with pytest.raises(RunFolderError, match=r"samples\.jsonl, line 2: should be chunk 1"):
            read_chunks(path, mend=True)

    @pytest.mark.parametrize(
        "change",
        [
            {"input_ids": "abc"},
            {"input_ids": [9, 8, 4]},  # one other token
            {"logprobs": [None]},
            {"logprobs": [-0.25]},
            {"logprobs": [-0.5] * 9},
            {"finish": "never"},
        ],
    )
    def test_a_text_that_is_not_what_was_written_is_named(self, path, change):
        lines = path.read_text().splitlines()
        entry = json.loads(lines[1])
        entry["texts"][0] |= change
        path.write_text("\n".join([lines[0], json.dumps(entry), lines[2]]) + "\n")
        with pytest.raises(RunFolderError, match=r"line 2: should be chunk 1 .*bring it back"):
            read_chunks(path)

    def test_a_file_that_is_not_there_holds_nothing(self, tmp_path):
        assert read_chunks(tmp_path / "none.jsonl") == []
