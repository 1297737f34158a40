"""Settings of rounds and recipes: what is refused, and with which words."""

from pathlib import Path

import pytest

from logitcask_consumer.config import TrainConfigError
from logitcask_consumer.losses import LossParameterError, UnknownLossError
from logitcask_consumer.rounds.buffer import next_share, rounds_in_buffer
from logitcask_consumer.rounds.config import RoundsConfig, RoundsConfigError
from logitcask_consumer.rounds.phases import is_gone
from logitcask_consumer.rounds.recipes import RecipeError
from logitcask_consumer.rounds.state import RoundState
from logitcask_schemas.cask.storage.object_store import RemoteStore
from logitcask_schemas.errors import CaptureSpecError

BASE = {
    "recipe": "gkd",
    "prompts": Path("p"),
    "student": "s",
    "server": "x",
    "output": Path("/a/run"),
    "cask_root": "c",
}
FIXED = {"casks": ("c",)}


def config(**more):
    return RoundsConfig(**{**BASE, **more})


@pytest.mark.parametrize(
    ("more", "losses", "share", "kept"),
    [
        ({}, ("js:beta=0.5", "js:beta=0.5"), 1.0, 1),
        (FIXED, ("js:beta=0.5", "js:beta=0.5"), 0.5, 1),
        ({**FIXED, "recipe": "minillm"}, ("reverse_kl + policy_rkl", "cross_entropy"), 0.5, 1),
        (
            {**FIXED, "recipe": "distillm", "held_out": "h"},
            ("skew_reverse_kl:alpha=0.1", "skew_reverse_kl:alpha=0.1"),
            0.0,
            3,
        ),
        ({"recipe": "f-distill", "loss": "reverse_kl"}, ("reverse_kl", "reverse_kl"), 1.0, 1),
        ({**FIXED, "recipe": "f-distill", "loss": "tvd"}, ("tvd", "tvd"), 0.5, 1),
        ({**FIXED, "loss": "skew_kl", "fixed_loss": "forward_kl"}, ("skew_kl", "forward_kl"), 0.5, 1),
    ],
)
def test_recipes(more, losses, share, kept):
    own = config(**more)
    assert (own.losses, own.first_share, own.kept_rounds) == (losses, share, kept)


@pytest.mark.parametrize(
    ("more", "error", "what"),
    [
        (
            {**FIXED, "share": 0.0002},
            RoundsConfigError,
            "lambda is 0.0002, of which no sequence of a round's 1600 is drawn; the smallest .* is 0.000625",
        ),
        ({**FIXED, "share": 0.9999}, RoundsConfigError, "the fixed casks' share, 1 - lambda, is 0.0001, of which no"),
        (
            {**FIXED, "recipe": "distillm", "held_out": "h", "adapt_by": 1e-5},
            RoundsConfigError,
            "what lambda rises by .adapt_by. is 1e-05",
        ),
        ({"recipe": "ppo"}, RecipeError, "there is no recipe 'ppo'; there are: gkd, minillm, distillm, f-distill"),
        ({"recipe": "f-distill"}, RecipeError, "--loss reverse_kl or --loss js or --loss tvd"),
        ({"recipe": "f-distill", "loss": "forward_kl"}, RecipeError, "--recipe seqkd"),
        ({"recipe": "f-distill", "loss": "csd"}, RecipeError, "has no loss csd"),
        ({"recipe": "f-distill", "loss": "tvd"}, RoundsConfigError, "needs the teacher's texts as well"),
        ({"recipe": "distillm"}, RoundsConfigError, "lambda 0 leaves 100%|--held-out"),
        ({**FIXED, "recipe": "distillm"}, RoundsConfigError, "--held-out"),
        ({"loss": "nothing"}, UnknownLossError, "nothing"),
        ({"loss": "js:beta=2"}, LossParameterError, "beta"),
        ({**FIXED, "fixed_loss": "policy_rkl"}, RecipeError, "--fixed-loss"),
        ({"recipe": "minillm", "temperature": 0.7}, RoundsConfigError, "temperature and top_p must be 1"),
        ({"recipe": "minillm", "top_k": 5}, RoundsConfigError, "top_k 0"),
        ({"recipe": "minillm", "buffer": 2}, RoundsConfigError, "two of these: buffer must be 1, got 2"),
        ({"name": ""}, RoundsConfigError, "name is empty"),
        ({"loss": ""}, RoundsConfigError, "loss is empty"),
        ({"fixed_loss": ""}, RoundsConfigError, "fixed_loss is empty"),
        ({"batch_tokens": 0}, TrainConfigError, "batch_tokens must hold"),
        ({"share": 1.5, **FIXED}, RoundsConfigError, "lambda must lie between 0 and 1, got 1.5"),
        ({"share": 0.5}, RoundsConfigError, "lambda 0.5 leaves 50% of every step to a fixed cask"),
        ({"share": 1.0, **FIXED}, RoundsConfigError, "leave out --cask"),
        ({"adapt_by": 0.1}, RoundsConfigError, "keeps its share"),
        ({"output": Path("/a/my run")}, RoundsConfigError, "'my run' is no name for them.*--name"),
        ({"name": "-x"}, RoundsConfigError, "'-x' is no name"),
        ({"rounds": 0}, RoundsConfigError, "rounds must be at least 1, got 0"),
        ({"steps_per_round": 0}, RoundsConfigError, "steps_per_round"),
        ({"prompts_per_round": 0}, RoundsConfigError, "prompts_per_round"),
        ({"texts_per_prompt": 0}, RoundsConfigError, "texts_per_prompt"),
        ({"max_new_tokens": 513}, RoundsConfigError, "between 1 and seq_len 512, got 513"),
        ({"temperature": 0.0}, RoundsConfigError, "temperature must be above 0"),
        ({"temperature": float("nan")}, RoundsConfigError, "temperature must be above 0"),
        ({"top_p": 0.0}, RoundsConfigError, "top_p"),
        ({"top_k": -1}, RoundsConfigError, "top_k"),
        ({"sample_batch": 0}, RoundsConfigError, "sample_batch"),
        ({"max_looping": 1.1}, RoundsConfigError, "max_looping"),
        ({**FIXED, "share": float("nan")}, RoundsConfigError, "lambda must lie between 0 and 1, got nan"),
        (
            {**FIXED, "recipe": "distillm", "held_out": "h", "adapt_by": float("nan")},
            RoundsConfigError,
            "adapt_by must be above 0 and at most 1, got nan",
        ),
        ({"output": Path("/caf\udce9/run")}, TrainConfigError, r"output /caf\\xe9/run is a path that is no UTF-8"),
        ({"cask_root": Path("/caf\udce9")}, RoundsConfigError, r"cask_root /caf\\xe9 is a path that is no UTF-8"),
        ({**FIXED, "held_out": "/caf\udce9"}, RoundsConfigError, r"held_out /caf\\xe9 is a path that is no UTF-8"),
        ({"casks": ("a", "/caf\udce9")}, RoundsConfigError, r"cask /caf\\xe9 is a path that is no UTF-8"),
        (
            {"sampler": "service", "students": Path("/caf\udce9")},
            RoundsConfigError,
            r"students /caf\\xe9 is a path that is no UTF-8",
        ),
        ({"buffer": 0}, RoundsConfigError, "buffer"),
        ({"patience_seconds": -1.0}, RoundsConfigError, "patience_seconds"),
        ({"lr": 0.0}, TrainConfigError, "lr must be positive"),
        ({"batch_tokens": 5}, TrainConfigError, "batch_tokens must hold"),
        ({"precision": "float8"}, TrainConfigError, "precision"),
    ],
)
def test_what_cannot_be_is_refused(more, error, what):
    with pytest.raises(error, match=what):
        config(**more)


def test_the_capture_has_what_the_loss_reads():
    assert config().spec.tail_logprobs
    assert not config(recipe="minillm").spec.tail_logprobs
    assert config().at_tau(0.1).spec.tau == 0.1
    assert config().at_tau(0.1).spec.tail_logprobs
    with pytest.raises(CaptureSpecError):
        config().at_tau(3.0)


@pytest.mark.parametrize(
    ("root", "place"), [("c", "c/run.r0012"), ("s3://b/c/", "s3://b/c/run.r0012"), (Path("/x"), "/x/run.r0012")]
)
def test_casks_are_named_after_the_run_and_its_round(root, place):
    assert config(cask_root=root).cask_place(12) == place
    assert config(cask_root=root, name="other").cask_name(3) == "other.r0003"


def test_what_may_differ_when_a_run_goes_on_and_the_key_is_in_no_file():
    one = config(api_key="secret-key")
    assert one.binding() == config(server="y", cask_root="z", max_looping=1.0, micro_tokens=4096).binding()
    assert one.binding() != config(seed=1).binding()
    assert "secret" not in str(one.binding()) + repr(one)


@pytest.mark.parametrize(("before", "after", "expected"), [(1.0, 1.1, 0.5), (1.1, 1.0, 0.25), (1.0, 1.0, 0.25)])
def test_lambda_rises_where_the_loss_does_and_never_falls(before, after, expected):
    assert next_share(0.25, before=before, after=after, by=0.25) == expected
    assert next_share(0.9, before=1.0, after=2.0, by=0.25) == 1.0


def test_the_buffer_holds_the_latest_rounds_that_have_a_cask():
    casks = [None, "b", None, "d", "e"]
    rounds = [RoundState(number=number, share=0.5, cask=cask) for number, cask in enumerate(casks, start=1)]
    assert [own.number for own in rounds_in_buffer(rounds, 4, 2)] == [2, 4]
    assert [own.number for own in rounds_in_buffer(rounds, 5, 9)] == [2, 4, 5]
    assert rounds_in_buffer(rounds, 1, 2) == []


def test_the_smallest_lambda_that_draws_a_sequence_is_taken():
    assert config(**FIXED, share=0.000625).first_share == 0.000625


def test_the_name_binds_also_where_it_follows_from_the_folder():
    """A run whose folder is moved would look for its casks under another name."""
    assert config().binding()["name"] == "run"
    assert config(output=Path("/b/other")).binding()["name"] == "other"
    assert config(output=Path("/b/other"), name="run").binding() == config().binding()


def test_a_cask_that_was_removed_from_a_store_is_gone_and_one_that_is_there_is_not(tmp_path):
    pytest.importorskip("fsspec", reason="object stores need the extra `remote`")
    there = config(cask_root="memory://rounds-gone", cache=tmp_path / "cache")
    assert is_gone(there, 1)
    RemoteStore(there.cask_place(1)).write("cask.json", b"{}")
    try:
        assert not is_gone(there, 1)
    finally:
        RemoteStore(there.cask_place(1)).delete("cask.json")
