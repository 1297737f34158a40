"""Numbers in sentences."""


def counted(count: int, noun: str) -> str:
    """A number of things: "1 document", "2,000 documents"; the noun is one that takes an s."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
