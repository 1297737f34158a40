"""Small templates, rows and answers for the tests of generations."""

from collections.abc import Iterable, Mapping
from typing import Any

from logitcask_schemas.api.generation import StoredTemplate
from logitcask_services.generation.rows import Answer, Row, source_id
from logitcask_services.generation.templates import PromptTemplate

ANSWER = ("text", ["question"], "Q: {{ question }}\nA:")
SHOTS = (
    "text",
    ["question"],
    "{% for d in demonstrations %}\nQ: {{ d.question }}\nA: {{ d.answer }}\n{% endfor %}\nQ: {{ question }}\nA:",
)
CHAT = ("chat", ["question"], "[system]\nBe brief.\n[user]\n{{ question }}")
CHAT_SHOTS = (
    "chat",
    ["question"],
    "[each demonstrations]\n[user]\n{{ demonstration.question }}\n[assistant]\n{{ demonstration.answer }}\n[end]\n"
    "[user]\n{{ question }}",
)
PREFIXED = ("chat", ["question"], "[user]\n{{ question }}\n[assistant]\nLet us think")
LABEL = ("text", ["answer"], "{{ answer }}")
ALL = {"answer": ANSWER, "shots": SHOTS, "chat": CHAT, "chat-shots": CHAT_SHOTS, "prefixed": PREFIXED, "label": LABEL}


def template_text(kind: str, fields: Iterable[str], body: str) -> str:
    """A template's file."""
    return f"---\nkind: {kind}\ndescription: A test's.\nfields: [{', '.join(fields)}]\n---\n{body}\n"


def templates(**more: tuple[str, list[str], str]) -> dict[str, PromptTemplate]:
    """All templates of this file, and more, by name."""
    return {name: PromptTemplate.parse(name, template_text(*parts)) for name, parts in {**ALL, **more}.items()}


def stored(**more: tuple[str, list[str], str]) -> dict[str, StoredTemplate]:
    """The same, as a job stores them."""
    parsed = templates(**more)
    texts = {name: template_text(*parts) for name, parts in {**ALL, **more}.items()}
    return {name: StoredTemplate(text=texts[name], sha256=parsed[name].sha256) for name in texts}


def row(line: int, fields: Mapping[str, Any], custom_id: str | None = None) -> Row:
    """A row of a corpus."""
    identity = source_id("c" * 64, line)
    return Row(id=identity, parent=identity, line=line, custom_id=custom_id, fields=dict(fields))


def rows(number: int) -> list[Row]:
    """Rows of small sums, from line 1 on."""
    return [row(at + 1, {"question": f"{at} and {at}", "answer": str(2 * at)}, f"q{at}") for at in range(number)]


def wrote(text: str, *, logprob: float = -1.0) -> Answer:
    """An answer of a teacher whose tokens are bytes."""
    return Answer(token_ids=tuple(text.encode()), text=text, finish="stop", logprob=logprob)
