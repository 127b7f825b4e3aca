"""Hashes of an environment's state and pictures, for comparing two processes. The other process imports this file and
no network."""

import hashlib

from aim_hf.envs import make_environment


def state_digest(environment) -> str:
    digest = hashlib.sha256()
    for body_id, body in sorted(environment.bodies().items()):
        digest.update(str((body_id, body.name)).encode() + body.pose.tobytes())
    for linear, angular in environment.velocities().values():
        digest.update(linear.tobytes() + angular.tobytes())
    return digest.hexdigest()


def episode_digest(task: str, split: str, seed: int, render: bool, steps: int = 12, environment=None) -> str:
    """Everything that an episode's beginning shows, in one hash."""
    environment = environment or make_environment("tabletop", task, split, render=render)
    digest = hashlib.sha256()
    observation = environment.reset(seed)
    actions = environment.expert().actions
    for action in [*actions[:steps], None]:
        for view in observation["observation"].values():
            for value in view.values():
                digest.update(value.tobytes())
        digest.update(observation["joint_action"]["vector"].tobytes() + state_digest(environment).encode())
        if action is not None:
            observation = environment.step(action).observation
    return digest.hexdigest()


def play(task: str, seed: int, environment=None) -> list[bytes]:
    """Everything that the beginning of an episode of the suite aloha shows."""
    environment = environment or make_environment("aloha", task, depth=True)
    environment.reset(seed)
    shown = [state_digest(environment).encode()]
    for step, action in enumerate(environment.expert().actions[:50]):
        observation = environment.step(action, observe=step % 20 == 0).observation
        shown.append(state_digest(environment).encode())
        for view in observation["observation"].values() if observation else []:
            shown.extend(value.tobytes() for value in view.values())
    return shown
