"""One tiny policy and one pool of real environments for all tests."""

import pytest

from aim_hf.rollout.vector_env import VectorEnvironment

from .fixtures_policy import make_policy


@pytest.fixture(scope="session")
def policy():
    return make_policy()


@pytest.fixture(scope="session")
def environments():
    with VectorEnvironment("tabletop", "easy", num_workers=2) as pool:
        yield pool
