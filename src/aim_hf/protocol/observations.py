"""Converts observations to and from messages, with the keys of openpi's ALOHA policies, also used for RoboTwin.

    images     camera -> uint8 RGB, channels first: (3, H, W) of one observation, (F, 3, H, W) of F
    state      (14,), `joint_action/vector`
    endpose    (16,), measured end-effector poses in the layout of an `ee` action; openpi has no such key

`CAMERA_KEYS` alone defines the names of cameras in messages.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..envs.base import Observation
from ..envs.poses import pack_endpose, unpack_endpose

CAMERA_KEYS = {
    "head_camera": "cam_high",
    "left_camera": "cam_left_wrist",
    "right_camera": "cam_right_wrist",
}


def write_images(observations: Sequence[Observation]) -> dict[str, np.ndarray]:
    """`images` of one observation, or of several in time order, with all cameras in `CAMERA_KEYS`."""
    images = {}
    for camera, key in CAMERA_KEYS.items():
        if camera in observations[0]["observation"]:
            clip = [np.moveaxis(o["observation"][camera]["rgb"], -1, 0) for o in observations]
            images[key] = np.stack(clip) if len(clip) > 1 else clip[0]
    return images


def write_endpose(observation: Observation) -> np.ndarray:
    """`endpose` of an observation, (16,) float64."""
    return pack_endpose(observation)


def write_state(observation: Observation) -> np.ndarray:
    """`state` of an observation, float64."""
    return np.asarray(observation["joint_action"]["vector"], dtype=np.float64)


def read_images(images: Any, sizes: dict[str, Sequence[int]], most: int) -> list[Observation]:
    """Up to `most` observations with the pictures of the cameras in `sizes`; the inverse of `write_images`.

    Args:
        sizes: camera -> (height, width).

    Raises:
        ValueError: for missing or unknown cameras, wrong shapes or dtypes, and too many pictures.
    """
    expected = {CAMERA_KEYS.get(camera, camera): camera for camera in sizes}
    if not isinstance(images, dict) or set(images) != set(expected):
        got = sorted(map(str, images)) if isinstance(images, dict) else type(images).__name__
        raise ValueError(f"images are {got}; expected the cameras {sorted(expected)}. Rename or complete them.")
    counts = {key: len(clip) if isinstance(clip, np.ndarray) and clip.ndim == 4 else 1 for key, clip in images.items()}
    count = min(max(counts[next(iter(expected))], 1), most)
    observations: list[Observation] = [{"observation": {}} for _ in range(count)]
    for key, camera in expected.items():
        clip, shape = images[key], (3, *sizes[camera])
        right = isinstance(clip, np.ndarray) and clip.dtype == np.uint8 and clip.shape[-3:] == shape
        if not right or clip.ndim > 4 or counts[key] != count:
            got = f"{clip.dtype} {clip.shape}" if isinstance(clip, np.ndarray) else type(clip).__name__
            frames = (
                f" or (n, {', '.join(map(str, shape))}), n up to {most} and the same for all cameras"
                if most > 1
                else ""
            )
            raise ValueError(
                f"images[{key!r}] is {got}; expected uint8 {shape}{frames} (RGB channels first, height, width). "
                "Resize the picture on your side, or transpose it."
            )
        for observation, picture in zip(observations, clip.reshape(count, *shape), strict=True):
            observation["observation"][camera] = {"rgb": np.ascontiguousarray(np.moveaxis(picture, 0, -1))}
    return observations


def read_endpose(endpose: Any) -> dict[str, Any]:
    """`endpose` of an observation. Raises ValueError for another shape or values that aren't finite numbers."""
    pose = read_numbers("endpose", endpose)
    if pose.shape != (16,):
        raise ValueError(
            f"endpose has shape {pose.shape}; expected (16,): for each arm, left first, xyz, quaternion wxyz, gripper."
        )
    return unpack_endpose(pose)


def read_numbers(name: str, value: Any) -> np.ndarray:
    """`value` as float64. Raises ValueError, which names `name`, unless all are finite numbers."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {type(value).__name__}; expected an array of numbers.") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has NaN or infinite numbers; expected finite ones. Check what made them.")
    return array
