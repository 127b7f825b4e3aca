"""One tiny policy, and one server of it that most tests share."""

import pytest

from .fixtures_serving import make_policy, running


@pytest.fixture(scope="session")
def policy():
    return make_policy()


@pytest.fixture(scope="session")
def server(policy):
    with running(policy) as server:
        yield server
