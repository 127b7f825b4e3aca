"""Converts the episodes of a LeRobot dataset to AIM's.

Videos are copied without encoding them again, unless they are stored as pictures or at another rate. An episode of N
frames gives N frames and N - 1 actions, because no frame shows the result of the last action. `expert_action` is the
executed action.

Every episode is checked before anything is written, so that one error lists all problems.
"""

import os
import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from ...envs.base import CAMERAS
from ...utils.checks import check_whole, naming
from ...utils.files import claim, read_json
from ...value_maps.render import render_value_maps
from ..card import write_card
from ..episodes import Episode, check_row, check_videos, decode_column
from ..preview import write_preview
from ..shards import OUTPUTS, ShardWriter, remove_leftovers
from ..video import encode_video
from . import format
from .robot import Robot, check_absolute
from .source import LeRobotSource, format_numbers

LISTED = 20  # broken episodes that an error lists with their reasons
ORIGIN = """Made of {episodes} of the {total} episodes of the LeRobot dataset `{name}` ({version}) by aim-hf. {videos}
`manifest/` holds the configuration, and the faults of episodes that were left out as broken ({skipped})."""


@dataclass(frozen=True)
class Shard:
    """A file of episodes. `episodes`: (seed, episode index in the source), sorted by seed."""

    split: str
    task: str
    index: int
    episodes: list[tuple[int, int]]


def import_episodes(
    source: LeRobotSource,
    config: Path | None,
    output: Path,
    episodes: list[int] | None = None,
    fps: float | None = None,
    shard_size: int = 50,
    skip_broken: bool = False,
    license: str = "unknown",
) -> tuple[int, dict[int, str]]:
    """Imports episodes into the folder `output`, with its card; goes on where an earlier call was stopped.
    Several processes share the work.

    Args:
        config: file of a [`Robot`]; None for a dataset of `export_lerobot`, whose episodes are restored exactly.
        episodes: as `LeRobotSource.choose` returns them; default: all.
        fps: control rate of the result, see `every_frame`; default: the source's.
        shard_size: episodes in a Parquet file.
        skip_broken: leave out broken episodes, with the reasons in the manifests, instead of refusing all episodes.
        license: license of the source, by its name on the Hub.

    Returns:
        The number of imported episodes, and the reason of each broken episode.

    Raises:
        ValueError, OSError: for a bad `shard_size` or `license`, a dataset that doesn't fit the config or lies in
            `output`, and broken episodes; lists all of them.
        FileExistsError: if `output` was made from other settings; names them.
    """
    check_whole("shard_size", shard_size)
    if not re.fullmatch(r"[\w.+-]+", license):  # other text would end the card's metadata, which name the splits
        raise ValueError(f"license is {license!r}; expected its name on the Hub, such as cc-by-4.0")
    state = PartialState(cpu=True, timeout=timedelta(days=7))
    robot = Robot.load(config) if config else None
    if robot is None and not source.own:
        raise ValueError(
            f"{source.name} was not written by `aim-hf export-lerobot`: give a config that maps its columns and "
            f"cameras (docs/own_robot.md). It has {', '.join(source.features)}"
        )
    if output.resolve() == source.folder.resolve():
        raise ValueError(
            f"{output} is the dataset's own folder, whose README.md would be replaced; choose another one"
        )
    every = every_frame(source, fps)
    if robot is not None:
        robot.check_source(source)
    chosen = source.episodes if episodes is None else episodes
    cameras = list(_camera_keys(source, robot).values())
    with state.main_process_first():  # one process downloads it
        source.fetch(chosen, cameras)
    shared: list[Any] = [None]
    if state.is_main_process:
        broken = check_episodes(source, robot, chosen, every)
        if broken and (len(broken) == len(chosen) or not skip_broken):
            raise ValueError(_listed(source, broken, len(chosen)))
        origin = made_from(source, config, cameras, chosen, every, shard_size)
        good = [episode for episode in chosen if episode not in broken]
        planned = plan(source, robot is None, shard_size, good)
        claim(output, origin, *OUTPUTS)
        remove_leftovers(output)
        shared = [(broken, origin, planned)]
    broken, origin, planned = broadcast_object_list(shared)[0]

    provenance = {name: origin[name] for name in ("source", "revision", "codebase_version", "robot")}
    provenance |= {"simulator": {}, "skipped": broken}
    shards = planned[state.process_index :: state.num_processes]
    total, process = sum(len(shard.episodes) for shard in shards), state.process_index
    with tqdm(total=total, unit="episode", desc=f"process {process}", position=process) as progress:
        for shard in shards:
            _write_shard(source, robot, output, shard, every, provenance, progress)
    state.wait_for_everyone()
    if state.is_main_process:
        write_preview(output)
        write_card(output, _origin(source, len(chosen) - len(broken), len(broken), every), license)
    return len(chosen) - len(broken), broken


def _write_shard(
    source: LeRobotSource,
    robot: Robot | None,
    output: Path,
    shard: Shard,
    every: int,
    provenance: dict[str, Any],
    progress: tqdm,
) -> None:
    """Writes the missing episodes of a shard, then the shard and its manifest with `provenance`."""
    writer = ShardWriter(output, shard.split, shard.task, shard.index)
    if writer.is_done(len(shard.episodes)):
        writer.remove_pieces()
        progress.update(len(shard.episodes))
        return
    for seed, episode in shard.episodes:
        if seed not in writer.tried:
            writer.add(imported_row(source, robot, episode, shard.split, every))
        progress.update()
    writer.finish({"task": shard.task, "split": shard.split} | provenance)


def _origin(source: LeRobotSource, imported: int, skipped: int, every: int) -> str:
    """The paragraph of the dataset card on how the episodes were made."""
    videos = "Videos are those of the source, frame by frame."
    if every > 1:
        videos = f"Of its {source.fps:g} frames a second every {every}th is kept, with the last action before it."
    return ORIGIN.format(
        episodes=imported,
        total=source.num_episodes,
        name=source.name,
        version=source.version,
        videos=videos,
        skipped=skipped,
    )


def every_frame(source: LeRobotSource, fps: float | None) -> int:
    """The stride n at `fps` frames a second: every n-th frame of the source is kept.

    Raises:
        ValueError: unless the rate of the source is a multiple of `fps`, because frames aren't interpolated.
    """
    if fps is None:
        return 1
    every = max(round(source.fps / fps), 1) if fps > 0 else 1
    nearest = float(source.rate / every)
    if not abs(nearest - fps) <= 1e-3 * nearest:
        rates = ", ".join(f"{source.fps / number:g}" for number in range(1, 7))
        raise ValueError(
            f"{source.name} has {source.fps:g} frames a second, of which {fps:g} can't be made; expected one of "
            f"{rates}, or {source.fps:g} divided by another whole number"
        )
    return every


def check_episodes(source: LeRobotSource, robot: Robot | None, episodes: list[int], every: int = 1) -> dict[int, str]:
    """Episode -> reason, of the episodes that can't be imported. Tables are read, videos are not decoded.

    Args:
        robot: None for a dataset of `export_lerobot`.

    Raises:
        ValueError: if the actions are differences from step to step.
    """
    keys, broken, spans = _camera_keys(source, robot).values(), {}, []
    for episode in tqdm(episodes, unit="episode", desc="check"):
        try:
            row = _numbers(source, robot, episode, "", every)
            spans.append([np.ptp(vectors, axis=0) for vectors in (row["action"], row["state"][1:])])
            for key in keys:
                source.check_pictures(episode, key)
        except (OSError, ValueError) as error:
            # Manifests are published, local paths aren't.
            broken[episode] = str(error).replace(f"{source.folder}{os.sep}", "")
    if robot is not None and spans:
        check_absolute(source.name, *np.median(spans, axis=0))
    return broken


def _listed(source: LeRobotSource, broken: dict[int, str], total: int) -> str:
    lines = [f"  episode {episode}: {reason}" for episode, reason in list(broken.items())[:LISTED]]
    if len(broken) > LISTED:
        lines.append(f"  and {len(broken) - LISTED} more: {format_numbers(list(broken)[LISTED:])}")
    return "\n".join(
        [
            f"{source.name}: {len(broken)} of {total} episodes are broken; mend them, or leave them out with "
            "--skip_broken or --skip:",
            *lines,
        ]
    )


def made_from(
    source: LeRobotSource, config: Path | None, cameras: list[str], episodes: list[int], every: int, shard_size: int
) -> dict[str, Any]:
    """The settings that determine the output of an import, for `claim`."""
    return {
        "source": source.repo_id or source.name,
        "revision": source.revision,
        "codebase_version": source.version,
        "robot": config and read_json(config, "mend it"),
        "episodes": format_numbers(episodes),
        "fps": float(source.rate / every),
        "shard_size": shard_size,
        "content": source.fingerprint(episodes, cameras),
    }


def plan(source: LeRobotSource, own: bool, size: int, episodes: list[int]) -> list[Shard]:
    """The shards of these episodes, `size` in each.

    With `own`, suites, splits, tasks and seeds are those that `export_lerobot` stored; a shard is of one suite and
    task, even where two have the same file name. Otherwise the task is the name of the dataset, and the seed is the
    episode index.

    Raises:
        ValueError: if two episodes are the same by their suite, task, split and seed.
    """
    stored = source.own_keys() if own else {}
    kinds: dict[tuple[str, ...], dict[int, int]] = {}  # split, task in file names, suite, task -> seed -> episode
    for episode in episodes:
        if own:
            suite, task, split, seed = stored[episode]
        else:
            suite, task, split, seed = format.IMPORTED, source.name, file_name(source.split(episode)), episode
        kind = kinds.setdefault((split, file_name(task), suite, task), {})
        if seed in kind:
            raise ValueError(
                f"{source.name}: episodes {kind[seed]} and {episode} are both {suite} {task} {split} seed {seed}; "
                "leave one of them out with --skip"
            )
        kind[seed] = episode
    groups: dict[tuple[str, ...], list[list[tuple[int, int]]]] = {}
    for key, kind in sorted(kinds.items()):
        pieces = [sorted(kind.items())[first : first + size] for first in range(0, len(kind), size)]
        groups.setdefault(key[:2], []).extend(pieces)
    return [Shard(*names, *numbered) for names, group in groups.items() for numbered in enumerate(group)]


def file_name(text: str) -> str:
    """`text` with only letters, digits and _, as required of split names and parts of file names."""
    return re.sub(r"\W+", "_", text).strip("_") or "unnamed"


# Rows


def imported_row(
    source: LeRobotSource, robot: Robot | None, episode: int, split: str, every: int = 1
) -> dict[str, Any]:
    """The row of `episode_features` for an episode of any LeRobot dataset.

    Args:
        robot: None for a dataset of `export_lerobot`, whose rows are restored, with the split that they had.
        every: stride between frames that are kept, see `every_frame`.

    Raises:
        ValueError: for a broken episode; names it, the problem and the remedy.
    """
    with naming(f"{source.name}, episode {episode}"):
        return _with_videos(source, robot, episode, _numbers(source, robot, episode, split, every), every)


def _numbers(source: LeRobotSource, robot: Robot | None, episode: int, split: str, every: int) -> dict[str, Any]:
    """A row without its videos."""
    row = _own_numbers(source, episode) if robot is None else _described_numbers(source, robot, episode, split)
    return _thinned(row | {"fps": float(source.rate / every)}, every)


def _described_numbers(source: LeRobotSource, robot: Robot, episode: int, split: str) -> dict[str, Any]:
    """The numbers of all frames, as `robot` describes the columns."""
    frames = source.frames(episode, robot.columns())
    state, action = robot.states_and_actions(frames)
    sizes = {camera: source.picture_size(key) for camera, key in robot.cameras.items()}
    intrinsics, extrinsics = robot.cameras_of(frames, sizes)
    described = Episode(
        suite=format.IMPORTED,
        task=file_name(source.name),
        split=split,
        seed=episode,
        instruction=robot.instruction or source.instruction(episode),
        success=source.succeeded(episode),
        fps=float(source.rate),
        action_space=robot.action_space,
        rgb={},  # videos stay compressed
        intrinsics=intrinsics,
        extrinsics=extrinsics,
        state=state,
        action=action[:-1],
        expert_action=action[:-1],
        events=robot.events(frames),
    )
    return described.to_row()


def _own_numbers(source: LeRobotSource, episode: int) -> dict[str, Any]:
    """The numbers of all frames that `export_lerobot` exported."""
    frames = source.frames(episode, list(format.VECTORS.values()))
    row = source.own_row(episode) | {
        "instruction": source.instruction(episode),
        "fps": float(source.rate),
        "num_frames": source.length(episode),
        **{column: frames[feature] for column, feature in format.VECTORS.items()},
    }
    for column in ("action", "expert_action"):
        row[column] = row[column][:-1]
    check_row(row, f"{row['task']} seed {row['seed']}")
    if not re.fullmatch(r"[\w-]+", row["split"]):
        raise ValueError(f"its split in {format.OURS} is {row['split']!r}; expected letters, digits, _ and - only")
    return row


def _thinned(row: dict[str, Any], every: int) -> dict[str, Any]:
    """A row with every `every`-th frame. Actions are absolute, so the last one between two frames is kept."""
    last = (row["num_frames"] - 1) // every
    if last < 1:
        raise ValueError(f"it has {row['num_frames']} frames, of which every {every}th is kept; expected at least 2")
    thin = dict(row, num_frames=last + 1)
    if row.get("intervention") is not None:
        thin["intervention"] = row["intervention"] // every  # the first kept action that belongs to the recovery
    for name, values in row.items():
        if name in ("action", "expert_action"):
            thin[name] = values[every - 1 :: every]
        elif name.startswith(("state", "intrinsics_", "extrinsics_")) and values is not None:
            thin[name] = values[::every]
    if row["events"] is not None:
        thin["events"] = [_thinned_event(event, every, last) for event in row["events"]]
    return thin


def _thinned_event(event: dict[str, Any], every: int, last: int) -> dict[str, Any]:
    thin = event | {"frame": min(-(-event["frame"] // every), last)}
    for name, values in event.items():
        if name.startswith(("body_pose", "visible_")) and values is not None:
            thin[name] = values[::every]
    return thin


def _camera_keys(source: LeRobotSource, robot: Robot | None) -> dict[str, str]:
    """Video column of an episode -> camera of the source."""
    if robot is None:
        return {column: key for column, key in format.VIDEO_KEYS.items() if key in source.cameras}
    return {f"rgb_{camera}": key for camera, key in robot.cameras.items()}


def _with_videos(
    source: LeRobotSource, robot: Robot | None, episode: int, row: dict[str, Any], every: int
) -> dict[str, Any]:
    """Adds the videos to a row. Value maps that the source lacks are rendered if events and calibration are known. At
    another rate all such maps are rendered anew, since a frame may show another event than in the source."""
    known = Episode.from_row(row | dict.fromkeys(format.VIDEO_KEYS)) if row["events"] is not None else None
    clips = {}
    for column, key in _camera_keys(source, robot).items():
        is_map, camera = column.startswith("value_"), column.partition("_")[2]
        if is_map and every > 1 and known is not None and camera in known.intrinsics:
            continue
        source.check_pictures(episode, key)
        clips[column] = source.clip(episode, key, every, gray=is_map)
    for column in format.VIDEO_KEYS:
        row[column] = {"bytes": clips[column], "path": None} if column in clips else None
    for camera in CAMERAS:
        rgb, value = f"rgb_{camera}", f"value_{camera}"
        if known is not None and row[rgb] is not None and row[value] is None and camera in known.intrinsics:
            size = decode_column(row, rgb, [0]).shape[1:3]
            maps = render_value_maps(known.events, known.intrinsics[camera], known.extrinsics[camera], *size)
            row[value] = {"bytes": encode_video(maps, row["fps"], gray=True), "path": None}
    check_videos(row, f"{row['task']} seed {row['seed']}")
    return row
