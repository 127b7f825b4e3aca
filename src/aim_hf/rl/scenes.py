"""Scenes to practise on, and which process takes which."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

from ..envs.seeds import Purpose, episode_seeds
from .config import AIMGRPOConfig


@dataclass(frozen=True)
class PracticeScene:
    task: str
    seed: int


class Scenes(torch.utils.data.Dataset):
    """Scenes to practise on: every task in turn, each time with the next seed of `purpose`, from the `start`-th on.

    Raises:
        ValueError: for no task, or no scene.
    """

    def __init__(self, tasks: list[str], count: int, purpose: Purpose = "rl", start: int = 0):
        if not tasks or count < 1:
            raise ValueError(
                f"tasks are {list(tasks)} and count is {count}; expected at least one task and one scene."
            )
        self.tasks = list(tasks)
        self.purpose = purpose
        self._seeds = episode_seeds(purpose, start, -(-count // len(self.tasks)))
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> PracticeScene:
        if not 0 <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        return PracticeScene(self.tasks[index % len(self.tasks)], self._seeds[index // len(self.tasks)])


class RepeatSampler(Sampler[list[int]]):
    """Which scenes a process needs at each of its steps: those of the whole generation that the step belongs to.

    The groups of one optimizer step are the same however many processes share them. Who takes which goes round from
    step to step: tasks come in turn, and a process that met the same ones always would wait, or be waited for.
    """

    def __init__(self, args: AIMGRPOConfig, num_scenes: int, rank: int, world_size: int):
        self.groups = args.per_device_train_batch_size // args.num_generations  # of a process's step
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
            mine = [
                (step * self.world_size + (self.rank + step) % self.world_size) * self.groups + group
                for step in range(generation * self.steps, (generation + 1) * self.steps)
                for group in range(self.groups)
            ]
            yield from [mine] * self.repeats
