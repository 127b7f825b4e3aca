"""Adds value maps, contacts and calibration to trajectories that RoboTwin has recorded, by simulating them again.

RoboTwin's files hold no contacts. The scene of an episode's seed is set up again, the expert follows the recorded
joint paths, and the recorder of `aim-hf collect` notes frames and contacts. An episode counts only if the task is
fulfilled again and if RoboTwin's own states, at its own frames, are those of the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from ..envs import check_starts, next_environment
from ..envs.base import SimulatorLost
from ..envs.robotwin import RoboTwinEnvironment, chosen_settings
from ..utils.checks import check_whole
from ..utils.files import MADE_FROM, claim
from .card import write_card
from .episodes import Episode
from .preview import write_preview
from .recorder import Failure, record_episode
from .recordings import Recordings
from .shards import OUTPUTS, ShardWriter, read_manifest, remove_leftovers

TOLERANCE = 1e-3  # rad, m, and parts of a quaternion: other builds of the simulator round the last digits differently
ORIGIN = """Trajectories that RoboTwin 2.0's own collection has recorded ({sources}), simulated again by
`aim-hf annotate-robotwin`; contacts come from the simulation ({simulators}). `manifest/` lists each seed, and for an
episode that was left out the difference from its recording."""


@dataclass(frozen=True)
class Shard:
    """Episodes of a file. `episodes`: (seed, number in the recordings), sorted by seed."""

    recordings: Recordings
    index: int
    episodes: list[tuple[int, int]]

    def writer(self, folder: Path) -> ShardWriter:
        task, split = self.recordings.names
        return ShardWriter(folder, split, task, self.index)


def annotate(sources: list[Path], output: Path, shard_size: int) -> tuple[int, list[str]]:
    """Annotates the episodes of `sources` into the folder `output`; goes on where an earlier call was stopped.

    Several processes share the work. Returns how many episodes all of them annotated, and a sentence for each that was
    left out.

    Raises:
        ValueError: for a bad `shard_size`, a source that isn't of one task and configuration, or two sources of the
            same.
        FileExistsError: if `output` was made from other sources; names them.
    """
    check_whole("shard_size", shard_size)
    state = PartialState(cpu=True, timeout=timedelta(days=30))
    opened = [Recordings.open(source) for source in sources]
    made_from = _made_from(opened, shard_size)
    with state.main_process_first():
        if state.is_main_process:
            check_starts("robotwin", *opened[0].names, output / MADE_FROM)
            claim(output, made_from, *OUTPUTS)
            remove_leftovers(output)
    shards = plan(opened, shard_size)
    mine = shards[state.process_index :: state.num_processes]
    annotated, skipped, env = 0, [], None
    with tqdm(total=sum(len(shard.episodes) for shard in mine), unit="episode") as progress:
        for shard in mine:
            writer = shard.writer(output)
            if not writer.is_done(1) or writer.reopened():
                env = next_environment(env, "robotwin", *shard.recordings.names, depth=True)
                _annotate_shard(env, shard, writer, progress)
            left_out = _left_out(shard, writer)
            annotated += len(shard.episodes) - len(left_out)
            skipped += left_out
    if env is not None:
        env.close()
    annotated, skipped = sum(gather_object([annotated])), gather_object(skipped)  # a process may have no shard
    if state.is_main_process and any(output.glob("data/*.parquet")):
        for shard in shards:  # a shard whose episodes are all left out isn't unfinished
            shard.writer(output).remove_pieces()
        write_preview(output)
        write_card(output, ORIGIN.replace("{sources}", ", ".join(of["folder"] for of in made_from["sources"])))
    return annotated, skipped


def _made_from(opened: list[Recordings], shard_size: int) -> dict[str, Any]:
    """The settings that determine the output, for `claim`. Raises ValueError for two sources of one task and split."""
    sources: dict[tuple[str, str], dict[str, Any]] = {}
    for recordings in opened:
        if (other := sources.get(recordings.names)) is not None:
            raise ValueError(f"{recordings.folder} and {other['folder']} are of the same task and configuration.")
        sources[recordings.names] = {"folder": recordings.name, "seeds": recordings.seeds}
    made_from = {"suite": "robotwin", "shard_size": shard_size, "sources": list(sources.values())}
    return made_from | chosen_settings("robotwin")


def plan(opened: list[Recordings], shard_size: int) -> list[Shard]:
    """The shards of all recordings, each sorted by seed."""
    shards = []
    for recordings in opened:
        episodes = sorted((seed, number) for number, seed in enumerate(recordings.seeds))
        shards += [
            Shard(recordings, index, episodes[first : first + shard_size])
            for index, first in enumerate(range(0, len(episodes), shard_size))
        ]
    return shards


def _annotate_shard(env: RoboTwinEnvironment, shard: Shard, writer: ShardWriter, progress: tqdm) -> None:
    """Annotates the missing episodes of a shard, and finishes it unless all are left out."""
    for seed, number in shard.episodes:
        if seed not in writer.tried:
            episode = annotated_episode(env, shard.recordings, number)
            if isinstance(episode, Failure):
                writer.reject(seed, episode.reason, episode.mendable)
            else:
                writer.add(episode.to_row())
        progress.update()
    if writer.num_episodes:
        writer.finish(
            {
                "suite": env.suite,
                "task": env.task,
                "split": env.split,
                "noise": 0.0,
                "source": shard.recordings.name,
                "paths": "recorded" if shard.recordings.has_paths else "planned",
                "simulator": env.simulator,
            }
        )


def _left_out(shard: Shard, writer: ShardWriter) -> list[str]:
    """A sentence for each episode of a shard that was left out."""
    manifest = read_manifest(writer.folder, writer.path)
    reasons = writer.tried if manifest is None else {of["seed"]: of.get("reason") for of in manifest["seeds"]}
    where = f"{writer.task} {writer.split} seed"
    return [f"{where} {seed}: {reason}" for seed, reason in sorted(reasons.items()) if reason is not None]


def annotated_episode(env: RoboTwinEnvironment, recordings: Recordings, number: int) -> Episode | Failure:
    """Simulates a recorded episode again. A Failure if anything is missing, or differs from the recording."""
    seed = recordings.seeds[number]
    try:
        states, description = recordings.states(number, env), recordings.description(number)
        env.follow(recordings.paths(number))
        episode = record_episode(env, seed, 0.0)
    except (OSError, ValueError) as error:
        return Failure(seed, recordings.problem(error), mendable=True)
    except SimulatorLost as lost:
        return Failure(seed, str(lost), mendable=True)
    if isinstance(episode, Failure):
        return episode
    if description not in (None, env.description):
        return Failure(seed, f"the scene is described as {description}, and simulated as {env.description}")
    difference = first_difference(states, env.own_states)
    return episode if difference is None else Failure(seed, difference)


def first_difference(recorded: np.ndarray, simulated: np.ndarray) -> str | None:
    """The first difference of recorded states (T, D) or (T - 1, D) from simulated ones (T, D + 14); None if they
    agree.

    Recordings of D numbers hold no poses, and those of T - 1 frames lack the last one.
    """
    frames, width = recorded.shape
    joints = simulated.shape[1] - 14
    if width not in (joints, joints + 14) or not 0 <= len(simulated) - frames <= 1:
        return f"the recording has {frames} frames of {width} numbers; simulated again, {simulated.shape}"
    difference = np.abs(recorded - simulated[:frames, :width])
    if width > joints:
        for first in (joints + 3, joints + 10):  # a quaternion and its negative are the same rotation
            span = slice(first, first + 4)
            difference[:, span] = np.minimum(difference[:, span], np.abs(recorded + simulated[:frames])[:, span])
    if not (difference <= TOLERANCE).all():
        frame, column = np.argwhere(~(difference <= TOLERANCE))[0]
        name = f"joint target {column}" if column < joints else f"number {column - joints} of the measured poses"
        return (
            f"in frame {frame} of {frames}, {name} is {recorded[frame, column]:.4f} in the recording and "
            f"{simulated[frame, column]:.4f} simulated again"
        )
    return None
