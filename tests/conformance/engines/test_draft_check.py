"""vLLM with a real draft model: it counts what the check reads, and a replay of its text finds the counts again."""

import warnings

import numpy as np
import pytest

from logitcask_services.draft_check import check_draft, speculate
from logitcask_services.draft_check.speculation import draft_options
from logitcask_services.engines.factory import load_generator
from logitcask_services.engines.model_folder import ModelFolder
from logitcask_services.engines.transformers_engine import TransformersEngine
from tests.support.services.dense_teacher import save_noisy_copy

pytestmark = pytest.mark.engine
DRAFTED = 3


@pytest.fixture(scope="module")
def student(teacher_folder, tmp_path_factory):
    """The teacher with some noise on its weights."""
    return save_noisy_copy(teacher_folder, tmp_path_factory.mktemp("student") / "noisy", noise=0.2, seed=3)


def test_vllm_counts_what_a_replay_of_its_text_says(teacher_folder, student, documents):
    pytest.importorskip("vllm")
    prompts = [document[start : start + 24].astype(np.uint32) for document in documents[:2] for start in (0, 40, 80)]
    options = draft_options(student, DRAFTED, sampled=False, options={"max_num_seqs": 8})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's imports warn of their own accord
        generator = load_generator("vllm", teacher_folder, max_model_len=128, options=options)
    try:
        speculation = speculate(generator, prompts, max_tokens=48, temperature=0, drafted=DRAFTED)
    finally:
        generator.close()
    teacher, draft = (TransformersEngine(ModelFolder.open(each), dtype="float32") for each in (teacher_folder, student))
    checked = check_draft(
        speculation,
        teacher.logits,
        draft.logits,
        names=("teacher", "student"),
        drafted=DRAFTED,
        temperature=0,
        sampled=False,
        foretold=None,
        held_out=[documents[3].astype(np.uint32)],
    )
    assert checked.control.passed, checked.control.says
    assert checked.measured.rates_g == pytest.approx(checked.on_text.rates_g, abs=0.06)
    assert checked.measured.tokens_per_step == pytest.approx(checked.on_text.tokens_per_step, abs=0.15)
    assert 0.05 < checked.measured.rates_g[0] < 0.98
