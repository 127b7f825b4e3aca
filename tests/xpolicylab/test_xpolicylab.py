"""The adapter for XPolicyLab, on tabletop scenes told in XPolicyLab's format.

With XPOLICYLAB_ROOT, a checkout of XPolicyLab, its own websocket server and client stand between the two; without,
calls go straight to the model as that client sends them: one observation with each request for actions.
"""

import asyncio
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from aim_hf.envs import make_environment
from aim_hf.envs.poses import along_tools
from aim_hf.envs.robotwin.environment import FRAME_BEHIND_TCP
from aim_hf.envs.robotwin.tasks import evaluation_seed, simulator_seed
from aim_hf.envs.seeds import episode_seeds
from aim_hf.rollout.policies import AIMPolicy
from aim_hf.rollout.run import run_episodes
from aim_hf.rollout.vector_env import VectorEnvironment

ROOT = Path(__file__).parents[2]
POLICY, TASK = ROOT / "checkpoints" / "aim-tiny", "click_bell"
STEPS = {"num_inference_steps": 1, "num_action_inference_steps": 2}
CAMERAS = {"head_camera": "cam_head", "left_camera": "cam_left_wrist", "right_camera": "cam_right_wrist"}
SEEDS = episode_seeds("evaluation", 15_000, 3)

sys.path.insert(0, str(ROOT / "pipelines" / "xpolicylab"))

from AIM import deploy  # noqa: E402
from AIM.model import Model  # noqa: E402


def make_model(**changes) -> Model:
    settings = {"bench_name": "RoboTwin", "ckpt_name": str(POLICY), "action_type": "ee", "seed": 0, "device": "cpu"}
    return Model(settings | STEPS | changes)


class Scene:
    """A tabletop episode as an environment of XPolicyLab. `taken`: the actions (T, 16) that were executed."""

    def __init__(self, seed: int, index: int = 0) -> None:
        self.env, self.index, self.taken = make_environment("tabletop", TASK), index, []
        self.observation, self.success = self.env.reset(seed), False

    def is_episode_end(self) -> bool:
        return self.success or len(self.taken) == self.env.step_limit

    def get_obs(self) -> dict:
        state, endpose = {}, self.observation["endpose"]
        for arm in ("left", "right"):
            state[f"{arm}_tcp_pose"] = np.asarray(endpose[f"{arm}_endpose"], dtype=np.float32)
            state[f"{arm}_ee_joint_state"] = np.float32([endpose[f"{arm}_gripper"]])
        vision = {CAMERAS[name]: {"color": view["rgb"]} for name, view in self.observation["observation"].items()}
        instruction = self.env.instruction()
        return {"instruction": instruction, "env_idx": self.index, "vision": vision, "state": state}

    def take_action(self, action: dict) -> None:
        parts = [action[f"{arm}_{name}"] for arm in ("left", "right") for name in ("ee_pose", "ee_joint_state")]
        self.taken.append(along_tools(np.concatenate(parts).astype(np.float64), FRAME_BEHIND_TCP))
        result = self.env.step(self.taken[-1])
        self.observation, self.success = result.observation, result.success


class Scenes:
    """Several of them, as XPolicyLab's batched environment."""

    def __init__(self, seeds: list[int]) -> None:
        self.scenes = [Scene(seed, index) for index, seed in enumerate(seeds)]

    def is_episode_end(self) -> bool:
        return not self.get_running_env_idx_list()

    def get_running_env_idx_list(self) -> list[int]:
        return [scene.index for scene in self.scenes if not scene.is_episode_end()]

    def get_obs_batch(self, indices: list[int]) -> list[dict]:
        return [self.scenes[index].get_obs() for index in indices]

    def take_action_batch(self, actions: list[dict], indices: list[int]) -> None:
        for action, index in zip(actions, indices, strict=True):
            self.scenes[index].take_action(action)


class Direct:
    """Calls a model as XPolicyLab's websocket client and server do."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def call(self, func_name: str, obs=None):
        if func_name == "prepare_case":
            return self.model.prepare_case(obs)
        if func_name == "reset":
            return self.model.reset()
        if func_name in ("update_obs", "update_obs_batch"):
            self.latest = obs
            return None
        answers = []
        for observation in self.latest if func_name == "get_action_batch" else [self.latest]:
            self.model.update_obs(observation)
            answers.append(self.model.get_action())
        return answers if func_name == "get_action_batch" else answers[0]


@pytest.fixture
def client():
    """A client of a model; XPolicyLab's own if there is a checkout."""
    model, root = make_model(), os.environ.get("XPOLICYLAB_ROOT")
    if root is None:
        yield Direct(model)
        return
    sys.path.insert(0, root)
    from client_server.ws import WsModelClient
    from client_server.ws.model_server import PolicyServer, PolicyServerConfig

    server, loop = PolicyServer(model, PolicyServerConfig("127.0.0.1", 0)), asyncio.new_event_loop()
    loop.run_until_complete(server.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    client = WsModelClient(url=server.url, evaluation_id="test", trial_id="test", action_case_id="test")
    yield client
    client.close()
    asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    sys.path.remove(root)


def evaluated(seeds: list[int]):
    """Results and executed actions of the project's own evaluation."""
    policy, taken = AIMPolicy.from_pretrained(POLICY, **STEPS), []
    predict = policy.predict

    def recorded(*args, **kwargs):
        prediction = predict(*args, **kwargs)
        taken.append(prediction.actions)
        return prediction

    policy.predict = recorded
    environments = VectorEnvironment("tabletop", "easy", num_workers=1)
    results = sorted(run_episodes(policy, environments, TASK, seeds), key=lambda result: result.seed)
    environments.close()
    return results, taken


@pytest.mark.parametrize("seed", SEEDS)
def test_an_episode_is_that_of_the_own_evaluation(client, seed):
    """Up to rounding: poses are float32, and calls have one row instead of eight. Noise, frames and history agree."""
    (result,), chunks = evaluated([seed])
    scene = Scene(seed)
    client.call(func_name="prepare_case", obs={"seed": simulator_seed(seed)})
    deploy.eval_one_episode(scene, client)
    assert (scene.success, len(scene.taken)) == (result.success, result.steps)
    expected = np.concatenate([chunk[0] for chunk in chunks])[: len(scene.taken)]
    np.testing.assert_allclose(scene.taken, expected, rtol=0, atol=1e-3)
    np.testing.assert_allclose(scene.taken[:16], expected[:16], rtol=0, atol=1e-4)


def test_episodes_of_a_batch_do_not_disturb_each_other():
    scenes, client = Scenes(SEEDS), Direct(make_model())
    deploy.eval_one_episode_batch(scenes, client)
    for index, seed in enumerate(SEEDS):
        alone = Scene(seed, index)
        deploy.eval_one_episode(alone, client)
        np.testing.assert_array_equal(alone.taken, scenes.scenes[index].taken)


def test_seeds_are_those_of_the_same_scenes():
    for seed in SEEDS:
        assert evaluation_seed(simulator_seed(seed)) == seed


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"bench_name": "RoboDojo"}, "bench_name is 'RoboDojo'; .*RoboTwin alone"),
        ({"action_type": "joint"}, "action_type is 'joint'; this checkpoint needs 'ee'"),
        ({"action_type": "delta"}, "action_type is 'delta'; this checkpoint needs 'ee'"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"seed": 2**64}, f"^seed is {2**64}; expected a whole number, 0 to {2**63 - 1}"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_the_server_starts(changes, match):
    with pytest.raises(ValueError, match=match):
        make_model(**changes)
