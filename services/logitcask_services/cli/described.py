"""`logitcask jobs show`: an extraction in a few lines, for people."""

from contextlib import suppress
from typing import Any

from rich.console import Console

from logitcask_schemas.record.capture_spec import stored_spec
from logitcask_schemas.terminal import counted
from logitcask_services.cli.connection import duration, say


def describe(extraction: dict[str, Any], shards: list[dict[str, Any]], out: Console) -> None:
    """What holds it up, how far it is, what it has put into the cask, and its spec; the state is `summarise`'s.

    Args:
        extraction: As the service shows it.
        shards: Those of its manifest.
        out: Where to.
    """
    if extraction["waiting"]:
        say(out, f"waiting: {extraction['waiting']['message']}", style="yellow")
    usage, documents = extraction["usage"], extraction["documents"]
    pace = [f"{usage['tokens_done']:,} of {usage['tokens_total']:,} done"]
    if extraction["throughput_tps"] is not None:
        pace.append(f"{extraction['throughput_tps']:,.0f} a second")
    if extraction["eta_seconds"] is not None:
        pace.append(f"{duration(extraction['eta_seconds'])} to go")
    say(out, f"tokens: {', '.join(pace)}")
    say(
        out,
        f"documents: {documents['total']:,}, of them {documents['captured']:,} captured, {documents['present']:,} in "
        f"the cask before, {documents['failed']:,} failed",
    )
    size = sum(shard["bytes"] for shard in shards)
    say(out, f"files: {counted(len(shards), 'shard')} of {counted(size, 'byte')}, from {extraction['corpus_id']}")
    say(out, f"spec: {', '.join(_spec(extraction))}")


def _spec(extraction: dict[str, Any]) -> list[str]:
    capture: dict[str, Any] = extraction["capture"]
    with suppress(ValueError):  # a service of another version has other fields; all of them are shown then
        capture = stored_spec(capture).canonical()
    options = {name: extraction[name] for name in ("max_length", "overflow", "carrier", "on_error")}
    said = ((name, value) for name, value in {**capture, **options}.items() if value not in ([], None))
    given = [f"{name} {value}" for name, value in said if value is not False]
    return [*given, *(f"{name}={value}" for name, value in extraction["metadata"].items())]
