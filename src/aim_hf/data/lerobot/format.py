"""What both sides of the bridge know of the format: file names, and the table of what LeRobot has no place for.

Notable choices:
- A LeRobot row is a frame with the action that is taken in it. Our episode of T actions has T + 1 frames: the last row
  repeats the last action, which is what standing still means in absolute action spaces. Read back, the last action of
  any episode is dropped: nobody saw what it did.
- Value maps are videos as the cameras' are, `observation.images.value_<camera>`; what the expert wanted is the feature
  `expert_action`.
- `meta/aim.parquet`, a row an episode, keeps what else an episode has: suite, task, split, seed, success, action
  space, contacts and the cameras' calibration.
"""

from datasets import Features

from ...envs.base import CAMERAS
from ..episodes import VIDEO_COLUMNS, episode_features

INFO = "meta/info.json"
STATS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
EPISODES_V2, TASKS_V2 = "meta/episodes.jsonl", "meta/tasks.jsonl"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
OURS = "meta/aim.parquet"

STATE, ACTION, EXPERT_ACTION = "observation.state", "action", "expert_action"
VECTORS = {"state": STATE, "action": ACTION, "expert_action": EXPERT_ACTION}  # column of ours -> feature

ARM_NUMBERS = ("x", "y", "z", "qw", "qx", "qy", "qz", "gripper")


def video_key(column: str) -> str:
    """The feature of one of our video columns: `rgb_head_camera` is observation.images.head_camera."""
    return f"observation.images.{column.removeprefix('rgb_')}"


VIDEO_KEYS = {column: video_key(column) for column in VIDEO_COLUMNS}


def number_names(action_space: str, action_dim: int) -> list[str]:
    """Names of an action's numbers."""
    if action_space == "ee":
        return [f"{arm}_{name}" for arm in ("left", "right") for name in ARM_NUMBERS]
    return [f"joint_{index}" for index in range(action_dim)]


def own_features() -> Features:
    """The columns of `meta/aim.parquet`."""
    kept = ("suite", "task", "split", "seed", "success", "action_space", "events")
    kept += tuple(f"{kind}_{camera}" for kind in ("intrinsics", "extrinsics") for camera in CAMERAS)
    return Features({name: feature for name, feature in episode_features().items() if name in kept})
