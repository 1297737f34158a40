"""A packed document read bit by bit in plain Python, from docs/format.md alone: no code is shared with the package."""

from typing import Any

Codes = dict[str, int]
"""Symbols by their bits."""


class EndOfBits(Exception):
    """The document's bits do not say what they should."""


def codes_of(text: str) -> Codes:
    """From one hex digit per symbol."""
    lengths = [int(digit, 16) for digit in text]
    codes, value, previous = {}, 0, 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(lengths) if length):
        value <<= length - previous
        codes[format(value, f"0{length}b")] = symbol
        value, previous = value + 1, length
    return codes


class Bits:
    def __init__(self, words: list[int]) -> None:
        self.bits = "".join(format(word, "064b")[::-1] for word in words)
        self.at = 0

    def take(self, count: int) -> str:
        if self.at + count > len(self.bits):
            raise EndOfBits
        self.at += count
        return self.bits[self.at - count : self.at]

    def symbol(self, codes: Codes) -> int:
        read = ""
        while read not in codes:
            if len(read) > 10:
                raise EndOfBits
            read += self.take(1)
        return codes[read]

    def byte(self, codes: Codes) -> int:
        return self.symbol(codes) if codes else 0

    def number(self, codes: Codes) -> int:
        size = self.symbol(codes)
        return size if size < 2 else (1 << (size - 1)) + int(self.take(size - 1)[::-1], 2)


def read_document(
    words: list[int],
    codes: dict[str, Any],
    sizes: tuple[int, int, int, int],
    next_tokens: list[int],
    id_of_rank: list[int],
    in_bytes: dict[str, list[str]],
    coded_mass: bool,
) -> dict[str, list[int]]:
    """The packed columns of a document.

    Args:
        words: its words of 64 bits.
        codes: what the shard's metadata say, as read from JSON.
        sizes: numbers of tokens, positions, head entries and draws.
        next_tokens: index of the token after each position.
        id_of_rank: by rank.
        in_bytes: columns of one byte but the counts of draws: per position, per head entry, per draw.
        coded_mass: whether log r is one of them.
    """
    tokens, positions, heads, draws = sizes
    code = {name: [codes_of(text) for text in texts] for name, texts in codes.items() if name != "expected"}
    expected = list(bytes.fromhex(codes["expected"]))
    bits, columns = Bits(words), {}

    def the_id(rank: int) -> int:
        if rank >= len(id_of_rank):
            raise EndOfBits
        return id_of_rank[rank]

    columns["token_ids"] = [the_id(bits.number(code["token_ids"][0])) for _ in range(tokens)]
    for name in in_bytes["position"]:
        columns[name] = [bits.byte(code[name][0]) for _ in range(positions)]
    counts = [bits.byte(code["tail_counts"][0]) for _ in range(positions)]
    if coded_mass:
        counts = [(count + expected[mass]) % 256 for count, mass in zip(counts, columns["log_tail_mass"], strict=True)]
    columns["tail_counts"] = counts
    if sum(columns["head_counts"]) != heads or sum(counts) != draws or 0 in columns["head_counts"]:
        raise EndOfBits
    places = []
    for count in columns["head_counts"]:
        symbol = bits.byte(code["next_token"][0]) if count > 1 else 0
        places.append({0: 0, 1: count - 1}.get(symbol, symbol - 1))
        if places[-1] >= count:
            raise EndOfBits
    columns["head_ids"] = [
        columns["token_ids"][following] if place == number else the_id(bits.number(code["head_ids"][0]))
        for count, place, following in zip(columns["head_counts"], places, next_tokens, strict=True)
        for number in range(count)
    ]
    columns["tail_ids"] = []
    for count in counts:
        rank, largest, ids = 0, 0, []
        for left in range(count, 0, -1):
            gap = bits.number(code["tail_ids"][min(max(largest - left.bit_length() + 3, 0), 15)])
            rank, largest = rank + gap, max(largest, gap.bit_length())
            ids.append(the_id(rank))
        columns["tail_ids"] += sorted(ids)
    for level, count in (("head", heads), ("tail", draws)):
        for name in in_bytes[level]:
            columns[name] = [bits.byte(code[name][0]) for _ in range(count)]
    if len(bits.bits) - bits.at >= 64 or "1" in bits.bits[bits.at :]:
        raise EndOfBits
    return columns
