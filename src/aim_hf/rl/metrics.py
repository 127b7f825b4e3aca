"""Metrics of a run: of rollouts, losses and evaluations."""

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
    """The lists of all processes, concatenated by name."""
    joined: dict[str, list] = defaultdict(list)
    for of_process in gather_object([dict(lists)]):
        for name, values in of_process.items():
            joined[name] += values
    return joined


def merged_metrics(values_of: Mapping[str, list[float]], workers: int) -> dict[str, float]:
    """Means of the values; the maximum of `ratio_max`; sums of seconds and counts.

    Args:
        workers: number of environment processes of each process.
    """

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    reductions = {"ratio_max": max, "rollout/lost": sum, "rollout/control_steps": sum}
    metrics = {
        name: sum(values) if name.startswith("time/") else reductions.get(name, mean)(values)
        for name, values in values_of.items()
        if values
    }
    if metrics.get("time/simulation"):
        steps_per_second = metrics["rollout/control_steps"] / metrics["time/simulation"]
        metrics["rollout/control_steps_per_core_second"] = steps_per_second / workers
        seconds = sum(value for name, value in metrics.items() if name.startswith("time/"))
        metrics["time/simulation_share"] = metrics["time/simulation"] / seconds
    return metrics


def check_episodes(generation: int, kept: int, reasons: list[str]) -> None:
    """Raises SimulatorFailed if no process kept an episode of the iteration: the run can't learn anything."""
    processes = gather_object([{"kept": kept, "reasons": reasons}])
    if not any(process["kept"] for process in processes):
        all_reasons = sorted({reason for process in processes for reason in process["reasons"]})
        raise SimulatorFailed(
            f"every episode of iteration {generation} was lost: {'; '.join(all_reasons[:3])}. See what the "
            "environments said above, and try one by itself: aim-hf evaluate."
        )


def scene_successes(
    policy: AIMPolicy, environments: VectorEnvironment, scenes: Scenes, batch_size: int
) -> dict[str, list[bool]]:
    """Task -> success of each episode of this process; scenes that can't be set up are left out."""
    seeds: dict[str, list[int]] = defaultdict(list)
    for scene in (scenes[index] for index in range(len(scenes))):
        seeds[scene.task].append(scene.seed)
    # Each process gets an equal share of each task's scenes; remainders go to a different process for each task.
    state = PartialState()
    rank, processes = state.process_index, state.num_processes
    own = {task: seeds[task][(rank + index) % processes :: processes] for index, task in enumerate(seeds)}
    successes: dict[str, list[bool]] = {task: [] for task in own}
    with tqdm(total=sum(map(len, own.values())), unit="episode", desc="evaluation", leave=False) as progress:
        for task, task_seeds in own.items():
            for first in range(0, len(task_seeds), batch_size):
                for result in run_episodes(policy, environments, task, task_seeds[first : first + batch_size]):
                    if not isinstance(result, SeedRejected):
                        successes[task].append(result.success)
                    progress.update()
    return successes


def success_metrics(successes: Mapping[str, list[bool]], scenes: Scenes, prefix: str) -> dict[str, float]:
    """Success rate over all episodes, with its 95 % Wilson interval, and of each task.

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
