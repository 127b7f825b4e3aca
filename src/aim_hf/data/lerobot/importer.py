"""LeRobot's episodes as ours.

Videos are copied, not encoded again, unless they are stored as pictures. An episode of N frames gives N frames and
N - 1 actions: nobody saw what the last one did. What was executed counts as what was wanted.
"""

import re
from dataclasses import dataclass

from ...envs.base import CAMERAS
from ..episodes import Episode, check_videos
from ..value_maps import render_value_maps
from ..video import decode_video, encode_video
from . import format
from .robot import Robot
from .source import LeRobotSource

SUITE = "lerobot"


@dataclass(frozen=True)
class Shard:
    """A file of episodes: `episodes` are (seed, index in the source), in the order of their seeds."""

    split: str
    task: str
    index: int
    episodes: list[tuple[int, int]]


def plan(source: LeRobotSource, own: bool, size: int, left_out: set[int]) -> list[Shard]:
    """The files that hold the source's episodes, `size` in each, except those whose indices are `left_out`.

    An export of ours gets its splits, tasks and seeds back. Otherwise the dataset's name is the task, and an episode's
    index its seed.
    """
    groups: dict[tuple[str, str], list[tuple[int, int]]] = {}
    keys = source.own_keys() if own else None
    for episode in range(source.num_episodes):
        key = keys[episode] if own else {"split": source.split(episode), "task": source.name, "seed": episode}
        if episode not in left_out:
            group = groups.setdefault((file_name(key["split"]), file_name(key["task"])), [])
            group.append((key["seed"], episode))
    return [
        Shard(*names, index, sorted(episodes)[first : first + size])
        for names, episodes in sorted(groups.items())
        for index, first in enumerate(range(0, len(episodes), size))
    ]


def file_name(text: str) -> str:
    """Letters, digits and _, as names of splits and parts of files' names must be."""
    return re.sub(r"\W+", "_", text).strip("_") or "unnamed"


def imported_row(source: LeRobotSource, robot: Robot, episode: int, split: str) -> dict:
    """The row of `episode_features` that stores an episode of any LeRobot dataset.

    Raises:
        FileNotFoundError, ValueError: naming the episode, what is wrong with it, and the mend.
    """
    frames = source.frames(episode, robot.columns())
    try:
        state, action = robot.states_and_actions(frames)
        sizes = {camera: source.picture_size(key) for camera, key in robot.cameras.items()}
        intrinsics, extrinsics = robot.cameras_of(frames, sizes)
        events = robot.events(frames)
    except ValueError as error:
        raise ValueError(f"{source.name}, episode {episode}: {error}") from error
    described = Episode(
        suite=SUITE,
        task=file_name(source.name),
        split=split,
        seed=episode,
        instruction=robot.instruction or source.instruction(episode),
        success=source.succeeded(episode),
        fps=float(source.rate),
        action_space=robot.action_space,
        rgb={},  # they stay compressed
        intrinsics=intrinsics,
        extrinsics=extrinsics,
        state=state,
        action=action[:-1],
        expert_action=action[:-1],
        events=events,
    )
    row = described.to_row()
    clips = {f"rgb_{camera}": source.clip(episode, key) for camera, key in robot.cameras.items()}
    return _with_videos(row, clips, f"{source.name}, episode {episode}")


def restored_row(source: LeRobotSource, episode: int) -> dict:
    """The row that `export_lerobot` was given.

    Raises:
        FileNotFoundError, ValueError: naming the episode, what is wrong with it, and the mend.
    """
    frames = source.frames(episode, list(format.VECTORS.values()))
    row = source.own_row(episode) | {
        "instruction": source.instruction(episode),
        "fps": float(source.rate),
        "num_frames": source.length(episode),
        **{column: frames[feature] for column, feature in format.VECTORS.items()},
    }
    for column in ("action", "expert_action"):
        row[column] = row[column][:-1]
    clips = {column: source.clip(episode, key) for column, key in format.VIDEO_KEYS.items() if key in source.features}
    return _with_videos(row, clips, f"{source.name}, episode {episode}")


def _with_videos(row: dict, clips: dict[str, bytes], where: str) -> dict:
    """The row with its videos; value maps that events and calibration tell, and `clips` lack, are rendered."""
    for column in format.VIDEO_KEYS:
        row[column] = {"bytes": clips[column], "path": None} if column in clips else None
    known = Episode.from_row(row | dict.fromkeys(format.VIDEO_KEYS)) if row["events"] is not None else None
    for camera in CAMERAS:
        rgb, value = f"rgb_{camera}", f"value_{camera}"
        if known is not None and row[rgb] is not None and row[value] is None and camera in known.intrinsics:
            size = decode_video(row[rgb]["bytes"], [0]).shape[1:3]
            maps = render_value_maps(known.events, known.intrinsics[camera], known.extrinsics[camera], *size)
            row[value] = {"bytes": encode_video(maps, row["fps"], gray=True), "path": None}
    check_videos(row, where)
    return row
