"""What the client commands share: connection options, exit codes, how a job is shown and followed."""

import json
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar

from logitcask_schemas.api.exchange import ServiceError
from logitcask_schemas.api.generation import Generation
from logitcask_schemas.api.objects import Event, Extraction, Failure, Progress
from logitcask_schemas.terminal import EXIT_INTERRUPTED, EXIT_PROBLEMS, counted, printable
from logitcask_services.corpora.line_problems import sentence_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from logitcask_schemas.api.client import ServiceClient

T = TypeVar("T")
SHOWN_FAILURES = 20
LINE_SECONDS = 30.0
"""Between lines about a job's progress, where there is no terminal for a bar."""

ServerOption = Annotated[
    str | None, typer.Option("--server", help="URL of the service; default LOGITCASK_SERVER, else port 8000 here.")
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option("--api-key-file", help="File with the key; default LOGITCASK_API_KEY, or LOGITCASK_API_KEY_FILE."),
]


@contextmanager
def connect(server: str | None, key_file: Path | None) -> "Iterator[ServiceClient]":
    """A client for these options and the environment."""
    from logitcask_schemas.api.client import ServiceClient
    from logitcask_schemas.api.server_url import ServerUrlError
    from logitcask_services.settings import ClientSettings

    options: dict[str, Any] = {}
    if server is not None:
        options["server"] = server
    if key_file is not None:
        options |= {"api_key_file": key_file, "api_key": None}
    settings = ClientSettings(**options)
    key = settings.key()
    if key is not None and not (key.isascii() and key.isprintable()):
        raise typer.BadParameter("the API key holds characters that no key has", param_hint="LOGITCASK_API_KEY")
    try:
        client = ServiceClient(settings.server, key)
    except ServerUrlError as error:
        hint = "LOGITCASK_SERVER" if server is None else "--server"
        raise typer.BadParameter(printable(str(error)), param_hint=hint) from error
    with client:
        yield client


def when_loaded(call: "Callable[[], T]", console: Console) -> T:
    """What a call gives that needs to know the teacher; while that loads for the first time, it is made again."""
    is_told = False
    while True:
        try:
            return call()
        except ServiceError as error:
            if error.code != "teacher_loading":
                raise
            if not is_told:
                say(console, "the teacher is loading; waiting until more is known of it (Ctrl-C ends this)")
                is_told = True
            time.sleep(error.retry_after_seconds)


def as_json_text(answer: BaseModel) -> str:
    """One of the service's objects as JSON on one line, in ASCII."""
    return json.dumps(answer.model_dump(mode="json"))


def exit_code(*jobs: Extraction | Generation) -> int:
    """0 where all jobs are completed, 3 where one is failed or cancelled."""
    return 0 if all(job.status == "completed" for job in jobs) else EXIT_PROBLEMS


def follow(client: "ServiceClient", extraction_id: str, console: Console) -> Extraction:
    """Show an extraction's progress until it ends; the ended extraction. Ctrl-C leaves it running (exit code 130)."""
    with following("extraction", extraction_id, console, unit="tokens") as (bar, task):
        for event in client.follow(extraction_id):
            match event:
                case Progress():
                    _show(bar, task, event)
                case Event(type="chunk", data=counts):
                    bar.update(task, completed=counts["tokens_done"], total=counts["tokens_total"])
                case Event():
                    show_event(bar, task, console, event)
        extraction = client.extraction(extraction_id)
        _show(bar, task, extraction)  # the last word on tokens and pace; there is no time left to estimate
    return extraction


@contextmanager
def following(noun: str, job_id: str, console: Console, *, unit: str) -> "Iterator[tuple[ProgressBar, TaskID]]":
    """A bar for a job that is followed. Ctrl-C leaves the job running (exit code 130)."""
    try:
        with _bar(console, unit) as bar:
            yield bar, bar.add_task("waiting", total=None, rate="", eta="")
    except KeyboardInterrupt:
        say(console, f"the {noun} goes on; follow it with: logitcask jobs watch {job_id}")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def show_event(bar: ProgressBar, task: TaskID, console: Console, event: Event) -> None:
    """Show what the logs of all jobs tell alike."""
    match event:
        case Event(type="status", data=change):
            bar.update(task, description=change["status"].replace("_", " "))
        case Event(type="waiting"):
            bar.update(task, description="waiting")
            say(console, f"waiting: {event.message}", style="yellow")
        case Event(type="resumed"):
            bar.update(task, description="in progress")
        case Event(level="warning"):
            say(console, event.message, style="yellow")


class _FollowedJob(ProgressBar):
    """A bar on a terminal; into a file or a pipe, where nothing can move, a line every `LINE_SECONDS`."""

    def __init__(self, *columns: ProgressColumn, console: Console, unit: str) -> None:
        super().__init__(*columns, console=console)
        self._unit = unit
        self._next_line = time.monotonic() + LINE_SECONDS

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """See `rich.progress.Progress`."""
        super().update(task_id, **changes)
        if self.console.is_terminal or time.monotonic() < self._next_line:
            return
        self._next_line = time.monotonic() + LINE_SECONDS
        task = self.tasks[task_id]
        total = "" if task.total is None else f" {task.completed:,.0f} of {task.total:,.0f} {self._unit}"
        paces = (task.fields["rate"], task.fields["eta"])
        say(self.console, ", ".join([f"{task.description}{total}", *filter(None, paces)]))


def _bar(console: Console, unit: str) -> ProgressBar:
    return _FollowedJob(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[eta]}"),
        console=console,
        unit=unit,
    )


def pace(tokens_per_second: float | None, eta_seconds: float | None) -> dict[str, Any]:
    """The fields of a bar that say how fast it goes."""
    return {
        "rate": f"{tokens_per_second:,.0f} tokens/s" if tokens_per_second is not None else "",
        "eta": f"ETA {duration(eta_seconds)}" if eta_seconds is not None else "",
    }


def _show(bar: ProgressBar, task: TaskID, now: Extraction | Progress) -> None:
    bar.update(
        task,
        completed=now.usage.tokens_done,
        total=now.usage.tokens_total,
        **pace(now.throughput_tps, now.eta_seconds),
    )


def say(console: Console, text: str, *, style: str | None = None) -> None:
    """One line in plain text: what a request or a service put into it cannot steer the terminal."""
    console.print(printable(text), style=style, highlight=False, markup=False, soft_wrap=True)


def summarise(extraction: Extraction, client: "ServiceClient", console: Console) -> None:
    """The outcome in a few lines, with the first bad lines."""
    counts, usage, lines = extraction.request_counts, extraction.usage, extraction.lines
    say(
        console,
        f"{extraction.id}: {extraction.status}; cask {extraction.cask}: {counts.completed:,} of "
        f"{counted(counts.total, 'document')}{_present(extraction)}, {counted(usage.tokens_captured, 'token')} "
        f"captured, {counted(usage.bytes_written, 'byte')} written",
    )
    if extraction.status == "cancelled" and not counts.completed:
        say(console, f"nothing of it is in the cask; {_left_behind(extraction)}")
    if extraction.error:
        say(console, f"error: {extraction.error.message}", style="red")
    limit = counted(extraction.max_length, "token") if extraction.max_length else "the teacher's context"
    if lines.truncated:
        say(
            console,
            f"{lines.truncated:,} of {counted(lines.total, 'line')} longer than {limit} and cut there "
            "(overflow: truncate; split would keep the rest)",
            style="yellow",
        )
    if lines.split:
        say(console, f"{counted(lines.split, 'line')} longer than {limit} and split (overflow: split)")
    for code, count in lines.notes.items():
        where = ", ".join(f"{line:,}" for line in lines.first_lines.get(code, []))
        say(console, f"{count:,} {code}: {sentence_of(code)}" + (f" (line {where})" if where else ""))
    if counts.failed + counts.skipped:
        show_failures(extraction, client, console)


def _present(extraction: Extraction) -> str:
    """How many documents the cask had before, which the teacher was not asked about again."""
    present = extraction.documents.present
    return f" ({present:,} {'was' if present == 1 else 'were'} in it before)" if present else ""


def _left_behind(extraction: Extraction) -> str:
    """What became of the cask of an extraction that put nothing into it."""
    if extraction.in_progress_at is None:
        return "it was not opened"
    return "where it was new it is there now, empty, for this teacher and spec"


def show_failures(extraction: Extraction, client: "ServiceClient", console: Console) -> None:
    """The first bad lines, and how to get the others."""
    total = extraction.request_counts.failed + extraction.request_counts.skipped
    say(console, f"not in the cask: {lines_or_documents(total)}", style="yellow")
    list_failures(client.failures(extraction.id), extraction.id, console)


def lines_or_documents(count: int) -> str:
    """A number of what may be either: "1 line or document", "2 lines or documents"."""
    return f"{count:,} line or document" if count == 1 else f"{count:,} lines or documents"


def list_failures(failures: "Iterator[Failure]", job_id: str, console: Console, most: int = SHOWN_FAILURES) -> None:
    """The first failures of a job, at most `most`, and how to get the others."""
    for shown, failure in enumerate(failures):
        if shown == most:
            say(console, f"  ... all of them: logitcask jobs errors {job_id}")
            break
        name = f" ({failure.custom_id})" if failure.custom_id else ""
        say(console, f"  line {failure.line}{name}: {failure.code}: {failure.message}")


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
