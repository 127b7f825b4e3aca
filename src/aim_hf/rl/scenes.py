"""Training and validation scenes of stage 2, and their distribution over processes."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

from ..envs.names import check_tasks
from ..envs.seeds import Purpose, episode_seeds
from .config import AIMGRPOConfig


@dataclass(frozen=True)
class PracticeScene:
    """Task and seed of a scene."""

    task: str
    seed: int


class Scenes(torch.utils.data.Dataset):
    """`count` scenes of all tasks in turn, with successive seeds of `purpose` from index `start`.

    Raises:
        ValueError: for no task, a task that is given twice, or no scene.
    """

    def __init__(self, tasks: list[str], count: int, purpose: Purpose = "rl", start: int = 0):
        if not tasks or count < 1:
            raise ValueError(
                f"tasks are {list(tasks)} and count is {count}; expected at least one task and one scene."
            )
        if len(set(tasks)) < len(tasks):
            raise ValueError(f"tasks are {list(tasks)}; expected each once, since a task's scenes would come again.")
        self.tasks = list(tasks)
        self.purpose = purpose
        self._seeds = episode_seeds(purpose, start, -(-count // len(self.tasks)))
        self._count = count

    def check(self, name: str, suite: str, purpose: Purpose | None = None) -> None:
        """Raises ValueError, naming the dataset, for scenes of tasks that the suite lacks, or of another purpose."""
        if purpose not in (None, self.purpose):
            raise ValueError(f"{name} has scenes for {self.purpose}; expected scenes for {purpose}.")
        check_tasks(suite, self.tasks)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> PracticeScene:
        if not 0 <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        return PracticeScene(self.tasks[index % len(self.tasks)], self._seeds[index // len(self.tasks)])


class RepeatSampler(Sampler[list[int]]):
    """Scene indices of one process: at each batch, its scenes of the whole generation that the batch belongs to.

    The groups of one optimizer step don't depend on the number of processes. The assignment of scenes to processes
    rotates from batch to batch: otherwise a process might get the same tasks in every batch, and processes with slow
    tasks would delay the others.
    """

    def __init__(self, args: AIMGRPOConfig, num_scenes: int, rank: int, world_size: int):
        self.groups = args.per_device_train_batch_size // args.num_generations  # groups per batch and process
        self.steps, self.repeats = args.steps_per_generation, args.steps_per_generation * args.num_iterations
        self.rank, self.world_size = rank, world_size
        self.per_generation = self.steps * world_size * self.groups
        self.generations = num_scenes // self.per_generation
        if not self.generations:
            raise ValueError(
                f"train_dataset has {num_scenes} scenes; expected at least the {self.per_generation} of an iteration."
            )

    def __len__(self) -> int:
        return self.generations * self.repeats

    def __iter__(self) -> Iterator[list[int]]:
        for generation in range(self.generations):
            own = [
                (step * self.world_size + (self.rank + step) % self.world_size) * self.groups + group
                for step in range(generation * self.steps, (generation + 1) * self.steps)
                for group in range(self.groups)
            ]
            yield from [own] * self.repeats
