"""A tabletop scene as a robot of LeRobot, and its expert as a teleoperator, so that `lerobot-record`,
`lerobot-rollout` and the asynchronous client run without hardware."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import Any

import numpy as np
from lerobot.lerobot_types import RobotAction, RobotObservation
from lerobot.robots import Robot
from lerobot.teleoperators import Teleoperator
from lerobot.utils.decorators import check_if_already_connected, check_if_not_connected

from aim_hf.data.lerobot.format import number_names
from aim_hf.envs import interface
from aim_hf.envs.gym import TabletopEnv, scene_seed
from aim_hf.envs.tabletop import TabletopEnvironment

from .config_simulated import SimulatedExpertConfig, SimulatedRobotConfig

logger = logging.getLogger(__name__)


def number_features(action_mode: str) -> dict[str, type]:
    """The numbers of an action, named as `aim-hf export-lerobot` names them, with the ending that LeRobot asks for."""
    width = TabletopEnvironment.action_dims[action_mode]
    return {f"{name}.pos": float for name in number_names("tabletop", action_mode, width)}


class SimulatedRobot(Robot):
    """The two arms at the table. An action lasts 0.08 s of the scene's time, however long LeRobot takes; between two
    actions the scene stands still. When the episode has ended, actions do nothing until the robot is connected again:
    LeRobot has no call that would set up a scene between two episodes."""

    config_class = SimulatedRobotConfig
    name = "aim_tabletop"

    def __init__(self, config: SimulatedRobotConfig) -> None:
        super().__init__(config)
        self.config = config
        self.cameras: dict[str, Any] = {}  # LeRobot counts them for its writers of pictures
        self._env: TabletopEnv | None = None

    @cached_property
    def observation_features(self) -> dict[str, type | tuple]:
        sizes = interface("tabletop", self.config.split).picture_sizes
        return number_features(self.config.action_mode) | {name: (*size, 3) for name, size in sizes.items()}

    @cached_property
    def action_features(self) -> dict[str, type]:
        return number_features(self.config.action_mode)

    @property
    def is_connected(self) -> bool:
        return self._env is not None

    @check_if_already_connected
    def connect(self, calibrate: bool = True) -> None:
        """Sets up the scene."""
        self._env = TabletopEnv(self.config.task, self.config.split, self.config.action_mode)
        self._observation, _ = self._env.reset(seed=self.config.seed)
        self._ended = False

    @check_if_not_connected
    def get_observation(self) -> RobotObservation:
        numbers = self._observation["agent_pos"].tolist()
        return dict(zip(self.action_features, numbers, strict=True)) | self._observation["pixels"]

    @check_if_not_connected
    def send_action(self, action: RobotAction) -> RobotAction:
        if not self._ended:
            numbers = np.array([action[name] for name in self.action_features])
            self._observation, _, success, truncated, _ = self._env.step(numbers)
            self._ended = success or truncated
            if self._ended:
                logger.info("The episode has ended %s success.", "with" if success else "without")
        return action

    @check_if_not_connected
    def disconnect(self) -> None:
        self._env.close()
        self._env = None

    @property
    def is_calibrated(self) -> bool:
        return True

    def calibrate(self) -> None:
        """Nothing to calibrate."""

    def configure(self) -> None:
        """Nothing to configure."""


class SimulatedExpert(Teleoperator):
    """Plays the expert's path for the scene of a seed, in action mode `ee`. At its end it rests."""

    config_class = SimulatedExpertConfig
    name = "aim_tabletop_expert"

    def __init__(self, config: SimulatedExpertConfig) -> None:
        super().__init__(config)
        self.config = config
        self._path: list[np.ndarray] | None = None

    @property
    def action_features(self) -> dict[str, type]:
        return number_features("ee")

    @property
    def feedback_features(self) -> dict[str, type]:
        return {}

    @property
    def is_connected(self) -> bool:
        return self._path is not None

    @check_if_already_connected
    def connect(self, calibrate: bool = True) -> None:
        """Plans the path, in a scene of its own without pictures."""
        environment = TabletopEnvironment(self.config.task, self.config.split, render=False)
        environment.reset(scene_seed(self.config.seed))
        self._path = list(environment.expert().actions)
        environment.close()

    @check_if_not_connected
    def get_action(self) -> RobotAction:
        action = self._path.pop(0) if len(self._path) > 1 else self._path[0]
        return dict(zip(self.action_features, action.tolist(), strict=True))

    def send_feedback(self, feedback: dict[str, Any]) -> None:
        """The expert feels nothing."""

    @check_if_not_connected
    def disconnect(self) -> None:
        self._path = None

    @property
    def is_calibrated(self) -> bool:
        return True

    def calibrate(self) -> None:
        """Nothing to calibrate."""

    def configure(self) -> None:
        """Nothing to configure."""
