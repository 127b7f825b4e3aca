"""A hand-made episode whose geometry can be worked out on paper."""

from pathlib import Path

import numpy as np

from aim_hf.data.episodes import Episode
from aim_hf.data.shards import ShardWriter
from aim_hf.value_maps.render import Event

NUM_FRAMES = 7
PROVENANCE = {"suite": "tabletop", "simulator": {"sapien": "3"}}
SIZES = {"head_camera": (64, 96), "left_camera": (32, 48), "right_camera": (32, 48)}


def camera_above(num_frames: int, height: int, width: int, focal: float, z: float) -> tuple[np.ndarray, np.ndarray]:
    """Intrinsics and extrinsics of a camera at height z that looks straight down, picture x along world x."""
    intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    extrinsics = np.array([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, z]])
    return np.tile(intrinsics, (num_frames, 1, 1)), np.tile(extrinsics, (num_frames, 1, 1))


def resting_at(x: float, y: float, z: float, num_frames: int = NUM_FRAMES) -> np.ndarray:
    return np.tile(np.array([x, y, z, 1, 0, 0, 0], dtype=np.float32), (num_frames, 1))


def make_episode(seed: int = 0, task: str = "click_bell", split: str = "easy") -> Episode:
    """A block that slides over a table below three cameras, with a pick and a place."""
    rng = np.random.default_rng(seed)
    cameras = {name: camera_above(NUM_FRAMES, *size, size[1], 1.5) for name, size in SIZES.items()}
    rgb = {}
    for name, (height, width) in SIZES.items():
        pictures = np.empty((NUM_FRAMES, height, width, 3), dtype=np.uint8)
        pictures[:] = np.linspace(60, 180, width, dtype=np.uint8)[None, None, :, None]
        for frame in range(NUM_FRAMES):
            pictures[frame, 10:18, 10 + frame : 20 + frame] = (220, 30, 40)
        rgb[name] = pictures
    pose = resting_at(0.05, 0.02, 0.76)
    pose[:, 0] += np.linspace(0, 0.1, NUM_FRAMES)
    corners = np.array([[x, y, 0.0] for x in (-0.02, 0.02) for y in (-0.01, 0.01)], dtype=np.float32)
    actions = rng.normal(size=(2, NUM_FRAMES - 1, 16)).astype(np.float32)
    return Episode(
        suite="tabletop",
        task=task,
        split=split,
        seed=seed,
        instruction="Slide the red block.",
        success=True,
        fps=12.5,
        action_space="ee",
        rgb=rgb,
        intrinsics={name: camera[0].astype(np.float32) for name, camera in cameras.items()},
        extrinsics={name: camera[1].astype(np.float32) for name, camera in cameras.items()},
        state=rng.normal(size=(NUM_FRAMES, 16)).astype(np.float32),
        action=actions[0],
        expert_action=actions[1],
        events=[
            Event("pick", "left", 2, "block", corners, pose),
            Event("place", "left", 5, "table", corners + np.float32([0.2, 0, 0]), resting_at(0, 0, 0.74)),
        ],
    )


def write_shard(folder: Path, episodes: list[Episode], split: str = "easy", index: int = 0) -> Path:
    """The path of a finished shard."""
    writer = ShardWriter(folder, split, "click_bell", index)
    for episode in episodes:
        writer.add(episode.to_row())
    writer.finish(PROVENANCE)
    return writer.path
