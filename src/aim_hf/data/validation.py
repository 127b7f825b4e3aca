"""Validation of a folder of episodes: checks every row, and renders and simulates samples again."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..envs import TASKS, next_environment
from ..envs.base import CAMERAS, Environment
from ..envs.seeds import episode_seeds
from ..utils.extras import extra
from ..utils.files import MADE_FROM, read_json, reading
from .episodes import Episode, check_row, check_videos, decode_column
from .recorder import Failure, record_episode
from .shards import UNFINISHED, check_folder, read_manifest, shard_paths, stored_rows

with extra("data"):
    import pyarrow.parquet as pq

# Of 255: the largest error of a value map's video by compression, which spends less on a frame at a higher frame rate.
# A map that lies half a pixel off differs by more.
VIDEO_ERROR = 48


@dataclass
class Report:
    """Numbers of checks, and the problems found."""

    episodes: int = 0
    frames: int = 0
    bytes: int = 0
    rendered: int = 0  # episodes whose value maps were compared with those rendered from the contacts
    simulated: int = 0  # episodes whose seeds were simulated again and compared
    largest_video_error: int = 0  # of 255
    problems: list[str] = field(default_factory=list)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Context manager that ends with the first error of the data, and keeps it as a problem."""
        try:
            yield
        except (ValueError, FileNotFoundError) as error:
            self.problems.append(str(error))


def validate(folder: Path, render: int, simulate: int) -> Report:
    """Checks a folder. Continues after a problem, so that the report lists all problems.

    Args:
        folder: folder of episodes.
        render, simulate: numbers of episodes to render and to simulate again, evenly spread over the folder.
    """
    report = Report()
    with report.telling():
        check_folder(folder)
    if report.problems:
        return report
    if not (folder / "README.md").exists():
        report.problems.append(f"{folder} has no README.md: without it, load_dataset can't tell the splits apart")
    for pieces in sorted(folder.glob(f"{UNFINISHED}/*")):
        report.problems.append(f"{pieces} is an unfinished shard; run the same command again to finish it")

    made_from: dict[str, Any] = {}
    with report.telling():
        if (folder / MADE_FROM).exists():
            made_from = read_json(folder / MADE_FROM, "make the folder again")
    total = sum(pq.read_metadata(path).num_rows for path in shard_paths(folder))
    to_render, to_simulate, env = _spread(render, total), _spread(simulate, total), None
    with tqdm(total=total, unit="episode", desc="validate") as progress:
        for path in shard_paths(folder):
            report.bytes += path.stat().st_size
            manifest, seeds = None, []
            with report.telling():
                manifest = read_manifest(folder, path)
                if manifest is not None:
                    report.problems += _disagreements(path, manifest, made_from)
            with report.telling():
                for number, (where, row) in enumerate(stored_rows(path), report.episodes):
                    seeds.append(row["seed"])
                    with report.telling():
                        check_row(row, where)
                        check_videos(row, where)
                        report.frames += row["num_frames"]
                        episode = Episode.from_row(row) if number in to_render | to_simulate else None
                        if number in to_render:
                            _check_value_maps(row, episode, report)
                        if number in to_simulate and row["suite"] in TASKS and _is_scripted(manifest):
                            # Pictures aren't compared.
                            options = {} if row["suite"] == "robotwin" else {"render": False}
                            env = next_environment(env, row["suite"], row["task"], row["split"], **options)
                            _check_simulation(path, episode, env, manifest, report)
                    report.episodes += 1
                    progress.update()
                if manifest is not None and seeds != [
                    seed["seed"] for seed in manifest["seeds"] if seed["outcome"] == "recorded"
                ]:
                    report.problems.append(f"{path}: its seeds aren't those that its manifest calls recorded")
    if env is not None:
        env.close()
    return report


def _spread(count: int, total: int) -> set[int]:
    """`count` numbers below `total`, evenly spread."""
    count = min(count, total)
    return {i * total // count for i in range(count)}


def _disagreements(shard: Path, manifest: dict[str, Any], made_from: dict[str, Any]) -> Iterator[str]:
    """Problems where a manifest differs from the settings of the folder."""
    expected = dict(made_from)
    if expected.keys() >= {"start_seed", "shard_size", "seeds_per_episode"}:  # gives the first seed of this shard
        index = shard.stem.rpartition("-")[2]
        if not index.isdecimal():
            yield f"{shard}: expected a number at the end of its name, as `aim-hf collect` writes; move it elsewhere"
            return
        with reading(shard.parents[1] / MADE_FROM, "make the folder again"):
            start = expected["start_seed"] + int(index) * expected["shard_size"] * expected["seeds_per_episode"]
            expected["seeds_from"] = episode_seeds("train", start, 1)[0]
    for name in sorted(manifest.keys() & expected.keys()):
        if manifest[name] != expected[name]:
            yield (
                f"{shard}: its manifest has {name} = {manifest[name]!r}, but {expected[name]!r} by {MADE_FROM}; make "
                "the folder again"
            )


def _check_value_maps(row: dict[str, Any], episode: Episode, report: Report) -> None:
    """Compares value maps rendered from the contacts with their videos."""
    if episode.events is None:
        return
    for camera in CAMERAS:
        if row[f"value_{camera}"] is None or camera not in episode.intrinsics:
            continue
        stored = decode_column(row, f"value_{camera}").astype(int)
        error = int(np.abs(stored - episode.value_maps(camera)).max())
        report.largest_video_error = max(report.largest_video_error, error)
        if error > VIDEO_ERROR:
            report.problems.append(
                f"{episode.task} seed {episode.seed}: value_{camera} is up to {error} of 255 from the map of its "
                f"contacts, expected at most {VIDEO_ERROR}; record this episode again"
            )
    report.rendered += 1


def _other_settings(shard: Path, made: dict[str, str], here: dict[str, str]) -> Iterator[str]:
    """Problems where the settings of this simulator differ from those in the manifest."""
    for name in ("assets", "embodiment", "shader", "planner"):
        if name in made and made[name] != here.get(name):
            yield f"{shard}: made with {name} {made[name]!r}, and simulated again with {here.get(name)!r}"


def _is_scripted(manifest: dict[str, Any] | None) -> bool:
    """Whether the seeds alone determine the episodes: not for experts on recorded paths, nor for imports."""
    return manifest is not None and manifest.get("paths") != "recorded" and "robot" not in manifest


def _check_simulation(
    shard: Path, episode: Episode, env: Environment, manifest: dict[str, Any], report: Report
) -> None:
    """Simulates the seed of an episode again, and compares."""
    others = _other_settings(shard, manifest["simulator"], env.simulator)
    report.problems += [other for other in others if other not in report.problems]
    report.problems += _differences(episode, env, manifest)
    report.simulated += manifest.get("noise") is not None


def _differences(episode: Episode, env: Environment, manifest: dict[str, Any]) -> Iterator[str]:
    """Simulates the seed of the episode again. Yields the differences."""
    where = f"{episode.task} {episode.split} seed {episode.seed}"
    if manifest.get("noise") is None:
        yield f"{where}: its manifest doesn't tell the noise, without which it can't be simulated again"
        return
    replay = record_episode(env, episode.seed, manifest["noise"], manifest.get("mistakes", 0.0))
    if isinstance(replay, Failure):
        yield f"{where}: simulated again, it fails: {replay.reason}"
        return
    simulated = _simulated_parts(replay)
    for name, stored in _simulated_parts(episode).items():
        if not np.array_equal(stored, simulated.get(name)):
            yield f"{where}: simulated again, {name} differs; other versions of simulator or project made it"


def _simulated_parts(episode: Episode) -> dict[str, Any]:
    """The parts of an episode that a simulation repeats to the last bit, by their names in reports. Pictures aren't
    among them."""
    names = ("instruction", "state", "action", "expert_action", "intervention")
    parts = {name: getattr(episode, name) for name in names}
    for kind in ("intrinsics", "extrinsics"):
        parts |= {f"{kind}_{camera}": matrices for camera, matrices in getattr(episode, kind).items()}
    events = episode.events or ()  # none are known of an import
    parts["the list of events"] = [(event.kind, event.arm, event.frame, event.body_name) for event in events]
    for number, event in enumerate(events):
        parts |= {f"{name} of event {number}": getattr(event, name) for name in ("points", "body_pose")}
    return parts
