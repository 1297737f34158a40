"""A corpus of real text that is on every machine: docstrings and sources of the Python standard library.

Documents are pieces of one module, about `DOCUMENT_CHARACTERS` long, in an order fixed by a hash of their text, so
that any prefix is a fair sample of the library. The held-out part is a seventh of the modules, so that no held-out text
comes from a module seen in training.
"""

import ast
import hashlib
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

DOCUMENT_CHARACTERS = 1000
TOKEN_BUDGET = 33_000
CHARACTERS_PER_TOKEN = 3.8  # measured on this corpus with SmolLM2's tokenizer: 3.82
HELD_OUT_SHARE = 0.15


def module_files() -> list[Path]:
    """The standard library's top-level modules and packages' modules, without tests and generated tables."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"test", "tests", "idlelib", "lib2to3", "site-packages", "encodings", "pydoc_data", "__pycache__"}
    return sorted(path for path in root.rglob("*.py") if not skipped.intersection(path.relative_to(root).parts[:-1]))


def docstrings(tree: ast.Module) -> str:
    """Names and docstrings of a module's definitions, in order."""
    parts = [ast.get_docstring(tree) or ""]
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            parts.append(f"{node.name}: {text}")
    return "\n\n".join(part for part in parts if part)


def pieces(text: str, characters: int = DOCUMENT_CHARACTERS) -> Iterator[str]:
    """Cut at line ends into pieces of about so many characters; a short rest is dropped."""
    piece: list[str] = []
    length = 0
    for line in text.splitlines(keepends=True):
        piece.append(line)
        length += len(line)
        if length >= characters:
            yield "".join(piece)
            piece, length = [], 0


def digest(text: str) -> int:
    """A number from a text, the same on every machine and run."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def documents(*, held_out: bool) -> list[str]:
    """Documents of the training or the held-out modules, in hash order."""
    texts: list[str] = []
    for path in module_files():
        if (digest(path.name) / 2**64 < HELD_OUT_SHARE) != held_out:
            continue
        source = path.read_text(encoding="utf-8")
        for text in (docstrings(ast.parse(source)), source):
            texts.extend(pieces(text))
    return sorted(set(texts), key=digest)


def write(path: Path, token_budget: int, *, held_out: bool) -> int:
    """Write JSONL lines {"text"} worth about `token_budget` tokens; returns the number of documents."""
    budget = token_budget * CHARACTERS_PER_TOKEN
    lines = []
    for text in documents(held_out=held_out):
        if budget < 0:
            break
        budget -= len(text)
        lines.append(json.dumps({"text": text}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)
