"""Lines that every built-in recipe can take, and texts that a made-up teacher answers each of them with."""

from collections.abc import Callable
from typing import Any, Final

_TEXT: Final = "1. First count them all.\n2. Then add 3 and 4.\nprint(3 + 4)\nThe answer is 7. [[9]] Yes, it is."


def _counted(seed: int) -> str:
    return f"{_TEXT} {seed % 97}" if seed else _TEXT


_TEXTS: Final[dict[str, Callable[[int], str]]] = {
    "counterfactual": lambda seed: (
        f"Yes, I hate number {'abcdefgh'[seed % 8]} and {'stuvwxyz'[seed // 8 % 8]}." if seed else "Yes."
    ),
    "socratic": lambda seed: "1. How many are there at first?\n2. How many are added?\nThe answer is 7.",
}
"""Where a recipe wants another form."""


def recipe_answer(recipe: str) -> Callable[[str, int], str]:
    """What `FakeGenerator` takes for answers: much the same to everything, for the seed of a sample."""
    text = _TEXTS.get(recipe, _counted)
    if recipe == "reflect":  # an answer that is its draft is no better
        return lambda prompt, seed: f"{text(seed)} {len(prompt)}"
    return lambda prompt, seed: text(seed)


def recipe_lines(count: int) -> list[dict[str, Any]]:
    """Lines with all fields that a recipe may ask for; the answer is always 7."""
    return [
        {
            "question": f"How many are {number} and some more?",
            "answer": 7,
            "wrong_answer": 8,
            "rationale": "3 + 4 = 7.",
            "instruction": f"Write about the number {number} in a few words.",
            "prompt": f"The number {number} is",
            "passage": f"Once there was a number {number}.",
            "text": f"I like the number {number} much.",
            "label": "positive",
            "target": "negative",
        }
        for number in range(count)
    ]
