"""The page of a cask on the Hub: README.md with its metadata."""

import json
import re
from typing import Any, Final

from logitcask_schemas.cask.exchange.hub import HubPlace
from logitcask_schemas.cask.reader import Cask

CARD_NAME: Final = "README.md"
CARD_MARK: Final = "<!-- Made by `logitcask cask push`, which replaces this page while this line is in it. -->"
_LOCAL_PATH: Final = re.compile(r"(?:[/~.\\]|[A-Za-z]:[/\\]|\w+://).*?([^/\\]*)[/\\]*", re.DOTALL)
_SIZES: Final = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LARGER: Final = ((10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"), (1_000_000_000, "100M<n<1B"))
_LARGEST: Final = ((10**10, "1B<n<10B"), (10**11, "10B<n<100B"), (10**12, "100B<n<1T"))


def hub_card(cask: Cask, place: HubPlace, licence: str | None) -> str:
    """The page: who the teacher was, what was kept of it, how much there is, how to train from it.

    Args:
        cask: What is described.
        place: Where it will lie.
        licence: An identifier of the Hub's list; None leaves the page without, for the owner to choose.
    """
    teacher, capture = cask.manifest.teacher, cask.manifest.capture
    teacher = teacher.model_copy(update={"model": public_name(teacher.model)})
    url, tokens = f"hf://{place.repository}", cask.num_tokens
    facts = {
        "documents": f"{len(cask):,}",
        "tokens": f"{tokens:,}",
        "positions with records": f"{cask.num_positions:,}",
        "shards": f"{len(cask.entries):,}, {', '.join(sorted({entry.carrier for entry in cask.entries}))}",
        "bytes": f"{cask.num_bytes:,} ({cask.num_bytes / max(tokens, 1):.1f} per token)",
        "format": f"version {cask.manifest.version}",
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    terms = "" if licence else "\nThe owner has not said under which licence this may be used.\n"
    return f"""---
{_metadata(cask, licence)}
---

{CARD_MARK}

# What {heading_name(teacher.model)} said about {len(cask):,} documents

A cask of logitcask: for every token of the documents, a sparse and unbiased record of the distribution that a teacher
model gave to the next one. Students train from it without the teacher.
{terms}
| | |
|---|---|
{rows}

## Train from it

In a clone of logitcask's repository, as no package index has it:

```sh
pip install ".[trainer,remote]"
logitcask cask pull {url} CASK
logitcask train --cask CASK --student STUDENT --output RUN
```

The student needs the tokenizer with the fingerprint below, or a method for another one. `logitcask cask rows CASK ROWS`
makes Parquet tables of target ids and weights for other trainers.

## The teacher

```json
{_json(teacher)}
```

## What was kept

```json
{_json(capture)}
```

Identity of the cask: `{cask.manifest.identity_digest()}`
"""


def _metadata(cask: Cask, licence: str | None) -> str:
    """As YAML, of which JSON values are a part."""
    sizes = (*_SIZES, *_LARGER, *_LARGEST)
    members: dict[str, Any] = {
        "pretty_name": f"Cask of {public_name(cask.manifest.teacher.model)}",
        "tags": ["logitcask", "distillation", "knowledge-distillation", "logits"],
        "size_categories": [next((name for limit, name in sizes if len(cask) < limit), "n>1T")],
        # Shards hold columns of a format of their own, which the Hub's table of rows cannot show in a useful way.
        "viewer": False,
    }
    if licence is not None:
        members = {"license": licence, **members}
    return "\n".join(f"{name}: {json.dumps(value)}" for name, value in members.items())


def _json(model: Any) -> str:
    return json.dumps(model.model_dump(mode="json", exclude_none=True), indent=2).replace("```", "` ` `")


def public_name(model: str) -> str:
    """A model's name; of a path, which says what somebody's machine is like, the last folder."""
    return match[1] if (match := _LOCAL_PATH.fullmatch(model)) else model


def heading_name(model: str) -> str:
    """A model's name in a heading: public, on one line and without markup."""
    name = public_name(model)
    return " ".join(name.replace("<", " ").replace(">", " ").split())
