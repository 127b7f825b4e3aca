"""The suites behind Gymnasium's interface."""

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("gymnasium", reason="the extra sim isn't installed")

import gymnasium as gym

from aim_hf.envs import make_environment
from aim_hf.envs.gym import TabletopEnv
from aim_hf.envs.names import TASKS
from aim_hf.envs.poses import pack_endpose

WORKERS = """
import sys
import gymnasium
import numpy as np

import aim_hf.envs.gym

workers = gymnasium.make_vec(sys.argv[1], num_envs=2, vectorization_mode="async")
observation, _ = workers.reset(seed=[4, 5])
workers.close()
env = gymnasium.make(sys.argv[1])
for row, seed in enumerate((4, 5)):
    expected, _ = env.reset(seed=seed)
    np.testing.assert_array_equal(observation["pixels"]["head_camera"][row], expected["pixels"]["head_camera"])
"""


def make(task: str = "click_bell", **options) -> gym.Env:
    return gym.make(f"aim_tabletop/{task}-v0", **options)


def test_every_task_is_registered():
    names = {name for name in gym.registry if name.startswith("aim_")}
    assert names == {f"aim_{suite}/{task}-v0" for suite in ("tabletop", "aloha") for task in TASKS[suite]}


@pytest.mark.parametrize("split", ["easy", "hard", "camera-2"])
def test_a_seed_is_a_scene_of_the_evaluation(split):
    env, other = make(split=split), make_environment("tabletop", "click_bell", split)
    observation, _ = env.reset(seed=7)
    expected = other.reset(100_000_007)
    for camera, view in expected["observation"].items():
        np.testing.assert_array_equal(observation["pixels"][camera], view["rgb"])
    np.testing.assert_array_equal(observation["agent_pos"], pack_endpose(expected).astype(np.float32))
    assert env.unwrapped.task_description == other.instruction()
    assert env.observation_space.contains(observation)


def test_alohas_scenes_are_gym_alohas_and_its_expert_succeeds():
    sample_box_pose = pytest.importorskip("gym_aloha.utils", reason="the extra aloha isn't installed").sample_box_pose
    env, other = gym.make("aim_aloha/transfer_cube-v0"), make_environment("aloha", "transfer_cube")
    observation, _ = env.reset(seed=7)
    expected = other.reset(100_000_007)
    for camera, view in expected["observation"].items():
        np.testing.assert_array_equal(observation["pixels"][camera], view["rgb"])
    (cube,) = (body for body in env.unwrapped.environment.bodies().values() if body.dynamic)
    np.testing.assert_allclose(cube.pose, sample_box_pose(100_000_007))
    assert env.metadata["render_fps"] == 50
    for action in env.unwrapped.environment.expert().actions.astype(np.float32):
        _, reward, terminated, truncated, info = env.step(action)
        if terminated:
            break
    assert terminated and not truncated and info["is_success"] and reward == 1


def test_a_perturbation_changes_the_scene_and_its_instruction():
    easy, _ = make().reset(seed=0)
    moved, _ = make(split="camera-2").reset(seed=0)
    assert not np.array_equal(easy["pixels"]["head_camera"], moved["pixels"]["head_camera"])
    plain, reworded = make(), make(split="wording-3")
    plain.reset(seed=0), reworded.reset(seed=0)
    assert plain.unwrapped.task_description != reworded.unwrapped.task_description


def test_the_expert_ends_an_episode_with_success():
    env = make("lift_pot")
    env.reset(seed=3)
    rewards = []
    for action in env.unwrapped.environment.expert().actions.astype(np.float32):
        _, reward, terminated, truncated, info = env.step(action)
        rewards.append(reward)
        if terminated:
            break
    assert terminated and not truncated and info["is_success"]
    assert rewards[-1] == 1 and sum(rewards) == 1


@pytest.mark.parametrize("action_mode", ["ee", "qpos"])
def test_who_stands_still_runs_out_of_steps(action_mode):
    env = make(action_mode=action_mode)
    start, _ = env.reset(seed=0)
    assert start["agent_pos"].shape == env.action_space.shape
    steps, ended = 0, False
    while not ended:
        observation, _, terminated, ended, info = env.step(start["agent_pos"])
        steps += 1
    assert steps == env.unwrapped._max_episode_steps and not terminated and not info["is_success"]
    np.testing.assert_allclose(observation["agent_pos"], start["agent_pos"], atol=0.02)


def test_quaternions_are_normalized():
    env, long = make(), make()
    start, _ = env.reset(seed=0)
    long.reset(seed=0)
    action = start["agent_pos"].copy()
    action[[3, 4, 5, 6, 11, 12, 13, 14]] *= 0.01
    for one, executed in ((env, start["agent_pos"]), (long, action)):
        one.step(executed)
    np.testing.assert_allclose(
        long.unwrapped.environment.tcp("left"), env.unwrapped.environment.tcp("left"), atol=1e-5
    )


def test_a_draw_follows_from_the_first_seed():
    env, other = make(), make()
    for one in (env, other):
        one.reset(seed=1)
    first, second = env.reset()[0], other.reset()[0]
    np.testing.assert_array_equal(first["pixels"]["head_camera"], second["pixels"]["head_camera"])
    assert not np.array_equal(env.reset()[0]["pixels"]["head_camera"], first["pixels"]["head_camera"])


def test_seeding_the_observations_leaves_the_drawn_actions_as_they_are():
    env = make()
    env.action_space.seed(1)
    expected = env.action_space.sample()
    env.action_space.seed(1)
    env.observation_space.seed(2)
    np.testing.assert_array_equal(env.action_space.sample(), expected)


def test_only_a_scene_has_a_picture():
    env = TabletopEnv("click_bell")
    for leave in (lambda: None, env.close):
        leave()
        with pytest.raises(RuntimeError, match="no scene: call reset"):
            env.render()
        observation, _ = env.reset(seed=0)
        np.testing.assert_array_equal(env.render(), observation["pixels"]["head_camera"])


@pytest.mark.parametrize("name", ["aim_tabletop/click_bell-v0", "aim_aloha/transfer_cube-v0"])
def test_worker_processes_show_the_scenes_of_their_seeds(name):
    subprocess.run([sys.executable, "-c", WORKERS, name], check=True, timeout=600)  # nothing has rendered in it yet


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="split='camera-9' is unknown"):
        make(split="camera-9")
    with pytest.raises(ValueError, match="action_mode is 'joint'; expected one of ee, qpos"):
        make(action_mode="joint")
    with pytest.raises(ValueError, match="render_mode is 'human'; expected one of rgb_array"):
        TabletopEnv("click_bell", render_mode="human")
    env = make()
    for seed in (-1, 0.5, 100_000_000, 2**64):
        with pytest.raises(ValueError, match=f"^seed is {seed}; expected a whole number, 0 to 99999999"):
            env.reset(seed=seed)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action has shape \(14,\), mode 'ee' expects \(16,\)"):
        env.step(np.zeros(14))
    with pytest.raises(ValueError, match="norm 0, expected about 1"):
        env.step(np.zeros(16))
