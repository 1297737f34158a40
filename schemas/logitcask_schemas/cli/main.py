"""The command line: one command, `logitcask`, whose subcommands each side brings through entry points.

Only the subcommand that is called gets imported. `COMMANDS` repeats their names and one-line helps, so that
`logitcask --help` neither imports torch nor needs the extras. See `exit_codes` for what the command ends with.
"""

import importlib.metadata
import os
import sys
from dataclasses import dataclass
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from logitcask_schemas.errors import LogitcaskError, MissingExtraError, OptionError
from logitcask_schemas.terminal import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE, installed_version, printable

GROUP: Final = "logitcask.commands"
LINE_ENDS: Final = "\n\t"


@dataclass(frozen=True, slots=True)
class Command:
    """What the command line knows of a subcommand without importing it."""

    help: str
    extra: str | None
    """Which extra brings what it needs; None where the plain installation does."""


COMMANDS: Final[dict[str, Command]] = {
    "serve": Command("Run the teacher service: corpora in over HTTP, casks out.", "teacher"),
    "submit": Command("Send a corpus to a service and start its extraction.", "service"),
    "keys": Command("Make keys for a service that several people share.", "service"),
    "generate": Command("Let the teacher write: a corpus and a recipe in, a corpus and a cask out.", "service"),
    "jobs": Command("List, follow, order, pause and cancel a service's extractions and generations.", "service"),
    "corpora": Command("List, show and delete a service's corpora.", "service"),
    "teachers": Command("List a service's teachers: who can be named, who is loaded.", "service"),
    "download": Command("Fetch a cask from a service.", "service"),
    "cask": Command(
        "Look into casks (ls, show, stats), prove and mend them (verify, repair), copy, join and divide them "
        "(export, import, merge, split), give them to other tools (rows, push, pull).",
        None,
    ),
    "plan": Command("Tell what a capture takes before anything runs: GPU-days, bytes, shards, failures, money.", None),
    "view": Command("Look into casks in a browser, without a service.", "view"),
    "train": Command("Train a student from a cask, without the teacher.", "trainer"),
    "rounds": Command("Train a student on its own texts, in rounds with a teacher service.", "trainer"),
    "quantize": Command("Quantise a model's layers without training.", "quantization"),
    "report": Command("Compare student, baseline and teacher on held-out documents.", "trainer"),
    "tasks": Command("Make tasks for a report from questions of your own.", "trainer"),
    "capture": Command("Capture a corpus without a service, whole or in parts; choose what to keep.", "teacher"),
    "fidelity": Command("Tell where each nat goes between a teacher and a cask of it.", "teacher"),
    "draft-check": Command("Measure a student as the draft model of its teacher in vLLM.", "teacher"),
}


class CommandTable(TyperGroup):
    """Lists `COMMANDS`; imports a subcommand when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Known commands in the order of the table, then what other packages registered."""
        others = {entry.name for entry in importlib.metadata.entry_points(group=GROUP)} - COMMANDS.keys()
        return [*COMMANDS, *sorted(others)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """For listing: a stand-in with the name and help, no import."""
        if cmd_name in COMMANDS:
            return TyperCommand(cmd_name, help=COMMANDS[cmd_name].help)
        return TyperCommand(cmd_name) if cmd_name in self.list_commands(ctx) else None

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """For calling: the real one, imported now."""
        name, stand_in, rest = super().resolve_command(ctx, args)
        if stand_in is not None and stand_in.name is not None:
            return name, load_command(stand_in.name), rest
        return name, stand_in, rest


def load_command(name: str) -> Any:
    """Import a subcommand and build it.

    Raises:
        MissingExtraError: A module that it needs is not installed, or the distribution does not register it.
    """
    for entry in importlib.metadata.entry_points(group=GROUP, name=name):
        try:
            app = entry.load()
        except ModuleNotFoundError as error:
            explained = _explained(name, error)
            if explained is error:
                raise
            raise explained from error
        command = typer.main.get_command(app)
        command.name = name
        return command
    raise LogitcaskError(f"`logitcask {name}` is not registered: this installation is incomplete; install it again")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; own errors become a message on stderr, bugs keep their traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = typer.main.get_command(_root())
    try:
        command.main(args=arguments, prog_name="logitcask")
    except KeyboardInterrupt:
        _fail("interrupted", EXIT_INTERRUPTED)
    except (MissingExtraError, OptionError) as error:
        _fail(str(error), EXIT_USAGE)
    except LogitcaskError as error:
        _fail(str(error), EXIT_FAILURE)
    except ModuleNotFoundError as error:
        # Commands import what is heavy when they run, so a missing extra may show only here.
        called = next((argument for argument in arguments if argument in COMMANDS), "")
        explained = _explained(called, error)
        if explained is error:
            raise
        _fail(str(explained), EXIT_USAGE)
    except BrokenPipeError:
        # The reader of our output went away (`| head`); leave stdout harmless for the interpreter's last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILURE)


def _root() -> typer.Typer:
    app = typer.Typer(
        cls=CommandTable,
        help="Run a large teacher once, keep what it said, train any number of students from it.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    def print_version(is_set: bool) -> None:
        if is_set:
            typer.echo(installed_version())
            raise typer.Exit

    @app.callback()
    def root(
        version: bool = typer.Option(
            False, "--version", help="Print the version and exit.", is_eager=True, callback=print_version
        ),
    ) -> None:
        del version  # its callback has done the work

    return app


def _explained(name: str, error: ModuleNotFoundError) -> ImportError:
    """The error as a missing extra, or as it is where no extra of ours would bring the module."""
    extra = COMMANDS[name].extra if name in COMMANDS else None
    if extra is None or error.name is None or error.name.startswith("logitcask"):
        return error
    return MissingExtraError(f"logitcask {name}", extra, error.name)


def _fail(message: str, code: int) -> None:
    print(f"error: {printable(message, keep=LINE_ENDS)}", file=sys.stderr)
    sys.exit(code)
