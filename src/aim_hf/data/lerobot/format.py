"""Names of LeRobot's files and features, and the table `meta/aim.parquet`.

- A LeRobot row is a frame with the action taken in it. An episode of T actions has T + 1 frames, so its last row
  repeats the last action, which means standing still in an absolute action space. The import drops the last action of
  every episode, because no frame shows its result.
- Value maps are videos `observation.images.value_<camera>`; the expert's action is the feature `expert_action`.
- `meta/aim.parquet` has one row per episode, with the columns that LeRobot lacks: suite, task, split, seed, success,
  action space, contacts and the cameras' calibration.
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

IMPORTED = "lerobot"  # suite of episodes that were imported
STATE, ACTION, EXPERT_ACTION = "observation.state", "action", "expert_action"
VECTORS = {"state": STATE, "action": ACTION, "expert_action": EXPERT_ACTION}  # column of an episode -> feature

ARM_NUMBERS = ("x", "y", "z", "qw", "qx", "qy", "qz", "gripper")


# Video column of an episode -> feature: observation.images.head_camera for `rgb_head_camera`.
VIDEO_KEYS = {column: f"observation.images.{column.removeprefix('rgb_')}" for column in VIDEO_COLUMNS}


def number_names(suite: str, action_space: str, action_dim: int) -> list[str]:
    """Names of the numbers of an action. Of the joints of imported episodes only their places are known."""
    if action_space == "ee":
        numbers = ARM_NUMBERS
    elif suite != IMPORTED:
        numbers = (*(f"joint_{index}" for index in range(action_dim // 2 - 1)), "gripper")
    else:
        return [f"joint_{index}" for index in range(action_dim)]
    return [f"{arm}_{name}" for arm in ("left", "right") for name in numbers]


def own_features() -> Features:
    """The columns of `meta/aim.parquet`."""
    kept = ("suite", "task", "split", "seed", "success", "action_space", "intervention", "events")
    kept += tuple(f"{kind}_{camera}" for kind in ("intrinsics", "extrinsics") for camera in CAMERAS)
    return Features({name: feature for name, feature in episode_features().items() if name in kept})
