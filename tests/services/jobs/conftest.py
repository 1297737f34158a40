"""A service around a generator, for tests of generations."""

from contextlib import contextmanager

import pytest

from tests.support.services.generations import start, teacher_of


@pytest.fixture
def service_of(make_settings):
    """A function: a running service with this generator, stopped at the end of its block."""

    @contextmanager
    def run(generator, loads=None, **settings):
        service = start(make_settings(**settings), teacher_of(generator, loads))
        try:
            yield service
        finally:
            service.stop()

    return run
