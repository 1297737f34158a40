"""The log stays small and harmless, whatever clients do."""

import io
import logging

from logitcask_services.http.logs import LogLimit, PlainLines


def test_a_line_that_repeats_is_written_once(caplog):
    logger = logging.getLogger("a logger of this test")
    limit = LogLimit(interval_seconds=3600)
    logger.addFilter(limit)
    for number in range(1000):
        logger.warning("no connection can be taken: %s", number)
    for _ in range(2):
        logger.error("something else")
    limit._passed = {kind: (moment - 3600, count) for kind, (moment, count) in limit._passed.items()}
    logger.warning("no connection can be taken: %s", "again")
    assert [record.getMessage() for record in caplog.records] == [
        "no connection can be taken: 0",
        "something else",
        "something else",
        "no connection can be taken: again (and 999 more like it)",
    ]


def test_what_clients_wrote_does_not_steer_the_operators_terminal():
    """The record is one line; the traceback behind it stays readable."""
    logger, stream = logging.getLogger("another logger of this test"), io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PlainLines("%(levelname)s: %(message)s"))
    logger.addHandler(handler)
    logger.propagate = False
    logger.warning("the client of %s went away", "/v1/x\x1b]0;pwned\x07\r\nCRITICAL: forged\x9b\u2028")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception("Exception in ASGI application\n")
    first, second, *trace = stream.getvalue().split("\n")
    assert first == r"WARNING: the client of /v1/x\x1b]0;pwned\x07\r\nCRITICAL: forged\x9b\u2028 went away"
    assert second == "ERROR: Exception in ASGI application"
    assert trace[0] == "Traceback (most recent call last):"
