"""What every engine checks before and after the teacher sees a document."""

from logitcask_schemas.capture_spec import CaptureSpec
from logitcask_schemas.errors import CaptureSpecError, InvalidRecordError
from logitcask_schemas.records import DocumentRecords, Records
from logitcask_services.engines.protocol import CaptureResult, CaptureTask


def require_spec(spec: CaptureSpec, vocab_size: int) -> None:
    """Raise CaptureSpecError where a teacher of this vocabulary cannot do what the spec asks for."""
    if outside := [token for token in spec.pinned_ids if token >= vocab_size]:
        raise CaptureSpecError(f"pinned ids {outside} are outside the teacher's vocabulary of {vocab_size}")


def refusal(task: CaptureTask, *, max_model_len: int, vocab_size: int) -> str | None:
    """Why the teacher cannot take a document, or None where it can."""
    length = len(task.token_ids_L)
    if length < 2:
        return f"a document needs at least 2 tokens to have a position, this one has {length}"
    if length > max_model_len:
        return f"a document of {length} tokens exceeds the teacher's {max_model_len}; truncate or split it"
    if (largest := int(task.token_ids_L.max())) >= vocab_size:
        return f"token id {largest} is outside the teacher's vocabulary of {vocab_size}; another tokenizer made it"
    return None


def result_of(task: CaptureTask, records: Records, vocab_size: int) -> CaptureResult:
    """Records joined to their document, or what is wrong with them (logits that were not finite, say)."""
    try:
        records.check(vocab_size, where="teacher output")
        document = DocumentRecords(token_ids_L=task.token_ids_L, records=records)
    except InvalidRecordError as error:
        return CaptureResult(key=task.key, document=None, error=str(error))
    return CaptureResult(key=task.key, document=document)
