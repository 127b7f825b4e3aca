"""Numbers of a run: of its rollouts and losses, and of evaluations in between."""

from collections import defaultdict
from collections.abc import Mapping

from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from ..envs.base import SeedRejected
from ..evaluation.statistics import wilson_interval
from ..rollout.policies import AIMPolicy
from ..rollout.run import run_episodes
from ..rollout.vector_env import VectorEnvironment
from ..utils.extras import SimulatorFailed
from .scenes import Scenes


def gathered(lists: Mapping[str, list]) -> dict[str, list]:
    """The lists of all processes, joined by name."""
    joined: dict[str, list] = defaultdict(list)
    for one in gather_object([dict(lists)]):
        for name, values in one.items():
            joined[name] += values
    return joined


def merged_metrics(values_of: Mapping[str, list[float]], workers: int) -> dict[str, float]:
    """Means; of `ratio_max` the maximum, of seconds and counts the sum. workers: environment processes of each
    process."""
    how = {"ratio_max": max, "rollout/lost": sum, "rollout/control_steps": sum}
    metrics = {
        name: sum(values) if name.startswith("time/") else how.get(name, lambda v: sum(v) / len(v))(values)
        for name, values in values_of.items()
        if values
    }
    if metrics.get("time/simulation"):
        steps_per_second = metrics["rollout/control_steps"] / metrics["time/simulation"]
        metrics["rollout/control_steps_per_core_second"] = steps_per_second / workers
        spent = sum(value for name, value in metrics.items() if name.startswith("time/"))
        metrics["time/simulation_share"] = metrics["time/simulation"] / spent
    return metrics


def scene_successes(
    policy: AIMPolicy, environments: VectorEnvironment, scenes: Scenes, batch_size: int
) -> dict[str, list[bool]]:
    """Task -> whether each episode of this process succeeded; scenes that can't be set up are left out."""
    seeds: dict[str, list[int]] = defaultdict(list)
    for scene in (scenes[index] for index in range(len(scenes))):
        seeds[scene.task].append(scene.seed)
    # As many of each task for every process; the odd ones go round.
    state = PartialState()
    rank, processes = state.process_index, state.num_processes
    mine = {task: seeds[task][(rank + n) % processes :: processes] for n, task in enumerate(seeds)}
    successes: dict[str, list[bool]] = {task: [] for task in mine}
    with tqdm(total=sum(map(len, mine.values())), unit="episode", desc="evaluation", leave=False) as progress:
        for task, of_task in mine.items():
            for first in range(0, len(of_task), batch_size):
                for result in run_episodes(policy, environments, task, of_task[first : first + batch_size]):
                    if not isinstance(result, SeedRejected):
                        successes[task].append(result.success)
                    progress.update()
    return successes


def success_metrics(successes: Mapping[str, list[bool]], scenes: Scenes, prefix: str) -> dict[str, float]:
    """The rate over all episodes, with its 95 % Wilson interval, and that of each task.

    Raises:
        SimulatorFailed: if there is no episode.
    """
    everything = [success for task in scenes.tasks for success in successes[task]]
    if not everything:
        raise SimulatorFailed(f"none of the {len(scenes)} scenes of the evaluation could be set up.")
    low, high = wilson_interval(sum(everything), len(everything))
    return {
        f"{prefix}_success_rate": sum(everything) / len(everything),
        f"{prefix}_success_low": low,
        f"{prefix}_success_high": high,
        f"{prefix}_episodes": len(everything),
    } | {
        f"{prefix}_success/{task}": sum(successes[task]) / len(successes[task])
        for task in scenes.tasks
        if successes[task]
    }
