"""openpi's own client drives `checkpoints/aim-tiny` on the tabletop, as well as the evaluator does in its process."""

from pathlib import Path

import numpy as np

from aim_hf.envs.poses import pack_endpose
from aim_hf.protocol.observations import write_images
from aim_hf.rollout.policies import AIMPolicy, Prediction
from aim_hf.rollout.run import run_episodes
from aim_hf.rollout.vector_env import VectorEnvironment

from .fixtures_serving import running

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "aim-tiny"
TASK, SEEDS = "click_bell", [100_000_000, 100_000_001]


class Traced:
    """A policy that keeps what it did."""

    def __init__(self, policy):
        self.policy, self.actions = policy, []

    def __getattr__(self, name):
        return getattr(self.policy, name)

    def predict(self, observations, executed_actions=None, value_maps=None, pictures="none"):
        prediction = self.policy.predict(observations, executed_actions, value_maps, "none")
        self.actions.append(prediction.actions)
        return prediction


class ThroughOpenPI:
    """The policy behind `server`, asked by a client of openpi's for each episode."""

    def __init__(self, policy, server):
        self.policy, self.server = policy, server

    def __getattr__(self, name):
        return getattr(self.policy, name)

    def start(self, instructions, seeds):
        self.clients = [self.server.client() for _ in seeds]
        self.first = [{"prompt": prompt, "seed": seed} for prompt, seed in zip(instructions, seeds)]

    def keep(self, rows):
        self.clients = [self.clients[row] for row in rows]

    def predict(self, observations, executed_actions=None, value_maps=None, pictures="none"):
        messages = [{"images": write_images(seen)} for seen in observations]
        if executed_actions is None:
            for message, first, seen in zip(messages, self.first, observations):
                message |= first | {"endpose": pack_endpose(seen[0])}
        replies = [client.infer(message) for client, message in zip(self.clients, messages)]
        return Prediction(actions=np.stack([reply["actions"] for reply in replies]))


def test_openpis_client_drives_the_checkpoint_as_the_evaluator_does():
    policy = AIMPolicy.from_pretrained(CHECKPOINT)
    here = Traced(policy)
    with VectorEnvironment("tabletop", "easy", num_workers=1) as environments, running(policy) as server:
        there = Traced(ThroughOpenPI(policy, server))
        expected = list(run_episodes(here, environments, TASK, SEEDS))
        results = list(run_episodes(there, environments, TASK, SEEDS))
    assert results == expected and all(result.success for result in results)
    for chunk_there, chunk_here in zip(there.actions, here.actions, strict=True):
        np.testing.assert_array_equal(chunk_there, chunk_here)
