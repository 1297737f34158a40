"""What the phase of a round trains on: casks of the student's texts, fixed casks, and how much of a step each is."""

from collections.abc import Sequence
from pathlib import Path

from logitcask_consumer.data import CaskGroup, CaskSource, Phase, SampledTexts, open_groups
from logitcask_consumer.losses import Objective
from logitcask_consumer.rounds.buffer import rounds_in_buffer
from logitcask_consumer.rounds.config import RoundsConfig
from logitcask_consumer.rounds.samples import SAMPLES_NAME, RoundTexts, read_chunks, sampled_texts
from logitcask_consumer.rounds.state import RoundState, RunState
from logitcask_consumer.training.run_content import TrainPhase
from logitcask_schemas.cask import Cask
from logitcask_schemas.errors import CaskError, CaskNotFoundError, DocumentMismatchError, IdentityMismatchError
from logitcask_schemas.record.identity import TeacherIdentity

ROUNDS_NAME = "rounds"


class EmptyRoundError(CaskError):
    """A round has nothing to train on."""


def round_folder(output: Path, number: int) -> Path:
    """Where the texts of a round lie."""
    return output / ROUNDS_NAME / f"{number:04d}"


def all_texts(config: RoundsConfig, number: int) -> RoundTexts:
    """A round's texts as they are on the disk, also those that were left out for looping."""
    return RoundTexts.of(read_chunks(round_folder(config.output, number) / SAMPLES_NAME), max_looping=1.0)


def require_teacher(state: RunState, offered: TeacherIdentity, *, where: str) -> None:
    """Refuse a teacher other than that of the rounds before.

    Raises:
        IdentityMismatchError: with every difference, both values.
    """
    if state.teacher is None or not (differences := state.teacher.explain(offered)):
        return
    raise IdentityMismatchError(
        f"the rounds of this run have records of the teacher {state.teacher.model}, {where} is another "
        f"({differences}). Start the service with the first teacher and give the same command again, which goes on "
        "where it was; or use another output folder for this one"
    )


def require_fixed_teacher(config: RoundsConfig, teacher: TeacherIdentity) -> None:
    """Refuse a fixed cask whose teacher is not the one that reads the student's texts.

    Equal weights are enough: a cask of another engine or precision speaks of the same distribution.

    Raises:
        IdentityMismatchError: names the cask, and both digests.
        CaskError: a fixed cask cannot be opened.
    """
    for source in map(CaskSource.parse, config.casks):
        cask = Cask.open(source.place, tokenizer_fingerprint=None, cache=config.cache, cache_bytes=config.cache_bytes)
        stored = cask.manifest.teacher
        pairs = ((stored.weights_digest, teacher.weights_digest), (stored.tensors_digest, teacher.tensors_digest))
        if not any(digest is not None and digest == its_digest for digest, its_digest in pairs):
            raise IdentityMismatchError(
                f"the fixed cask {cask.place} is of the teacher {stored.model} (weights {stored.weights_digest}), the "
                f"student's texts are read by {teacher.model} (weights {teacher.weights_digest}). One student has one "
                "teacher here: start the service with the cask's, or name a cask of the service's with --cask"
            )


def is_gone(config: RoundsConfig, number: int) -> bool:
    """Whether the cask of a round cannot be opened here."""
    try:
        Cask.open(config.cask_place(number), tokenizer_fingerprint=None, cache=config.cache)
    except CaskNotFoundError:
        return True
    except CaskError:  # damaged, or not reached: whoever trains on it says so
        return False
    return False


def open_round(config: RoundsConfig, state: RunState, own: RoundState) -> Cask:
    """The cask of a round, proved to be of this run's teacher and of the round's texts.

    Whenever it is opened: another run of the same name may have published into it since it was captured. Texts that
    were deleted from the run's folder prove nothing, and are not asked for.

    Raises:
        EmptyRoundError: it holds no document, or is not where it should be.
        IdentityMismatchError: its teacher is not that of the other rounds.
        DocumentMismatchError: it holds documents that the student did not write in this round.
    """
    place = config.cask_place(own.number)
    try:
        cask = Cask.open(place, tokenizer_fingerprint=None, cache=config.cache, cache_bytes=config.cache_bytes)
    except CaskError as error:
        raise EmptyRoundError(
            f"the cask of round {own.number} cannot be read at {place}: {error}. --cask-root names the folder or URL "
            "that the service was started with as its --cask-root, as it is seen from here; the same command goes on. "
            "A cask that was removed must be brought back there, or the run begun in another output folder"
        ) from error
    if not len(cask):
        raise EmptyRoundError(
            f"the cask of round {own.number} at {place} holds no document: the teacher could read none of the texts. "
            f"`logitcask jobs errors {own.extraction}` lists why; mend it and give the same command again, the texts "
            "are kept"
        )
    require_teacher(state, cask.manifest.teacher, where=f"that of the cask of round {own.number}, {place},")
    if (round_folder(config.output, own.number) / SAMPLES_NAME).is_file():
        _require_texts(cask, all_texts(config, own.number), own.number)
    return cask


def _require_texts(cask: Cask, texts: RoundTexts, number: int) -> None:
    """Raise DocumentMismatchError where a cask holds documents that are none of a round's texts."""
    ids = {text.id for text in texts.texts}
    strange = [row.tobytes() for shard in cask.shard_documents() for row in shard.ids if row.tobytes() not in ids]
    if strange:
        raise DocumentMismatchError(
            f"{cask.place}: {len(strange)} of {len(cask)} documents (such as {strange[0].hex()}) are none of the texts "
            f"that the student wrote in round {number}. Another run writes into this cask: end it, remove the cask and "
            "give the same command again, which captures this round's texts anew; or name the casks of this run "
            "otherwise (--name), in another output folder"
        )


def phase_of(config: RoundsConfig, state: RunState, own: RoundState, *, tokens_per_step: int) -> TrainPhase:
    """The phase of a round.

    Args:
        config: of the run.
        state: of the run; the rounds in the buffer are captured.
        own: the round.
        tokens_per_step: slots of an optimizer step.

    Raises:
        EmptyRoundError, IdentityMismatchError, DocumentMismatchError: as `open_round`.
        CaskError: a fixed cask cannot be opened.
    """
    loss, fixed_loss = config.losses
    groups, shares, skipped = list[CaskGroup](), list[float](), list[int]()
    first = (own.number - 1) * config.steps_per_round
    if own.share > 0:
        rounds = rounds_in_buffer(state.rounds, own.number, config.kept_rounds)
        if not rounds:
            raise EmptyRoundError(f"round {own.number} has no cask of the student's texts; give the same command again")
        casks = tuple(open_round(config, state, each) for each in rounds)
        groups.append(
            CaskGroup(casks=casks, weight=1.0, loss=loss, label="student", samples=_samples(config, loss, rounds))
        )
        shares.append(own.share)
        skipped.append(0)
    if own.share < 1:
        (group, *others) = open_groups(
            [CaskSource.parse(cask) for cask in config.casks],
            loss=fixed_loss,
            cache=config.cache,
            cache_bytes=config.cache_bytes,
        )
        if others:
            raise IdentityMismatchError(
                f"the fixed casks {', '.join(config.casks)} are not of one teacher, capture spec and loss; rounds take "
                "such alone. Name fewer"
            )
        groups.append(CaskGroup(casks=group.casks, weight=1.0, loss=group.loss, label="fixed"))
        shares.append(1.0 - own.share)
        skipped.append(_drawn_before(config, state, own, tokens_per_step // config.seq_len))
    steps = Phase(first=first, stop=first + config.steps_per_round, shares=tuple(shares), skipped=tuple(skipped))
    return TrainPhase(
        groups=tuple(groups), steps=steps, binding={"round": own.number, "shares": list(shares), "skipped": skipped}
    )


def _samples(config: RoundsConfig, loss: str, rounds: Sequence[RoundState]) -> SampledTexts | None:
    if not Objective.parse(loss).needs_samples:
        return None
    return sampled_texts([all_texts(config, each.number) for each in rounds], teacher_share=config.teacher_mix)


def _drawn_before(config: RoundsConfig, state: RunState, own: RoundState, sequences: int) -> int:
    """Sequences of the fixed casks that earlier phases have drawn: a pass over them goes on from phase to phase."""
    drawn = 0
    for each in state.rounds[: own.number - 1]:
        shares = (each.share, 1.0 - each.share)
        drawn += Phase(first=0, stop=config.steps_per_round, shares=shares).drawn(config.steps_per_round, sequences)[1]
    return drawn
