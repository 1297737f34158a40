"""`logitcask teachers`: whom a service can load, and who is loaded."""

import typer
from rich.console import Console
from rich.table import Column, Table

from logitcask_schemas.cli.output import JsonOption
from logitcask_schemas.terminal import printable
from logitcask_services.cli.connection import KeyFileOption, ServerOption, as_json_text, connect, say

app = typer.Typer(help="List a service's teachers.", add_completion=False)


@app.command()
def list_teachers(server: ServerOption = None, api_key_file: KeyFileOption = None, as_json: JsonOption = False) -> None:
    """List the teachers that `--teacher` may name, in the operator's order; the first is meant where none is named."""
    with connect(server, api_key_file) as client:
        listed = client.teachers()
    if as_json:
        typer.echo(as_json_text(listed))
        return
    table = Table(Column("name", no_wrap=True), "engine", "state", "model", Column("tokens", justify="right"), box=None)
    for teacher in listed.data:
        longest = "" if teacher.max_model_len is None else f"{teacher.max_model_len:,}"
        table.add_row(
            *(printable(text) for text in (teacher.name, teacher.engine, teacher.state, teacher.model or "", longest))
        )
    console = Console()
    out = console if console.is_terminal else Console(width=160)  # a pipe has no width; do not cut for one
    out.print(table)
    for teacher in listed.data:
        if teacher.reason is not None:
            say(out, f"{teacher.name}: {teacher.reason}")
    if listed.has_students:
        say(out, "generations may name students, as students/NAME")
