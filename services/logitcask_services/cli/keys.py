"""`logitcask keys`: make keys for a service that several people share."""

from typing import Annotated

import typer

from logitcask_schemas.cli.output import JsonOption, print_json

app = typer.Typer(help="Make keys for a service that several people share.", add_completion=False, no_args_is_help=True)


@app.callback()
def keys() -> None:
    """Make keys for a service that several people share."""


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Whose key it is: letters, digits, `.`, `-`, `_`. Logs call it so.")],
    read_only: Annotated[bool, typer.Option("--read-only", help="For looking, not for changing anything.")] = False,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Most requests a minute; any.")] = None,
    body_bytes: Annotated[int | None, typer.Option(min=1, help="Most bytes of one request's body; any.")] = None,
    upload_bytes_per_day: Annotated[int | None, typer.Option(min=1, help="Most bytes of bodies a day; any.")] = None,
    waiting_jobs: Annotated[int | None, typer.Option(min=1, help="Most jobs that have not ended; any.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Print a new key for its bearer, and the lines for the service's key file, which hold its SHA-256 alone.

    Nothing is written anywhere: give the key to its bearer, and append the lines to the file of --api-key-file.
    """
    from logitcask_schemas.api.key_file import KeyFileError
    from logitcask_services.keys import KeyLimits, Scope, new_key, toml_entry

    limits = KeyLimits(
        requests_per_minute=requests_per_minute,
        body_bytes=body_bytes,
        upload_bytes_per_day=upload_bytes_per_day,
        waiting_jobs=waiting_jobs,
    )
    key = new_key()
    scope: Scope = "read" if read_only else "full"
    try:
        entry = toml_entry(name, key, scope, limits)
    except KeyFileError as error:
        raise typer.BadParameter(str(error), param_hint="NAME") from error
    if as_json:
        print_json({"name": name, "key": key, "scope": scope, "entry": entry})
        return
    typer.echo(f"The key, for {name}; it is shown this once:\n\n{key}\n", err=True)
    typer.echo("For the service's key file:\n", err=True)
    typer.echo(entry, nl=False)
