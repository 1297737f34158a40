"""Each hint loss against its dense formula, written out over live states in float64; gradients by differences."""

from itertools import pairwise

import pytest
import torch

from logitcask_consumer.hints import Cosine, HintMismatchError, MeanSquares, PatientKD, Relation, TaskAware
from logitcask_consumer.hints.hint_loss import Sides
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.hints import HintRows, projection_DN

DOCUMENTS = torch.tensor([4, 4, 4, 4, 4, 9, 9, 2, 2, 2])
"""Numbers of the documents of ten positions, packed in the order 4, 9, 2."""


def rows(width, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(10, width, generator=generator, dtype=torch.float64) * scale


def sides(student=6, teacher=6, **more):
    return Sides(of="hidden", student_width=student, teacher_width=teacher, **more)


def value(loss, student, teacher, **more):
    term = loss.term(sides(student.shape[1], teacher.shape[1], **more)).to(torch.float64)
    return term(student, teacher, DOCUMENTS), term


def test_cosine_is_distilberts():
    ours, theirs = rows(6, 0), rows(6, 1, 40.0)
    expected = [1 - float(h @ t) / float(h.norm() * t.norm()) for h, t in zip(ours, theirs, strict=True)]
    torch.testing.assert_close(value(Cosine(), ours, theirs)[0].tolist(), expected)


def test_pkd_is_patient_kds():
    ours, theirs = rows(6, 0), rows(6, 1, 40.0)
    expected = [float(((h / h.norm() - t / t.norm()) ** 2).sum()) for h, t in zip(ours, theirs, strict=True)]
    torch.testing.assert_close(value(PatientKD(), ours, theirs)[0].tolist(), expected)


def test_mse_is_tinyberts_with_its_matrix():
    ours, theirs = rows(4, 0), rows(6, 1)
    got, term = value(MeanSquares(), ours, theirs)
    matrix = next(term.parameters()).detach()
    assert matrix.shape == (6, 4)
    expected = [float(((matrix @ h - t) ** 2).mean()) for h, t in zip(ours, theirs, strict=True)]
    torch.testing.assert_close(got.tolist(), expected)
    assert not list(value(MeanSquares(), rows(6, 0), theirs)[1].parameters()), "equal widths need no matrix"


def test_mse_with_a_norm_compares_what_is_left_of_scale_and_mean():
    ours, theirs = rows(6, 0), rows(6, 1)

    def plain(h):
        return (h - h.mean()) / ((h - h.mean()) ** 2).mean().add(1e-5).sqrt()

    expected = [float(((plain(h) - plain(t)) ** 2).mean()) for h, t in zip(ours, theirs, strict=True)]
    torch.testing.assert_close(value(MeanSquares(norm="layer"), ours, theirs)[0].tolist(), expected)


@pytest.mark.parametrize("of", ["v", "qkv"])
def test_relation_is_minilm_v2s(of):
    """Students have other widths; each document by itself; relation heads cut the vectors anew."""
    ours_parts, theirs_parts = ((8,), (12,)) if of == "v" else ((16, 8, 8), (24, 12, 12))
    ours, theirs = rows(sum(ours_parts), 0), rows(sum(theirs_parts), 1)
    both = Sides(
        of=of,
        student_width=sum(ours_parts),
        teacher_width=sum(theirs_parts),
        student_parts=ours_parts,
        teacher_parts=theirs_parts,
    )
    got = Relation(heads=4).term(both)(ours, theirs, DOCUMENTS)
    torch.testing.assert_close(got, relation_reference(ours, theirs, ours_parts, theirs_parts, heads=4))


def relation_reference(ours, theirs, ours_parts, theirs_parts, *, heads):
    """Document by document."""
    return torch.cat(
        [
            relation_of_document(ours[start:stop], theirs[start:stop], ours_parts, theirs_parts, heads=heads)
            for start, stop in pairwise([0, 5, 7, 10])
        ]
    )


def relation_of_document(ours, theirs, ours_parts, theirs_parts, *, heads):
    """Head by head, from the paper's equations."""
    expected = torch.zeros(len(ours), dtype=torch.float64)
    at = [0, 0]
    for ours_width, theirs_width in zip(ours_parts, theirs_parts, strict=True):
        mine, other = ours[:, at[0] : at[0] + ours_width], theirs[:, at[1] : at[1] + theirs_width]
        at = [at[0] + ours_width, at[1] + theirs_width]
        for head in range(heads):
            p, q = (relation_of_head(side, head, heads) for side in (other, mine))
            expected += (p * (p / q).log()).sum(-1) / heads
    return expected


def relation_of_head(vectors, head, heads):
    """The softmax of products of the head's part of the vectors."""
    size = vectors.shape[1] // heads
    part = vectors[:, head * size : (head + 1) * size]
    return torch.softmax(part @ part.T / size**0.5, -1)


def test_relations_of_a_document_do_not_see_its_neighbours():
    ours, theirs = rows(8, 0), rows(8, 1)
    both = Sides(of="v", student_width=8, teacher_width=8, student_parts=(8,), teacher_parts=(8,))
    term = Relation().term(both)
    before = term(ours, theirs, DOCUMENTS)
    changed = torch.cat([ours[:5], ours[5:7] * 3, ours[7:]])
    after = term(changed, theirs, DOCUMENTS)
    torch.testing.assert_close(after[:5], before[:5], rtol=0, atol=0)
    torch.testing.assert_close(after[7:], before[7:], rtol=0, atol=0)
    assert (after[5:7] - before[5:7]).abs().max() > 1e-3
    joined = term(ours, theirs, torch.zeros(10, dtype=torch.int64))
    assert (joined - before).abs().max() > 1e-2, "one document is something else"


def test_ted_compares_filtered_states_of_unit_size():
    ours, theirs, matrix = rows(4, 0), rows(6, 1, 900.0), rows(6, 2)[:6]
    got, term = value(TaskAware(), ours, theirs, filter_DD=matrix)
    own = next(term.parameters()).detach()

    def unit(h):
        return h / (h @ h / len(h)).sqrt()

    expected = [float(((own @ unit(h) - matrix @ unit(t)) ** 2).mean()) for h, t in zip(ours, theirs, strict=True)]
    torch.testing.assert_close(got.tolist(), expected)


LOSSES = [Cosine(), PatientKD(), MeanSquares(), MeanSquares(norm="layer"), Cosine(projection="learned"), TaskAware()]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.spec)
def test_gradients_are_those_of_the_formula(loss):
    ours, theirs = rows(6, 0).requires_grad_(), rows(6, 1)
    more = {"filter_DD": rows(6, 2)[:6]} if loss.filtered else {}
    term = loss.term(sides(**more)).to(torch.float64)
    assert torch.autograd.gradcheck(lambda h: term(h, theirs, DOCUMENTS), ours)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.spec)
def test_a_state_of_zeros_has_a_finite_loss_and_gradient(loss):
    """Such as the embedding of a token that was never trained: it has no direction."""
    ours, theirs = torch.zeros(10, 6, dtype=torch.float64, requires_grad=True), rows(6, 1)
    theirs[3] = 0
    more = {"filter_DD": rows(6, 2)[:6]} if loss.filtered else {}
    got = loss.term(sides(**more)).to(torch.float64)(ours, theirs, DOCUMENTS)
    got.sum().backward()
    assert got.isfinite().all()
    assert ours.grad is not None
    assert ours.grad.isfinite().all()


@pytest.mark.parametrize("of", ["v", "qkv"])
def test_gradients_of_relations_are_those_of_the_formula(of):
    parts = (8,) if of == "v" else (16, 8, 8)
    both = Sides(of=of, student_width=sum(parts), teacher_width=sum(parts), student_parts=parts, teacher_parts=parts)
    term = Relation(heads=2).term(both)
    theirs = rows(sum(parts), 1)
    assert torch.autograd.gradcheck(lambda h: term(h, theirs, DOCUMENTS), rows(sum(parts), 0).requires_grad_())


def test_a_projected_capture_is_compared_with_the_students_projection():
    """Codec proj:N: the student's state goes through the matrix that the teacher's went through."""
    ours, theirs = rows(6, 0), rows(6, 1)
    spec = HintSpec(layers=(3,), codec="proj:4", seed=7)
    stored = HintRows.encode(theirs[:, None].numpy(), spec)
    matrix = torch.from_numpy(projection_DN(7, 6, 4).copy()).double()
    kept = torch.from_numpy(stored.decode()[:, 0]).double()
    term = PatientKD().term(sides(projected=4, seed=7)).to(torch.float64)
    expected = [float(((h / h.norm() - t / t.norm()) ** 2).sum()) for h, t in zip(ours @ matrix, kept, strict=True)]
    torch.testing.assert_close(term(ours, kept, DOCUMENTS).tolist(), expected)
    wrong = PatientKD().term(sides(projected=4, seed=8)).to(torch.float64)
    assert (wrong(ours, kept, DOCUMENTS) - term(ours, kept, DOCUMENTS)).abs().max() > 1e-2
    learned = MeanSquares().term(sides(student=3, teacher=6, projected=4))
    assert [tuple(weight.shape) for weight in learned.parameters()] == [(4, 3)]


@pytest.mark.parametrize("student", [40, 24], ids=["seeded", "learned"])
def test_mse_of_a_projected_capture_is_of_the_size_that_it_has_of_whole_states(student):
    """A random projection keeps lengths: the squares are divided by the teacher's width, not by how few are stored."""
    theirs = rows(40, 1, 3.0)
    kept = theirs @ torch.from_numpy(projection_DN(7, 40, 8).copy()).double()
    ours = rows(student, 0)
    term = MeanSquares().term(sides(student, 40, projected=8, seed=7)).to(torch.float64)
    matrix = next(iter([*term.parameters(), *term.buffers()])).detach().double()
    assert matrix.shape == (8, student)
    expected = [float(((matrix @ h - t) ** 2).sum() / 40) for h, t in zip(ours, kept, strict=True)]
    torch.testing.assert_close(term(ours, kept, DOCUMENTS).tolist(), expected)


@pytest.mark.parametrize("loss", [Cosine(), PatientKD(), MeanSquares(projection="none")], ids=lambda loss: loss.name)
def test_other_widths_without_a_projection_are_refused(loss):
    with pytest.raises(
        HintMismatchError, match=r"student have 4 numbers, those of the cask's teacher 6.*projection=auto"
    ):
        loss.term(sides(4, 6))


def test_relation_heads_divide_both_widths_and_parts_add_up():
    def both(ours, theirs, width):
        return Sides(of="v", student_width=8, teacher_width=width, student_parts=ours, teacher_parts=theirs)

    with pytest.raises(HintMismatchError, match="3 relation heads do not divide the student's v of 8 numbers"):
        Relation(heads=3).term(both((8,), (12,), 12))
    with pytest.raises(HintMismatchError, match="4 relation heads do not divide the teacher's v of 6 numbers"):
        Relation(heads=4).term(both((8,), (6,), 6))
    with pytest.raises(HintMismatchError, match=r"have 12 numbers, by the teacher's config\.json they would have 8"):
        Relation(heads=4).term(both((8,), (8,), 12))


def test_a_batch_without_positions_is_worth_nothing():
    both = Sides(of="v", student_width=8, teacher_width=8, student_parts=(8,), teacher_parts=(8,))
    empty = torch.zeros(0, 8, dtype=torch.float64)
    assert Relation().term(both)(empty, empty, torch.zeros(0)).shape == (0,)
    assert PatientKD().term(sides(8, 8))(empty, empty, torch.zeros(0)).shape == (0,)
