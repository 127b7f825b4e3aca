"""Rollouts for visitors of the page: a scene is set up, and a rollout in it is yielded chunk by chunk.

Several episodes run at once. Each has its own environment process, whose death ends that episode alone. They share
one pipeline, which takes one call at a time. Errors are raised as `Trouble`, whose message is shown to the visitor.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from ..envs.seeds import seed_range
from ..pipeline.pipeline_aim import AIMPipeline
from ..pipeline.sampling_config import SamplingConfig
from ..pipeline.session import AIMSession
from ..rollout.policies import Prediction, check_fits, interface_of
from ..rollout.run import new_storyboard
from ..rollout.storyboard import Storyboard
from ..rollout.vector_env import Chunks, Start, VectorEnvironment, WorkerLost


class Trouble(Exception):
    """An error shown to the visitor. Its message says what went wrong and what they can do."""


@dataclass(frozen=True)
class HeldOutScene:
    """A scene of the tabletop suite from the seeds that training never uses."""

    task: str
    split: str
    seed: int


def held_out_scene(task: str, split: str, seed: float | None) -> HeldOutScene:
    """The scene of a typed seed. Raises Trouble unless it is an evaluation seed."""
    seeds = seed_range("evaluation")
    if seed is None or seed % 1 != 0 or int(seed) not in seeds:
        typed = "no number" if seed is None else f"{seed:.12g}"
        raise Trouble(
            f"The seed is {typed}. Choose a whole number from {seeds.start} to {seeds.stop - 1}: those scenes are "
            "kept from training."
        )
    return HeldOutScene(task, split, int(seed))


@dataclass
class LiveEpisode:
    """A rollout so far.

    own_instruction: the instruction of the scene, even if the visitor gave another. seconds: inference time of each
        chunk. done: whether the episode has ended; `board.success` tells whether it succeeded.
    """

    board: Storyboard
    own_instruction: str
    seconds: list[float] = field(default_factory=list)
    done: bool = False


class Simulators:
    """A pool of at most `limit` environment processes of the tabletop suite, each lent for one episode at a time.

    A process simulates one split. One process is started immediately, so that the first visitor doesn't wait for it.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._lent = 0
        self._idle = [VectorEnvironment("tabletop", "easy", num_workers=1)]

    @contextmanager
    def lent(self, split: str) -> Iterator[VectorEnvironment]:
        """An environment of `split` for the time of the context. Raises Trouble if all are lent."""
        with self._lock:
            if self._lent == self.limit:
                raise Trouble("Every simulator is busy with someone else's episode. Try again in a minute.")
            environment = next((idle for idle in self._idle if idle.split == split), None)
            if environment is not None:
                self._idle.remove(environment)
            elif self._lent + len(self._idle) == self.limit:
                self._idle.pop(0).close()
            self._lent += 1
        try:
            if environment is None:
                environment = VectorEnvironment("tabletop", split, num_workers=1)
            yield environment
        finally:
            with self._lock:
                self._lent -= 1
                if environment is not None:
                    self._idle.append(environment)

    def close(self) -> None:
        for environment in self._idle:
            environment.close()


class LiveRollouts:
    """Runs rollouts of a pipeline in the tabletop suite. Raises ValueError if the pipeline doesn't fit the suite."""

    def __init__(self, pipe: AIMPipeline, simulators: Simulators) -> None:
        check_fits(interface_of(pipe), "tabletop", "easy")
        self.pipe, self.simulators = pipe, simulators
        self.chunks = Chunks(pipe.actions_per_chunk, pipe.actions_per_frame)
        self._network = threading.Lock()
        pipe.set_progress_bar_config(disable=True)

    def sampling(
        self, num_inference_steps: int, num_action_inference_steps: int, stop_after: int | None
    ) -> SamplingConfig:
        """The pipeline's `SamplingConfig` with these fields. Raises Trouble if they are out of range, or contradict
        each other."""
        if stop_after is not None and stop_after > num_inference_steps:
            raise Trouble(
                f"The early end comes after step {stop_after}, but there are only {num_inference_steps} steps. Lower "
                "it, or set it to 0 for none."
            )
        try:
            return replace(
                self.pipe.sampling_config,
                num_inference_steps=num_inference_steps,
                num_action_inference_steps=num_action_inference_steps,
                stop_after=stop_after,
            )
        except ValueError as error:  # steps that were typed as fractions
            raise Trouble(str(error)) from error

    def show(self, scene: HeldOutScene) -> Start:
        """Sets up the scene. Raises Trouble if no simulator is free or the simulator fails."""
        with self.simulators.lent(scene.split) as environment:
            return self._reset(environment, scene)

    def run(self, scene: HeldOutScene, instruction: str | None, sampling: SamplingConfig) -> Iterator[LiveEpisode]:
        """Runs an episode. Yields the same `LiveEpisode` before the first chunk and after each chunk.

        Closing the iterator stops the episode and frees the simulator. The noise is seeded as in the evaluation, so
        with the same instruction and sampling an episode differs from the evaluation's only by rounding.

        Args:
            instruction: the robot's instruction; None for that of the scene.

        Raises:
            Trouble: for an empty or too long instruction, and if the simulator is lost.
        """
        if instruction is not None and not instruction.strip():
            raise Trouble("The instruction is empty. Say what the robot should do.")
        with self.simulators.lent(scene.split) as environment:
            start = self._reset(environment, scene)
            instruction = start.instruction if instruction is None else instruction
            mode = self.pipe.processor.action_space
            board = new_storyboard(scene.task, scene.split, scene.seed, start, instruction, mode)
            episode = LiveEpisode(board, start.instruction)
            session = self._start(board.instruction, sampling)
            generator = torch.Generator().manual_seed(scene.seed)
            yield episode
            seen, executed = start.observation, None
            while not episode.done:
                with self._network:
                    began = time.perf_counter()
                    if executed is not None:
                        self.pipe.append(session, seen, executed)
                        seen = None
                    out = self.pipe(seen, session=session, generator=generator, sampling_config=sampling)
                    episode.seconds.append(time.perf_counter() - began)
                with _simulator_errors_as_trouble():
                    progress = environment.step({0: out.actions[0]}, mode)[0]
                seen, executed = progress.observations, out.actions
                prediction = Prediction(executed, out.value_maps, out.frames)
                board.add_chunk(prediction, 0, seen, progress.steps - len(board.actions))
                board.success, episode.done = progress.success, progress.done
                yield episode

    def _reset(self, environment: VectorEnvironment, scene: HeldOutScene) -> Start:
        with _simulator_errors_as_trouble():
            return environment.reset(scene.task, [scene.seed], "seen", self.chunks, expert=False)[0]

    def _start(self, instruction: str, sampling: SamplingConfig) -> AIMSession:
        with self._network:
            try:
                return self.pipe.start(instruction, negative_prompt=sampling.negative_prompt)
            except ValueError as error:  # the tokenizer's, for too many tokens
                raise Trouble(str(error)) from error


@contextmanager
def _simulator_errors_as_trouble() -> Iterator[None]:
    try:
        yield
    except WorkerLost as error:
        raise Trouble(
            f"The simulator was lost: {error}. Another one has taken its place: run the scene again."
        ) from error
    except RuntimeError as error:  # of the environment, with the worker's traceback; its last line is the error
        kind, _, words = str(error).strip().splitlines()[-1].partition(": ")
        raise Trouble(f"The simulator can't go on: {words or kind}") from error
