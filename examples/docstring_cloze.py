"""Questions from text that every Python has: with which word does the first sentence of a docstring end?

    python examples/docstring_cloze.py cloze.jsonl
    logitcask tasks from-json cloze.jsonl --output tasks --prompt '{{question}}'
    logitcask report --cask casks/heldout --model after=student --tasks tasks --perturb typos,case,order --output report

The wrong choices are last words of other sentences. The same Python and seed give the same questions.
"""

import argparse
import ast
import json
import random
import re
import sysconfig
from pathlib import Path

SENTENCE = re.compile(r"([A-Z][^.:\n]*(?:\n[^.:\n]+)*) ([a-z]{4,})\.(?=\s|$)")
"""A sentence that begins a docstring, and its last word."""
WORDS = range(8, 26)


def sentences(folder: Path) -> list[tuple[str, str]]:
    """First sentences of the docstrings of a folder's modules, without their last words, and these."""
    endings: dict[str, str] = {}
    for path in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                match = SENTENCE.match(ast.get_docstring(node) or "")
                if match and len(match[1].split()) in WORDS:
                    endings.setdefault(" ".join(match[1].split()), match[2])
    return list(endings.items())


def main() -> None:
    """Write the questions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="JSONL file to write")
    parser.add_argument("--count", type=int, default=50, help="questions (50)")
    parser.add_argument("--choices", type=int, default=4, help="choices of each (4)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    pairs = sentences(Path(sysconfig.get_paths()["stdlib"]))
    endings = sorted({ending for _, ending in pairs})
    rows = []
    for text, ending in generator.sample(pairs, arguments.count):
        wrong = generator.sample([word for word in endings if word != ending], arguments.choices - 1)
        choices = generator.sample([ending, *wrong], arguments.choices)
        rows.append({"question": text, "choices": choices, "answer": choices.index(ending)})
    arguments.output.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} questions of {len(pairs)} sentences: {arguments.output}")


if __name__ == "__main__":
    main()
