"""Quaternions (wxyz) and the 16 numbers of an `ee` action, for every suite."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import ARMS, Observation


def axis_rotation(axis: int, angle: float) -> np.ndarray:
    """The quaternion (4,) wxyz of a rotation by `angle` (rad) about axis 0, 1 or 2."""
    quaternion = np.array([np.cos(angle / 2), 0.0, 0.0, 0.0])
    quaternion[1 + axis] = np.sin(angle / 2)
    return quaternion


def rotation_matrix(quaternion: np.ndarray) -> np.ndarray:
    """Unit quaternions wxyz (..., 4) as rotation matrices (..., 3, 3), float64."""
    w, x, y, z = np.moveaxis(np.asarray(quaternion, dtype=np.float64), -1, 0)
    matrix = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(matrix), (0, 1), (-2, -1))


def quaternion_product(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The Hamilton product of quaternions wxyz (..., 4): the rotation `q`, then `p`."""
    p, q = np.broadcast_arrays(p, q)
    scalar = p[..., :1] * q[..., :1] - np.sum(p[..., 1:] * q[..., 1:], axis=-1, keepdims=True)
    vector = p[..., :1] * q[..., 1:] + q[..., :1] * p[..., 1:] + np.cross(p[..., 1:], q[..., 1:])
    return np.concatenate([scalar, vector], axis=-1)


def blend(start: np.ndarray, end: np.ndarray, fraction: float) -> np.ndarray:
    """A pose (7,) between two: linear in position, and in orientation along the shorter arc. Its quaternion isn't
    normalised."""
    position = start[:3] + fraction * (end[:3] - start[:3])
    towards = end[3:] if np.dot(start[3:], end[3:]) >= 0 else -end[3:]
    return np.concatenate([position, (1 - fraction) * start[3:] + fraction * towards])


def pack_endpose(observation: Observation) -> np.ndarray:
    """The measured end-effector poses and grippers in the layout of an `ee` action: (16,) float64."""
    pose = observation["endpose"]
    return np.concatenate([[*pose[f"{arm}_endpose"], pose[f"{arm}_gripper"]] for arm in ARMS]).astype(np.float64)


def unpack_endpose(pose: np.ndarray) -> dict[str, Any]:
    """`endpose` of an observation, from 16 numbers in the layout of an `ee` action; the inverse of `pack_endpose`."""
    endpose = {}
    for arm, numbers in zip(ARMS, np.split(pose, 2), strict=True):
        endpose[f"{arm}_endpose"] = numbers[:7].copy()
        endpose[f"{arm}_gripper"] = float(numbers[7])
    return endpose


def unit_quaternions(action: np.ndarray) -> np.ndarray:
    """An `ee` action (16,) with quaternions of unit length; zeros stay zeros, which `step` refuses."""
    action = np.array(action, dtype=np.float64)
    for pose in np.split(action, 2):  # views of `action`
        pose[3:7] /= np.linalg.norm(pose[3:7]) or 1.0
    return action


def along_tools(action: np.ndarray, distance: float) -> np.ndarray:
    """An `ee` action (16,) with each end effector moved by `distance` (m) along its own x axis."""
    moved = unit_quaternions(action)
    for pose in np.split(moved, 2):
        pose[:3] += distance * rotation_matrix(pose[3:7])[:, 0]
    return moved
