"""Self-consistency (Wang et al., 2022; arXiv 2203.11171): the answer that most samples of a row gave."""

from collections import Counter
from collections.abc import Iterator

from logitcask_schemas.api.generation_steps import Vote
from logitcask_services.generation.row_steps.stream import place, rows_of, samples_together, shown
from logitcask_services.generation.row_steps.values import canonical
from logitcask_services.generation.rows import Row, Staged


class VoteStep:
    """Puts the majority's answer, as its first sample wrote it, and its share into each sample of a row.

    Samples whose answer is null do not vote, but count for the share; dropped ones do neither. Of answers with equally
    many votes, the one that came first wins. The check `<into>` holds {votes, of}. Codes: `no_majority` (nobody voted,
    or the share is below `min_share`), `outvoted` (another answer), `not_first` (the same, later, where one is kept).
    """

    def __init__(self, step: Vote, number: int) -> None:
        self._step = step
        self._number = number

    def apply(self, stream: Iterator[Staged]) -> Iterator[Staged]:
        """See `RowStep`."""
        for group in samples_together(stream):
            rows = rows_of(group)
            if not rows:
                yield from group
                continue
            voted = self._vote(rows)
            yield from (voted.pop(0) if isinstance(staged, Row) else staged for staged in group)

    def _vote(self, rows: list[Row]) -> list[Staged]:
        step = self._step
        answers = [row.fields.get(step.by) for row in rows]
        keys = [None if answer is None else canonical(answer) for answer in answers]
        votes = Counter(key for key in keys if key is not None)
        # Counter keeps the order of first appearance, and max takes the first of equals.
        majority = max(votes, key=votes.__getitem__, default=None)
        winner = None if majority is None else keys.index(majority)
        count = 0 if majority is None else votes[majority]
        share = count / len(rows)
        answer = None if winner is None else answers[winner]
        none_wins = share < step.min_share or (winner is None and step.keep != "all")
        result: list[Staged] = []
        for position, (row, key) in enumerate(zip(rows, keys, strict=True)):
            row = row.put(step.into, answer).put(f"{step.into}_share", share)
            row = row.noted(step.into, {"votes": count, "of": len(rows)})
            told = f"{count} of {len(rows)} samples said {shown(answer)}"
            if none_wins:
                wanted = f"a share of {step.min_share:g} at least" if winner is not None else "an answer"
                message = f"{place(row)}: expected {wanted} in `{step.by}`, got none: {told}"
                result.append(row.drop(self._number, "no_majority", message))
            elif step.keep != "all" and key != majority:
                message = f"{place(row)}: expected the majority's `{step.by}`, got {shown(answers[position])}: {told}"
                result.append(row.drop(self._number, "outvoted", message))
            elif step.keep == "one" and position != winner:
                message = f"{place(row)}: expected the first sample of the majority, got a later one: {told}"
                result.append(row.drop(self._number, "not_first", message))
            else:
                result.append(row)
        return result
