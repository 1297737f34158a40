"""A generation as simple as can be, for tests of what is around it: one template, two steps."""

from typing import Any

TEMPLATE = """---
kind: text
description: Asks.
fields: [question]
---
Q: {{ question }}
A:"""
STEPS: list[dict[str, Any]] = [
    {"kind": "generate", "template": "ask", "sampling": {"n": 2, "temperature": 1, "max_tokens": 30}},
    {"kind": "keep", "of": "output", "matches": "[05]"},
]
EMIT: list[dict[str, Any]] = [{"completion": "output"}]
