"""`logitcask jobs show`: an extraction in a few lines, for people."""

from rich.console import Console

from logitcask_schemas.api.objects import Extraction, ShardOfExtraction
from logitcask_schemas.terminal import counted
from logitcask_services.cli.connection import duration, say


def describe(extraction: Extraction, shards: list[ShardOfExtraction], out: Console) -> None:
    """What holds it up, how far it is, what it has put into the cask, and its spec; the state is `summarise`'s.

    Args:
        extraction: As the service shows it.
        shards: Those of its manifest.
        out: Where to.
    """
    if extraction.waiting:
        say(out, f"waiting: {extraction.waiting.message}", style="yellow")
    usage, documents = extraction.usage, extraction.documents
    pace = [f"{usage.tokens_done:,} of {usage.tokens_total:,} done"]
    if extraction.throughput_tps is not None:
        pace.append(f"{extraction.throughput_tps:,.0f} a second")
    if extraction.eta_seconds is not None:
        pace.append(f"{duration(extraction.eta_seconds)} to go")
    say(out, f"tokens: {', '.join(pace)}")
    say(
        out,
        f"documents: {documents.total:,}, of them {documents.captured:,} captured, {documents.present:,} in "
        f"the cask before, {documents.failed:,} failed",
    )
    size = sum(shard.bytes for shard in shards)
    say(out, f"files: {counted(len(shards), 'shard')} of {counted(size, 'byte')}, from {extraction.corpus_id}")
    say(out, f"spec: {', '.join(_spec(extraction))}")


def _spec(extraction: Extraction) -> list[str]:
    options = extraction.model_dump(include={"max_length", "overflow", "carrier", "on_error"})
    fields = {**extraction.capture.canonical(), **options}
    # What is empty, absent or off goes without saying.
    shown = [f"{name} {value}" for name, value in fields.items() if value not in ([], None) and value is not False]
    return [*shown, *(f"{name}={value}" for name, value in extraction.metadata.items())]
