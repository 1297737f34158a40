"""Groups of commands whose main one, `run`, may be left out before the corpus that it takes."""

from typing import Any, Final

from typer.core import TyperGroup

RUN: Final = "run"


class CorpusOrCommand(TyperGroup):
    """What begins with no command's name is a corpus, or an option of `run`: `run` may be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See the class."""
        return super().parse_args(ctx, args if args[:1] == ["--help"] else self.with_command(args))

    def with_command(self, words: list[str]) -> list[str]:
        """The words with the command that they leave out."""
        return [RUN, *words] if words and words[0] not in self.commands else words
