"""Each row of the fidelity report against dense float64, and faults made on purpose, which show in their own rows."""

from dataclasses import replace

import numpy as np
import pytest

from logitcask_schemas.cask.format.codec_u8 import decode_u8, encode_u8
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.records import DocumentRecords, Records
from logitcask_services.engines.engine import CaptureTask
from logitcask_services.engines.factory import load_engine
from logitcask_services.engines.vllm.request import document_key
from logitcask_services.fidelity import Sample, engine_passes, fidelity_report
from logitcask_services.fidelity.passes import captured
from tests.support.services.capture_oracle import cut, run
from tests.support.services.dense_teacher import DenseTeacher, save_noisy_copy

SPEC = CaptureSpec(tau=0.02)
LENGTHS = (40, 17, 3, 64, 30, 25)


@pytest.fixture(scope="module")
def teacher(tiny_llama):
    engine = load_engine("transformers", tiny_llama, options={"batch_documents": 4})
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def other(tiny_llama, tmp_path_factory):
    """The same teacher with other last digits, as another engine or a quantised one has them."""
    folder = save_noisy_copy(tiny_llama, tmp_path_factory.mktemp("other") / "tiny", noise=0.03, seed=7)
    engine = load_engine("transformers", folder, options={"batch_documents": 4})
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def dense(tiny_llama):
    return DenseTeacher(tiny_llama)


def documents(lengths=LENGTHS):
    return [np.random.default_rng(n).integers(0, 300, length).astype(np.uint32) for n, length in enumerate(lengths)]


def sample_of(spec=SPEC, lengths=LENGTHS):
    tasks = tuple(CaptureTask(key=n, token_ids_L=ids) for n, ids in enumerate(documents(lengths)))
    return Sample(tasks=tasks, spec=spec, stored=None, teacher=None)


def report_of(engine, sample, plain, windows=()):
    return fidelity_report(engine_passes(engine, sample), plain.logits, windows=windows)


def ends(report):
    """Of the interval of the target's row."""
    nats = report.row("target").nats
    return nats.low, nats.high


def kl(said, true):
    said, true = np.asarray(said, np.float64), np.asarray(true, np.float64)
    return float((said[said > 0] * np.log(said[said > 0] / true[said > 0])).sum())


def parts(t_V, head_ids):
    return [*t_V[head_ids], np.delete(t_V, head_ids).sum()]


def mean_of(dense, value):
    """Mean over all positions of value(number of the document, row, log t)."""
    found = [
        value(number, row, log_t_V)
        for number, ids in enumerate(documents())
        for row, log_t_V in enumerate(dense.logprobs(ids)[:-1])
    ]
    return float(np.mean(found))


def test_a_teacher_that_is_itself_has_nothing_but_noise_in_its_rows(teacher, dense):
    report = report_of(teacher, sample_of(CaptureSpec(tau=0.02, logprob_codec="f32")), teacher)
    assert report.positions == sum(LENGTHS) - len(LENGTHS)
    for name in ("control", "capture", "cask", "codec"):
        # The rest below 1e-6 of which nothing is drawn is all that a float32 record leaves out.
        assert 0 <= report.row(name).nats.value < 1e-6, name
    assert report.row("control").details["same_tokens"] > 0.99
    assert report.entropy.value == pytest.approx(mean_of(dense, lambda n, r, t: -(np.exp(t) * t).sum()), rel=1e-6)
    low, high = ends(report)
    assert low < 0 < high
    assert report.differences == {}


def test_another_engine_is_seen_in_capture_and_cask_and_not_in_the_control(teacher, other, dense, tiny_llama):
    report = report_of(other, sample_of(), teacher)
    assert report.row("control").nats.value < 1e-9
    said = [other.logits(ids).double().softmax(-1).numpy() for ids in documents()]

    def of_two_hundred(number, row, log_t_V):
        ids = documents()[number]
        head = list(dict.fromkeys([*np.argsort(-said[number][row])[:200], ids[row + 1]]))
        return kl(parts(said[number][row], head), parts(np.exp(log_t_V), head))

    expected = mean_of(dense, of_two_hundred)
    assert report.row("capture").nats.value == pytest.approx(expected, rel=1e-3)
    assert expected > 1e-3
    records = [cut(document.records) for document in captured(other, sample_of().tasks, SPEC)]

    def of_the_record(number, row, log_t_V):
        at = records[number][row]
        head = np.exp(at.head_logprobs)
        rest = at.tail_mass if len(at.tail_ids) else 0.0
        return kl([*head * (1 - rest) / head.sum(), rest], parts(np.exp(log_t_V), at.head_ids))

    assert report.row("cask").nats.value == pytest.approx(mean_of(dense, of_the_record), rel=1e-3)
    assert report.row("codec").nats.value < 1e-6


@pytest.mark.parametrize("codec", ["f16", "u8", "u8all"])
def test_the_codec_is_what_rounding_does_to_an_exact_record(teacher, dense, codec):
    spec = SPEC.model_copy(update={"logprob_codec": codec})
    report = report_of(teacher, sample_of(spec), teacher)
    exact = [
        run(
            SPEC.model_copy(update={"logprob_codec": "f32"}),
            dense.logprobs(ids)[:-1],
            ids[1:].astype(np.int64),
            doc_key=document_key(ids),
        )
        for ids in documents()
    ]

    def rounded(values, column, number):
        if codec == "f16" or (codec == "u8" and column == "log_tail_mass"):
            return values.astype(np.float16)
        identity = DocumentRecords(token_ids_L=documents()[number], records=exact[number]).id
        return decode_u8(encode_u8(values, column=column, seed=0, document_id=identity), column)

    heads = [rounded(each.head_logprobs_H, "head_logprobs", n).astype(np.float64) for n, each in enumerate(exact)]
    rests = [rounded(each.log_tail_mass_P, "log_tail_mass", n).astype(np.float64) for n, each in enumerate(exact)]
    positions = [cut(each) for each in exact]
    starts = [np.cumsum(each.head_counts_P.astype(int)) - each.head_counts_P for each in exact]

    def of_the_record(number, row, log_t_V):
        at, start = positions[number][row], int(starts[number][row])
        head = np.exp(heads[number][start : start + len(at.head_ids)])
        rest = np.exp(rests[number][row]) if len(at.tail_ids) else 0.0
        return kl([*head * (1 - rest) / head.sum(), rest], parts(np.exp(log_t_V), at.head_ids))

    expected = mean_of(dense, of_the_record)
    assert report.row("codec").nats.value == pytest.approx(expected, rel=0.02)
    # The teacher being itself, the cask's row holds the codec and nothing else.
    assert report.row("cask").nats.value == pytest.approx(expected, rel=0.02)
    assert expected > (1e-9 if codec == "f16" else 1e-6)


def test_target_and_truncation_are_cross_entropies_of_targets(teacher, dense):
    sample = sample_of()
    passes = engine_passes(teacher, sample)
    report = fidelity_report(passes, teacher.logits)
    records = [cut(document.records) for document in passes.sample.stored]

    def of_the_target(number, row, log_t_V):
        return ((records[number][row].target(300) - np.exp(log_t_V)) * -log_t_V).sum()

    assert report.row("target").nats.value == pytest.approx(mean_of(dense, of_the_target), abs=3e-3)
    details = report.row("truncation").details
    entries = [len(at.head_ids) + len(at.tail_ids) for each in records for at in each]
    assert details["k"] == round(np.mean(entries))
    kept = mean_of(dense, lambda n, r, t: -np.log(np.sort(np.exp(t))[-details["k"] :].sum()))
    assert report.row("truncation").nats.value == pytest.approx(kept, rel=1e-6)
    assert details["lost_mass"] == pytest.approx(
        mean_of(dense, lambda n, r, t: 1 - np.sort(np.exp(t))[-details["k"] :].sum()), rel=1e-5
    )
    assert details["target"] < -0.05


@pytest.mark.parametrize("sampler", ["systematic", "multinomial"])
def test_noise_is_what_the_target_scatters_over_seeds(teacher, dense, sampler):
    lengths = (16, 8)
    report = report_of(teacher, sample_of(SPEC.model_copy(update={"sampler": sampler}), lengths), teacher)
    exact = SPEC.model_copy(update={"sampler": sampler, "logprob_codec": "f32"})
    variances = []
    for ids in documents(lengths):
        log_t = dense.logprobs(ids)[:-1]
        crosses = [
            [-(at.target(300) * log_t[row]).sum() for row, at in enumerate(cut(records))]
            for records in (
                run(exact.model_copy(update={"seed": seed}), log_t, ids[1:].astype(np.int64)) for seed in range(120)
            )
        ]
        variances.append(np.var(crosses, axis=0))
    expected = float(np.sqrt(np.mean(np.concatenate(variances))))
    assert report.row("noise").nats.value == pytest.approx(expected, rel=0.08)
    assert report.row("noise").nats.low is None  # two documents tell no interval


def test_windows_lose_what_dense_passes_over_the_pieces_say(teacher, dense):
    report = report_of(teacher, sample_of(), teacher, windows=(16, 64))
    found, later = [], []
    for ids in documents():
        if len(ids) <= 16:
            continue
        whole, start = dense.logprobs(ids), 0
        while start < len(ids):
            stop = min(start + 16, len(ids))
            stop -= len(ids) - stop == 1
            said = dense.logprobs(ids[start:stop])[:-1]
            values = [kl(np.exp(s), np.exp(t)) for s, t in zip(said, whole[start : stop - 1], strict=True)]
            found += values
            later += values if start else []
            start = stop
    row = report.row("window-16")
    assert row.nats.value == pytest.approx(np.mean(found), rel=1e-5)
    assert row.details["later"] == pytest.approx(np.mean(later), rel=1e-5)
    assert row.details["documents"] == 5
    assert row.nats.value > 0.01
    assert report.row("window-64").nats is None
    assert "no document of the sample is longer" in report.row("window-64").note


class BadCompany:
    """An engine that says something else where documents are read together, as one with a wrong mask would."""

    def __init__(self, alone, together):
        self.alone, self.together, self.identity = alone, together, alone.identity

    def capture(self, tasks, spec):
        tasks = list(tasks)
        return (self.alone if len(tasks) == 1 else self.together).capture(tasks, spec)


def test_an_engine_that_depends_on_company_is_seen_in_the_control(teacher, other):
    right = report_of(teacher, sample_of(), teacher)
    wrong = report_of(BadCompany(teacher, other), sample_of(), teacher)
    assert wrong.row("control").nats.value > 1e-3
    assert wrong.row("control").details["largest_difference"] > 0.1
    assert wrong.row("capture").nats == right.row("capture").nats
    assert wrong.row("codec").nats == right.row("codec").nats


def shifted(document):
    """Each position with the record of the next one."""
    records, first = document.records, np.arange(document.records.num_positions) == 0
    return replace(document, records=Records.join([records.select(~first), records.select(first)]))


def without_tail(document):
    """The head alone, scaled to one: what a truncated store would hold."""
    records = document.records
    rows = np.repeat(np.arange(records.num_positions), records.head_counts_P)
    head = records.head_logprobs_H.astype(np.float64)
    head -= np.log(np.bincount(rows, np.exp(head)))[rows]
    nothing = np.full(records.num_positions, -np.inf, np.float16)
    return replace(
        document,
        records=replace(
            records,
            head_logprobs_H=head.astype(np.float16),
            tail_counts_P=np.zeros_like(records.tail_counts_P),
            tail_ids_N=records.tail_ids_N[:0],
            position_columns={**records.position_columns, "log_tail_mass": nothing},
        ),
    )


def test_a_shifted_cask_is_seen_in_the_cask_row_and_a_truncated_one_in_the_target(teacher):
    lengths = (60,) * 8
    passes = engine_passes(teacher, sample_of(lengths=lengths))
    right = fidelity_report(passes, teacher.logits)
    reports = {
        fault: fidelity_report(
            replace(passes, sample=passes.sample.with_stored([fault(each) for each in passes.sample.stored])),
            teacher.logits,
        )
        for fault in (shifted, without_tail)
    }
    for report in reports.values():
        for name in ("control", "capture", "codec", "noise"):
            assert report.row(name).nats == right.row(name).nats
    assert right.row("cask").nats.value < 1e-5
    assert reports[shifted].row("cask").nats.value > 0.5
    low, high = ends(right)
    assert low < 0 < high
    assert ends(reports[without_tail])[1] < -0.05
    assert reports[without_tail].row("cask").nats.value > 0.05


def test_records_without_draws_have_no_target_row(teacher):
    report = report_of(teacher, sample_of(CaptureSpec(mode="topk", k=12)), teacher)
    assert report.row("target").nats is None
    assert report.row("noise").nats is None
    assert report.row("truncation").details["k"] == 12
    assert report.row("cask").nats.value < 1e-4
    assert "`truncation`: top-12 scaled to one |" in report.as_markdown()


def test_recorded_positions_alone_are_looked_at(teacher, dense):
    ids = documents((50,))[0]
    recorded = np.array([[5, 20], [30, 31]], np.uint32)
    sample = replace(sample_of(), tasks=(CaptureTask(key=0, token_ids_L=ids, recorded_R2=recorded),))
    report = report_of(teacher, sample, teacher)
    rows = dense.logprobs(ids)[[*range(5, 20), 30]]
    assert report.positions == 16
    assert report.entropy.value == pytest.approx(-(np.exp(rows) * rows).sum(1).mean(), rel=1e-6)
    assert report.row("cask").nats.value < 1e-5
