"""What the tests of capture compare with."""

from types import ModuleType

import pytest

from tests.support.services import capture_oracle


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    """Dense float64 truth, and strategies for specs and logits."""
    return capture_oracle
