"""One tiny policy and one pool of real environments for all tests."""

import pytest
from fixtures_policy import make_policy

from aim_hf.evaluation.vector_env import VectorEnvironment


@pytest.fixture(scope="session")
def policy():
    return make_policy()


@pytest.fixture(scope="session")
def environments():
    with VectorEnvironment("tabletop", "easy", num_workers=2) as pool:
        yield pool
