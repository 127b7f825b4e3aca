"""The two tasks of gym-aloha: their objects, instructions and scripted experts.

Poses of objects are gym-aloha's for the same seed. An expert knows where they come to rest: gym-aloha drops them from
three centimeters above the table, which lies at z = 0.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
from gym_aloha.tasks import sim
from gym_aloha.utils import sample_box_pose, sample_insertion_pose

from .. import in_process
from ..base import ExpertPath
from ..motion import CLOSED, OPEN, ArmMotion, above
from ..poses import axis_rotation, quaternion_product

_SPEED = 0.007  # meters per control step of 0.02 s
_CAREFUL_SPEED = 0.003  # near the table, and towards the other hand
_GRIP_STEPS = 15  # the fingers need that long to hold firmly
_DESCENT = 0.1  # m, of the last way down to an object
_TILT = np.deg2rad(60)  # of a hand that grasps, from level towards the table


# A level hand points along x to the middle of the table.
LEVEL = {"left": np.array([1.0, 0.0, 0.0, 0.0]), "right": axis_rotation(2, np.pi)}
TILTED = {arm: quaternion_product(level, axis_rotation(1, _TILT)) for arm, level in LEVEL.items()}


class Task(in_process.Task):
    """The task of one episode, of which `objects` draws the scene.

    `file` is gym-aloha's model, `rules` its start pose and reward.
    """

    file: ClassVar[str]
    rules: ClassVar[type[sim.BimanualViperXTask]]

    @abstractmethod
    def objects(self, seed: int) -> np.ndarray:
        """The poses (7,) of the objects in the scene of `seed`, in one row."""

    @abstractmethod
    def expert(self, home: dict[str, np.ndarray], gripper: float) -> ExpertPath:
        """The nominal path from the poses `home` (7,) of both arms and the opening `gripper`."""


class TransferCube(Task):
    file = "bimanual_viperx_transfer_cube.xml"
    rules = sim.TransferCubeTask
    seen = (
        "Transfer the red cube from the right arm to the left arm.",
        "Pick up the red cube with the right arm and hand it to the left arm.",
        "Pass the red cube from the right gripper to the left one.",
        "Take the red cube with the right hand and give it to the left hand.",
        "Hand over the red cube to the left arm.",
    )
    unseen = (
        "Let the right arm lift the red cube and the left arm take it over.",
        "The red cube should go from the right gripper into the left gripper.",
        "Move the red cube into the left hand by a handover.",
    )

    def objects(self, seed: int) -> np.ndarray:
        pose = sample_box_pose(seed)
        self._cube = np.array([pose[0], pose[1], 0.02])
        return pose

    def expert(self, home: dict[str, np.ndarray], gripper: float) -> ExpertPath:
        # The right hand holds the cube by its sides, the left one, turned by a quarter, from above and below.
        meeting, beside = np.array([0.0, 0.5, 0.25]), np.array([-0.02, 0.0, 0.0])
        quarter = quaternion_product(LEVEL["left"], axis_rotation(0, np.pi / 2))
        motion = ArmMotion(home, gripper)
        at = above(self._cube, 0.005)
        reach(motion, "right", at)
        grasp(motion, "right", at)
        motion.move("right", meeting, _SPEED)
        motion.move("left", meeting + 6 * beside, _SPEED, opening=OPEN, rotation=quarter)
        motion.wait()
        motion.hold("left", 10)
        motion.move_exactly("left", meeting + beside, _CAREFUL_SPEED)
        motion.grip("left", CLOSED, _GRIP_STEPS)
        motion.wait()
        motion.grip("right", OPEN, _GRIP_STEPS)
        motion.move("right", meeting + [0.12, 0, 0.05], _SPEED)
        return motion.path(holding_steps=5)


class Insertion(Task):
    file = "bimanual_viperx_insertion.xml"
    rules = sim.InsertionTask
    targets = {"socket": "insert"}
    seen = (
        "Insert the red peg into the blue socket.",
        "Pick up the red peg and the blue socket and put the peg into the socket.",
        "Push the red peg into the blue socket in the air.",
        "Take the socket with the left arm, the peg with the right arm, and insert the peg.",
        "Put the red peg in the blue socket.",
    )
    unseen = (
        "Bring the red peg and the blue socket together until the peg is inside.",
        "The red peg belongs inside the blue socket.",
        "Plug the red peg into the blue tube.",
    )

    def objects(self, seed: int) -> np.ndarray:
        peg, socket = sample_insertion_pose(seed)
        self._peg, self._socket = np.array([*peg[:2], 0.01]), np.array([*socket[:2], 0.022])
        return np.concatenate([peg, socket])

    def expert(self, home: dict[str, np.ndarray], gripper: float) -> ExpertPath:
        # Both are held by their middles, and are 6 cm long on either side of them.
        grasps = {"left": above(self._socket, 0.004), "right": above(self._peg, 0.012)}
        middles = {"left": self._socket, "right": self._peg}
        motion = ArmMotion(home, gripper)
        for arm in ("left", "right"):
            reach(motion, arm, grasps[arm])
        # Both grasps happen at the same time, so that one map shows them. Fingers take longer to meet the thin peg.
        motion.wait()
        motion.hold("left", 5)
        for arm in ("left", "right"):
            grasp(motion, arm, grasps[arm])
        motion.wait()
        for move, distance, speed in ((motion.move, 0.08, _SPEED), (motion.move_exactly, 0.035, _CAREFUL_SPEED)):
            for arm, side in (("left", -1), ("right", 1)):
                middle = np.array([side * distance, 0.5, 0.15])
                move(arm, middle + grasps[arm] - middles[arm], speed)
                motion.hold(arm, 10)
            motion.wait()
        return motion.path(holding_steps=5)


def reach(motion: ArmMotion, arm: str, position: np.ndarray) -> None:
    """Brings an open, tilted hand down to the object at `position`."""
    motion.move(arm, above(position, _DESCENT), _SPEED, opening=OPEN, rotation=TILTED[arm])
    motion.move(arm, position, _CAREFUL_SPEED)
    motion.hold(arm, 5)  # arms trail their targets


def grasp(motion: ArmMotion, arm: str, position: np.ndarray) -> None:
    """Closes the hand at `position` and lifts the object."""
    motion.grip(arm, CLOSED, _GRIP_STEPS)
    motion.move(arm, above(position, _DESCENT), _CAREFUL_SPEED)


TASKS: dict[str, type[Task]] = {"transfer_cube": TransferCube, "insertion": Insertion}
