"""Which characters of a rendered conversation the assistant says, the end of its turns included.

A turn begins where generation would begin: behind the generation prompt, or what of it the conversation has. It ends
with what the template puts behind an answer before another turn, or at the end. Both are learnt from short
conversations of known words; in the text itself they are looked for only between the words of different messages, so
what a user writes can neither begin nor end a turn.
"""

import re
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, takewhile
from typing import Final

from logitcask_services.corpora.conversation import ChatTemplate, Conversation, Words, without_thinking
from logitcask_services.corpora.lines import LineProblem
from logitcask_services.corpora.spans import Spans

_ATOM: Final = re.compile(r"<[^<>\s]{1,80}>|\[/?[A-Z_]{2,}\]|.", re.DOTALL)
"""What is compared as a whole: something like a control token, or one character."""
_LONGEST_END: Final = 40
"""Characters, besides white space and control tokens, that may end a turn."""
_QUESTION, _ANSWER = "Quaeritur7", "Respondeo9"


class UnprovedError(Exception):
    """It cannot be told where a turn begins or ends."""


@dataclass(frozen=True)
class TurnMarkers:
    """What a template writes around an assistant's turn."""

    template: ChatTemplate

    @cached_property
    def prompt(self) -> str:
        """The generation prompt; empty where the template has none."""
        question = [{"role": "user", "content": _QUESTION}]
        asked, prompted = self._behind(question, _QUESTION), self._behind(question, _QUESTION, prompt=True)
        return prompted[len(_common(asked, prompted)) :]

    @cached_property
    def header(self) -> str:
        """What stands between a question and its answer."""
        text = self._rendered([{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}])
        return text[text.find(_QUESTION) + len(_QUESTION) : text.find(_ANSWER)] if _ANSWER in text else ""

    @cached_property
    def endings(self) -> tuple[str, ...]:
        """What may end a turn: behind the last answer, and behind an answer that a turn follows."""
        answered = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
        last = self._behind(answered, _ANSWER)
        between, ending = self._between_turns
        if last.strip() and between.startswith(last.rstrip()):
            return (last.rstrip(),)
        if ending and last.startswith(ending):
            return (ending,)
        followed = self._behind(answered, _ANSWER, prompt=True)
        followed = followed.removesuffix(self.prompt) if self.prompt and followed.endswith(self.prompt) else ""
        return tuple(dict.fromkeys(text for text in (last.rstrip(), ending, followed.rstrip()) if text.strip()))

    @cached_property
    def _between_turns(self) -> tuple[str, str]:
        """What stands between an answer and the next question; and that less what opens the question, maybe nothing."""
        again = "Iterum8"
        roles = [("user", _QUESTION), ("assistant", _ANSWER), ("user", again), ("assistant", "Finis6")]
        text = self._rendered([{"role": role, "content": content} for role, content in roles])
        if not all(words in text for words in (_QUESTION, _ANSWER, again)):
            return "", ""
        between = text[text.find(_ANSWER) + len(_ANSWER) : text.find(again)]
        opening, atoms = _atoms(text[: text.find(_QUESTION)])[::-1], _atoms(between)[::-1]
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(opening, atoms, strict=False)))
        return between, "".join(atoms[shared:][::-1]).rstrip()

    @cached_property
    def control_texts(self) -> frozenset[str]:
        """Everything like a control token that the template writes around turns."""
        return frozenset(
            atom for text in (self.prompt, self.header, *self.endings) for atom in _atoms(text) if len(atom) > 1
        )

    def _behind(self, messages: list[dict[str, str]], words: str, *, prompt: bool = False) -> str:
        text = self._rendered(messages, prompt=prompt)
        return text.rpartition(words)[2] if words in text else ""

    def _rendered(self, messages: list[dict[str, str]], *, prompt: bool = False) -> str:
        try:
            return self.template.plain(messages, prompt=prompt)
        except LineProblem:
            return ""  # a template that wants other messages first teaches nothing here

    # -- in a text -----------------------------------------------------------------------------------------------

    def start(self, between: str, *, plain: bool) -> int:
        """Where a turn begins in the text between the words before and the assistant's first words.

        `plain`: these are its content, not thoughts or calls that the template introduces.

        Raises:
            UnprovedError: nothing of what is known stands there.
        """
        prompt = _atoms(self.prompt)
        for size in range(len(prompt), 0, -1):
            beginning, rest = "".join(prompt[:size]), prompt[size:]
            if (rest and not (len(rest[0]) > 1 or rest[0].isspace())) or not beginning.strip():
                continue  # only a whole part of the prompt is one: not half of a role's name
            if (at := between.rfind(beginning)) >= 0:
                return at + len(beginning)
        shared = _common(self.header, between)
        if shared.strip() and not self.header[len(shared) :].strip():
            return len(shared)
        if plain:
            return len(between)
        raise UnprovedError

    def stop(self, behind: str, *, last: bool, plain: bool) -> int:
        """Where a turn ends in the text between the assistant's last words and the next ones.

        Raises:
            UnprovedError: it is not known where, and the template writes on behind these words.
        """
        if last and not (len(self.endings) == 1 and self.endings[0] in behind):
            if sum(1 for atom in _atoms(behind) if len(atom) == 1 and not atom.isspace()) > _LONGEST_END:
                raise UnprovedError  # instructions that the template adds, not the end of a turn
            return len(behind.rstrip())
        ends = [(at, -len(ending)) for ending in self.endings if (at := behind.find(ending)) >= 0]
        if ends:
            at, length = min(ends)
            return at - length
        shared = max((_common(ending, behind).rstrip() for ending in self.endings), key=len, default="")
        if shared:
            return len(shared)
        first = [_atoms(ending)[0] for ending in self.endings]
        places = [behind.find(atom) + len(atom) for atom in first if len(atom) > 1 and atom in behind]
        if places:
            return min(places)
        if plain:
            return 0
        raise UnprovedError


def answer_ranges(conversation: Conversation, markers: TurnMarkers, *, first_message: int) -> list[tuple[int, int]]:
    """Character ranges [start, stop) that the assistant says, ascending.

    Args:
        conversation: with its words located.
        markers: of the template.
        first_message: messages before it are a prompt, whose assistant turns do not count.

    Raises:
        UnprovedError: it cannot be told; a range that might hold another's words is never given.
    """
    if conversation.words is None:
        raise UnprovedError
    words = [stretch for stretch in conversation.words if stretch.stop > stretch.start]
    turns = _turns([stretch for stretch in words if not stretch.repeated])
    answering = {message for message, _, _ in turns}
    ranges, generation = list[tuple[int, int]](), sorted(conversation.generation)
    for number, (message, start, stop) in enumerate(turns):
        entry = conversation.messages[message] if message >= 0 else {}
        if entry.get("role") != "assistant" or message < first_message or entry.get("weight", 1) == 0:
            continue
        before = turns[number - 1][2] if number else 0
        last = number == len(turns) - 1
        after = len(conversation.text) if last else turns[number + 1][1]
        spoken, content = conversation.text[start:stop], entry["content"].strip()
        try:
            opens = before + markers.start(conversation.text[before:start], plain=spoken[:16] in content)
        except UnprovedError:
            opens = _shared(conversation, markers, message, prompt=True, between=(before, start))
        try:
            closes = stop + markers.stop(conversation.text[stop:after], last=last, plain=content.endswith(spoken[-16:]))
        except UnprovedError:
            closes = _shared(conversation, markers, message + 1, prompt=False, between=(stop, after))
        # What the template itself declares goes first, where it holds these words and no others. A student must learn
        # to stop, so the end of the turn belongs to it also where a template leaves it out.
        near = generation[bisect_left(generation, (before, 0)) : bisect_left(generation, (start + 1, 0))]
        declared = [span for span in near if stop <= span[1] <= after]
        ranges.append((declared[0][0], max(declared[0][1], closes)) if declared else (opens, closes))
    _prove(conversation, words, turns, ranges)
    for message, entry in enumerate(conversation.messages[first_message:], start=first_message):
        if message in answering or entry["role"] != "assistant" or entry.get("weight", 1) == 0:
            continue
        if without_thinking(entry["content"]):
            raise UnprovedError
    return ranges


def _shared(
    conversation: Conversation, markers: TurnMarkers, count: int, *, prompt: bool, between: tuple[int, int]
) -> int:
    """Where the text leaves that of its first `count` messages alone, which must be between two places.

    With the generation prompt that is where the next turn begins, without it where the last one ends: tool calls are
    closed in ways of their own.

    Raises:
        UnprovedError: it leaves it elsewhere, or the template refuses the beginning of the conversation.
    """
    try:
        beginning = markers.template.plain(
            conversation.messages[:count], conversation.tools, conversation.options, prompt=prompt
        )
    except LineProblem as problem:
        raise UnprovedError from problem
    low, high = between
    if beginning[:low] != conversation.text[:low]:
        raise UnprovedError
    shared = _common(beginning[low:], conversation.text[low:high])
    return low + len(shared if prompt else shared.rstrip())


def _turns(words: list[Words]) -> list[tuple[int, int, int]]:
    """(message, start, stop) of each run of words of one message. Raises UnprovedError where a message has two."""
    turns = list[tuple[int, int, int]]()
    for stretch in sorted(words, key=lambda entry: (entry.start, entry.stop)):
        if turns and turns[-1][0] == stretch.message:
            turns[-1] = (stretch.message, turns[-1][1], max(turns[-1][2], stretch.stop))
        else:
            turns.append((stretch.message, stretch.start, stretch.stop))
    messages = [message for message, _, _ in turns if message >= 0]
    if len(set(messages)) < len(messages):
        raise UnprovedError
    return turns


def _prove(
    conversation: Conversation,
    words: list[Words],
    turns: list[tuple[int, int, int]],
    ranges: list[tuple[int, int]],
) -> None:
    """No other's words lie in a range, nor a tool's name behind the turn that called it. Raises UnprovedError."""
    ends, answered = {message: stop for message, _, stop in turns}, Spans(ranges)
    for stretch in words:
        role = conversation.messages[stretch.message]["role"] if stretch.message >= 0 else "tools"
        own = role == "assistant" and not (stretch.repeated and stretch.start >= ends.get(stretch.message, 0))
        if not own and answered.meets(stretch.start, stretch.stop):
            raise UnprovedError
    if any(later[0] < earlier[1] for earlier, later in pairwise(ranges)):
        raise UnprovedError


def _atoms(text: str) -> list[str]:
    return _ATOM.findall(text)


def _common(left: str, right: str) -> str:
    """What both begin with, in whole atoms."""
    pairs = zip(_atoms(left), _atoms(right), strict=False)
    return "".join(atom for atom, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
