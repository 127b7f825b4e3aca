"""The policy and the environments of the rollout tests."""

from ..rollout.conftest import environments, policy  # noqa: F401
