"""Which layer learns from which: the papers' maps, lists, and what does not fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcask_consumer.hints import HintObjective, LayerMapError
from logitcask_consumer.hints.layer_map import Depths, LayerPair, layer_pairs
from logitcask_consumer.losses import LossParameterError, UnknownLossError


def mapped(text, *, student=4, teacher=12, recorded=tuple(range(13)), first=0):
    depths = Depths(student=student, teacher=teacher, recorded=tuple(recorded), first=first)
    return [(pair.student, pair.teacher) for pair in layer_pairs(text, depths)]


def test_uniform_is_tinyberts():
    """TinyBERT's g(m) = 3 m for 4 layers of a teacher of 12, embeddings and last among them."""
    assert mapped("uniform", recorded=(0, 3, 6, 9, 12)) == [(0, 0), (1, 3), (2, 6), (3, 9), (4, 12)]


def test_uniform_takes_every_recorded_layer_to_the_nearest_depth():
    """10 of 30 blocks are a third; a layer between two of the student's goes to the nearer one."""
    assert mapped("uniform", student=10, teacher=30, recorded=(10, 20, 30)) == [(3, 10), (7, 20), (10, 30)]


def test_skip_and_last_are_patient_kds():
    """Six layers of a teacher of 12: skip is {2, 4, 6, 8, 10}, last {7, ..., 11}, of those that are recorded."""
    inner = range(1, 12)
    assert mapped("skip", student=6, recorded=inner) == [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10)]
    assert mapped("last", student=6, recorded=inner) == [(1, 7), (2, 8), (3, 9), (4, 10), (5, 11)]
    assert mapped("last", student=6, recorded=(3, 9, 12)) == [(3, 9), (6, 12)]


def test_a_list_counts_from_either_end():
    assert mapped("1:3/-1:-1/2:12") == [(1, 3), (2, 12), (4, 12)]


def test_a_list_of_layers_from_the_start_needs_no_depth():
    assert mapped("1:3", teacher=None) == [(1, 3)]


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("uniform", {"recorded": (11, 12)}, r"layer 4 of the student would learn from several \(4:11, 4:12\)"),
        ("skip", {"recorded": (1, 2)}, "fits no layer; the student has layers 0 to 4, the cask those numbered 1, 2"),
        ("last", {"recorded": (1, 2)}, "fits no layer"),
        ("5:3", {}, "the student has no layer 5"),
        ("-6:3", {}, "the student has no layer -6"),
        ("1:5", {"recorded": (3, 12)}, r"layer 5 of the teacher is not in the cask; .* numbered 3, 12 of 12"),
        ("1:-3", {"recorded": (3, 12)}, "layer -3 of the teacher is not in the cask"),
        ("1:3/1:6", {}, "layer 1 of the student would learn from several"),
        ("uniform", {"teacher": None}, "name the teacher's folder"),
        ("1:-1", {"teacher": None}, "name the teacher's folder"),
        ("0:3", {"first": 1}, "the student has no layer 0"),
    ],
)
def test_maps_that_do_not_fit_are_refused_with_both_lists(text, options, says):
    with pytest.raises(LayerMapError, match=says) as refused:
        mapped(text, **options)
    assert "the student has layers" in str(refused.value)


@pytest.mark.parametrize("text", ["", "every", "1", "1:", "1:2:3", "a:b", "1:2/"])
def test_what_is_no_map_is_refused_as_soon_as_it_is_read(text):
    with pytest.raises(LossParameterError, match="is no map of layers"):
        mapped(text)
    with pytest.raises(LossParameterError, match=r"no map of layers|cannot read"):
        HintObjective.parse(f"pkd:map={text}")


@given(
    student=st.integers(1, 40),
    teacher=st.integers(1, 80),
    recorded=st.sets(st.integers(0, 80), min_size=1),
    name=st.sampled_from(["uniform", "skip", "last"]),
)
def test_every_pair_of_a_named_map_is_one_that_there_is(student, teacher, recorded, name):
    layers = tuple(sorted(layer for layer in recorded if layer <= teacher)) or (teacher,)
    depths = Depths(student=student, teacher=teacher, recorded=layers)
    try:
        pairs = layer_pairs(name, depths)
    except LayerMapError:
        return
    assert len({pair.student for pair in pairs}) == len(pairs)
    for pair in pairs:
        assert 0 <= pair.student <= student
        assert pair.teacher in layers
        if name == "uniform":
            assert abs(pair.student - pair.teacher * student / teacher) <= 0.5
        if name == "skip":
            assert pair.student * teacher == pair.teacher * student
        if name == "last":
            assert student - pair.student == teacher - pair.teacher


def test_hints_are_written_with_their_weights_behind():
    objective = HintObjective.parse("pkd:map=uniform@1.0 + cosine:layer=last@0.5")
    assert [(weight, loss.spec) for weight, loss in objective.terms(0.0)] == [(1.0, "pkd"), (0.5, "cosine")]
    scheduled = HintObjective.parse("mse:norm=layer,map=4:10/8:20@linear(1e+0,0) + relation:heads=4")
    assert [loss.spec for loss in scheduled.losses] == ['mse:map="4:10/8:20",norm=layer', "relation:heads=4"]
    assert [[weight for weight, _ in scheduled.terms(at)] for at in (0.0, 0.5, 1.0)] == [[1, 1], [0.5, 1], [0, 1]]
    assert HintObjective.parse(" + ".join(loss.spec for loss in scheduled.losses)).losses == scheduled.losses


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("", LossParameterError, "loss number 1 is missing"),
        ("0.5*cosine", UnknownLossError, r"a weight stands behind it: cosine@0.5"),
        ("cosin", UnknownLossError, "there are: cosine, mse, pkd, relation, ted"),
        ("cosine@", LossParameterError, "is no weight"),
        ("@0.5", LossParameterError, "loss number 1 is missing"),
        ("cosine@-1", LossParameterError, "must not be negative"),
        ("cosine + cosine@0.5", LossParameterError, "names a loss twice"),
        ("cosine:map=last", LossParameterError, "its parameters are: layer, projection"),
        ("pkd:projection=maybe", LossParameterError, "one of none, auto, learned"),
        ("relation:heads=0", LossParameterError, "heads is at least 1"),
        ("ted:steps=0", LossParameterError, "steps is at least 1"),
        ("ted:projection=auto", LossParameterError, "leave projection out"),
        ("ted:map=last + ted:map=skip", LossParameterError, "one ted is enough"),
    ],
)
def test_hints_that_cannot_be_read_are_refused(text, error, says):
    with pytest.raises(error, match=says):
        HintObjective.parse(text)


def test_a_pair_is_written_as_a_list_has_it():
    assert str(LayerPair(student=4, teacher=10)) == "4:10"
