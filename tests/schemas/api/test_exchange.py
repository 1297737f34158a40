"""A client's calls without a network: what is tried again, how long it waits, and what it makes of answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcask_schemas.api.exchange import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    TRIES,
    Answer,
    Pause,
    Request,
    ServiceUnreachableError,
    collected,
    seconds_to_retry,
    sent,
)

READ = Request(method="GET", path="/", repeatable=True)


def answer(status, **headers):
    return Answer(server="http://x", method="GET", path="/", status=status, headers=headers, content=b"")


def outcome(request, replies):
    """The answer of a call that is given these replies, how often it asked, and the pauses that it made."""
    flow, replies, pauses, asked, reply = sent(request), iter(replies), [], 0, None
    while True:
        try:
            step = flow.throw(reply) if isinstance(reply, Exception) else flow.send(reply)
        except StopIteration as end:
            return end.value, asked, pauses
        if isinstance(step, Pause):
            pauses.append(step.seconds)
            reply = None
        else:
            assert step is request
            asked += 1
            reply = next(replies)


@pytest.mark.parametrize("refusal", [answer(429), answer(503), ServiceUnreachableError("gone")], ids=str)
def test_what_may_be_repeated_is_until_it_is_answered(refusal):
    end, asked, pauses = outcome(READ, [refusal] * (TRIES - 1) + [answer(200)])
    assert (end.status, asked) == (200, TRIES)
    assert all(0 <= pause <= FIRST_PAUSE * 2**number for number, pause in enumerate(pauses))


def test_in_the_end_the_last_word_counts():
    assert outcome(READ, [answer(503)] * TRIES)[0].status == 503
    with pytest.raises(ServiceUnreachableError):
        outcome(READ, [ServiceUnreachableError("gone")] * TRIES)


@pytest.mark.parametrize("status", [200, 400, 404, 409, 422, 500, 502, 507])
def test_other_answers_are_taken_at_once(status):
    assert outcome(READ, [answer(status)])[1:] == (1, [])


def test_what_would_do_more_than_once_is_never_repeated():
    post = Request(method="POST", path="/")
    assert outcome(post, [answer(503)])[1:] == (1, [])
    with pytest.raises(ServiceUnreachableError):
        outcome(post, [ServiceUnreachableError("gone")])


@given(st.integers(0, int(LONGEST_PAUSE)))
def test_retry_after_is_kept(seconds):
    _, _, (pause,) = outcome(READ, [answer(429, **{"retry-after": str(seconds)}), answer(200)])
    assert seconds <= pause <= seconds + FIRST_PAUSE


def test_a_service_that_asks_for_long_is_not_waited_for():
    end, asked, pauses = outcome(READ, [answer(429, **{"retry-after": str(int(LONGEST_PAUSE) + 1)})])
    assert (end.status, asked, pauses) == (429, 1, [])


@pytest.mark.parametrize("text", ["", "soon", "-1", "1.5", "Wed, 21 Oct 2015 07:28:00 GMT", "9" * 10, "٣"])
def test_a_retry_after_that_is_no_number_of_seconds_counts_as_none(text):
    assert seconds_to_retry(answer(503, **{"retry-after": text})) == 0.0


def test_pauses_are_spread_over_the_whole_interval():
    """Full jitter: clients that were refused together do not come back together."""
    pauses = [outcome(READ, [answer(503), answer(200)])[2][0] for _ in range(200)]
    assert min(pauses) < FIRST_PAUSE / 4
    assert max(pauses) > 3 * FIRST_PAUSE / 4


def test_a_list_is_asked_for_page_by_page():
    class Entry:
        def __init__(self, number):
            self.id = str(number)

    asked = []

    def page(params):
        asked.append(dict(params))
        first = int(params.get("after", -1)) + 1
        yield READ
        return [Entry(number) for number in range(first, first + params["limit"])], True

    def keep():
        listed.extend((yield from collected(page, 150)))

    listed = []
    assert list(keep()) == [READ, READ]
    assert [entry.id for entry in listed] == [str(number) for number in range(150)]
    assert asked == [{"limit": 100}, {"limit": 50, "after": "99"}]
