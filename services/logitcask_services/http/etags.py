"""ETags of content that is named by its digest."""


def is_known(if_none_match: str, sha256: str) -> bool:
    """Whether an If-None-Match names the content with this digest (RFC 9110, 13.1.2: weakly compared)."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or f'"{sha256}"' in tags
