"""Forward and inverse kinematics of one arm, in the world frame."""

from __future__ import annotations

import numpy as np
import sapien

from ..poses import blend
from . import robot

# Initial joint angles for the search if it fails from the current ones: forward, and to either side.
_STARTS = np.array(
    [[0.0, 0.3, 0.4, 0.0, -0.7, 0.0], [-0.8, 0.6, 0.2, 0.0, -0.8, -0.8], [0.8, 0.6, 0.2, 0.0, -0.8, 0.8]]
)
_TOLERANCE = 1e-4  # norm of the pose error (m, rad) below which a solution is accepted
_REACH_FRACTIONS = (0.75, 0.5, 0.25)


def to_pose(values: np.ndarray) -> sapien.Pose:
    """Converts (7,) xyz + wxyz to a sapien.Pose, with a normalised quaternion."""
    values = np.asarray(values, dtype=np.float64)
    return sapien.Pose(values[:3], values[3:] / np.linalg.norm(values[3:]))


def from_pose(pose: sapien.Pose) -> np.ndarray:
    """Converts a sapien.Pose to (7,) xyz + wxyz, float64."""
    return np.concatenate([pose.p, pose.q]).astype(np.float64)


class ArmKinematics:
    """Kinematics of an arm's six joints between its fixed base and its tool center point."""

    def __init__(self, articulation: sapien.physx.PhysxArticulation) -> None:
        self._model = articulation.create_pinocchio_model()
        self._base = articulation.root_pose
        self._tcp_link = [link.name for link in articulation.links].index("hand")
        self._mask = np.array([1] * 6 + [0] * 2)

    def forward(self, joints: np.ndarray) -> np.ndarray:
        """The pose (7,) of the tool center point at six joint angles."""
        self._model.compute_forward_kinematics(np.concatenate([joints, [0.0, 0.0]]))
        return from_pose(self._base * self._model.get_link_pose(self._tcp_link))

    def inverse(self, target: np.ndarray, current: np.ndarray) -> tuple[np.ndarray, bool]:
        """Joint angles (6,) that bring the tool center point to `target` (7,), and whether it can be reached.

        For a target out of reach, several poses between the current one and the target are tried, the farthest first.
        If none can be reached, the result is the current joint angles.
        """
        solution = self._solve(to_pose(target), current)
        if solution is not None:
            return solution, True
        start = self.forward(current)
        for fraction in _REACH_FRACTIONS:
            solution = self._solve(to_pose(blend(start, target, fraction)), current)
            if solution is not None:
                return solution, False
        return current.copy(), False

    def _solve(self, target: sapien.Pose, current: np.ndarray) -> np.ndarray | None:
        in_base = self._base.inv() * target
        for start in (current, *_STARTS):
            joints, success, _ = self._model.compute_inverse_kinematics(
                self._tcp_link,
                in_base,
                initial_qpos=np.concatenate([start, [0.0, 0.0]]),
                active_qmask=self._mask,
                eps=_TOLERANCE,
                max_iterations=100,
                dt=0.5,
            )
            joints = (joints[:6] + np.pi) % (2 * np.pi) - np.pi
            if success and np.all(joints >= robot.JOINT_LIMITS[:, 0]) and np.all(joints <= robot.JOINT_LIMITS[:, 1]):
                return joints
        return None
