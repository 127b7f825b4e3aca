"""The tasks of a suite behind Gymnasium's interface, with LeRobot's names of observations. Importing this module
registers `aim_tabletop/<task>-v0` and `aim_aloha/<task>-v0` for each task."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ..utils.checks import check_choice, check_whole
from ..utils.extras import extra
from . import make_environment
from .base import ActionMode, Observation
from .names import TASKS
from .poses import pack_endpose, unit_quaternions
from .seeds import seed_range

with extra("sim"):
    import gymnasium as gym
    from gymnasium import spaces


def scene_seed(index: int) -> int:
    """The seed of a scene for evaluation. Raises ValueError for an index outside 0 .. 99,999,999."""
    seeds = seed_range("evaluation")
    return seeds[check_whole("seed", index, least=0, most=len(seeds) - 1)]


class SuiteEnv(gym.Env):
    """One task of a suite.

    An observation holds `pixels`, camera -> uint8 (H, W, 3), and `agent_pos`, float32, in the layout of an action: in
    action mode `ee` the measured tool poses (16,), in `qpos` the joint positions (14,). Actions are absolute. The
    reward is 1 in the step that fulfils the task, which ends the episode; the step limit truncates it.

    `reset(seed=i)` sets up the i-th scene for evaluation, the one that `aim-hf evaluate` has at index i. Without a
    seed it draws one. No training data comes from these scenes.

    `environment` is the suite's own environment, with the expert, the contacts and the cameras' calibration.

    Args:
        task: one of the suite's tasks. split: one of its splits.
        action_mode: "ee" or "qpos".
        render_mode: "rgb_array", in which `render` gives the head camera's picture; None is the same.

    Raises:
        ValueError: for an unknown task, split, action mode or render mode.
    """

    suite: ClassVar[str]

    def __init__(
        self, task: str, split: str = "easy", action_mode: ActionMode = "ee", render_mode: str | None = "rgb_array"
    ) -> None:
        if render_mode is not None:
            check_choice("render_mode", render_mode, self.metadata["render_modes"])
        self.environment = make_environment(self.suite, task, split)
        interface = self.environment.interface(split)
        check_choice("action_mode", action_mode, interface.action_dims)
        self.task, self.action_mode, self.render_mode = task, action_mode, render_mode
        self.task_description = ""  # the instruction, known after `reset`
        self._max_episode_steps = self.environment.step_limit  # LeRobot reads it
        self._pixels: dict[str, np.ndarray] | None = None  # of the latest observation
        numbers, self.action_space = (  # two spaces, because each samples with its own generator
            spaces.Box(-np.inf, np.inf, (interface.action_dims[action_mode],), np.float32) for _ in range(2)
        )
        pictures = {
            camera: spaces.Box(0, 255, (*size, 3), np.uint8) for camera, size in interface.picture_sizes.items()
        }
        self.observation_space = spaces.Dict({"pixels": spaces.Dict(pictures), "agent_pos": numbers})

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """The first observation of a scene. Raises ValueError for a seed outside 0 .. 99,999,999."""
        if seed is not None:
            scene_seed(seed)  # before Gymnasium refuses one below 0 by an error of its own
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(len(seed_range("evaluation"))))
        observation = self._converted(self.environment.reset(scene_seed(seed)))
        self.task_description = self.environment.instruction()
        return observation, {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Executes one action for a control step. A network's quaternions are seldom of unit length, so they are
        normalized.

        Raises:
            ValueError: for NaN, a wrong shape, or a quaternion of zeros.
        """
        if self.action_mode == "ee" and np.shape(action) == self.action_space.shape:
            action = unit_quaternions(action)
        result = self.environment.step(action, self.action_mode)
        truncated = result.info["done"] and not result.success
        info = {"is_success": result.success}
        return self._converted(result.observation), float(result.success), result.success, truncated, info

    def render(self) -> np.ndarray:
        """The head camera's picture, uint8 (H, W, 3). Raises RuntimeError before `reset` and after `close`."""
        if self._pixels is None:
            raise RuntimeError("the environment has no scene: call reset(seed) first.")
        return self._pixels["head_camera"]

    def close(self) -> None:
        self.environment.close()
        self._pixels = None

    def _converted(self, observation: Observation) -> dict[str, Any]:
        self._pixels = {camera: view["rgb"] for camera, view in observation["observation"].items()}
        state = pack_endpose(observation) if self.action_mode == "ee" else observation["joint_action"]["vector"]
        return {"pixels": self._pixels, "agent_pos": state.astype(np.float32)}


class TabletopEnv(SuiteEnv):
    """Splits are easy, hard, and perturbations of easy, such as "camera-2". A control step lasts 0.08 s."""

    suite = "tabletop"
    metadata = {"render_modes": ["rgb_array"], "render_fps": 12.5}


class AlohaEnv(SuiteEnv):
    """gym-aloha's tasks. The only split is easy. A control step lasts 0.02 s."""

    suite = "aloha"
    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}


for _env in (TabletopEnv, AlohaEnv):
    for _task in TASKS[_env.suite]:
        gym.register(f"aim_{_env.suite}/{_task}-v0", _env, kwargs={"task": _task})
