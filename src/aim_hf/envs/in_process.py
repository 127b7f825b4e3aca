"""The common part of environments whose simulator runs in this process, on a scene object."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import ClassVar, Protocol

import numpy as np

from ..utils.checks import check_choice, check_whole
from .actions import checked_action
from .base import ARMS, Body, Camera, Contact, ExpertPath, Interface, Observation, StepResult
from .poses import unpack_endpose
from .seeds import scene_generator


class Scene(Protocol):
    """The simulated state of an episode, and its measurements."""

    fingers: dict[str, list[int]]
    robot_links: list[int]

    def qpos(self) -> np.ndarray:
        """The measured joint angles (rad) and grippers (0 closed .. 1 open) as a `qpos` action has them: (14,)."""

    def tcp(self, arm: str) -> np.ndarray:
        """The measured pose (7,) of an arm's tool center point."""

    def body_id(self, name: str) -> int: ...

    def bodies(self, of: Collection[int] | None = None) -> dict[int, Body]: ...

    def contacts(self, of: Collection[int] | None = None) -> list[Contact]: ...

    def velocities(self, of: Collection[int] | None = None) -> dict[int, tuple[np.ndarray, np.ndarray]]: ...


class Task(ABC):
    """The task of one episode. `seen` and `unseen` are instruction templates, filled in by `words`."""

    targets: ClassVar[dict[str, str]] = {}  # name of a body -> "press", "push" or "insert", as `Environment.targets`
    seen: ClassVar[tuple[str, ...]]
    unseen: ClassVar[tuple[str, ...]]
    words: Mapping[str, str] = {}  # the values of the placeholders in the templates


class InProcessEnvironment(ABC):
    """See `envs.base.Environment` for the methods' contracts. `reset` of a suite sets `_seed`, `_scene` and `_task`,
    and `_step` to 0.

    Args:
        tasks: of the suite. base: the split whose scenes are built, "easy" for a perturbation of it. render, depth:
            whether cameras give pictures, and depths. sizes: camera -> (width, height) of its pictures.

    Raises:
        ValueError: for a task that isn't one of `tasks`, depth without rendering, or sizes that aren't those of all
            cameras.
    """

    suite: ClassVar[str]
    action_dims = {"ee": 16, "qpos": 14}
    control_dt: ClassVar[float]
    physics_dt: ClassVar[float]
    sizes: ClassVar[dict[str, tuple[int, int]]]  # camera -> (width, height) of its pictures by default
    step_limit: int

    def __init__(
        self,
        task: str,
        split: str,
        base: str,
        tasks: Collection[str],
        render: bool,
        depth: bool,
        sizes: Mapping[str, tuple[int, int]],
    ) -> None:
        self.task, self.split, self._base = check_choice("task", task, tasks), split, base
        if depth and not render:
            raise ValueError("depth is True with render=False; depth is rendered: take render=True, or leave it out.")
        if set(sizes) != set(self.sizes):
            raise ValueError(f"sizes are of {', '.join(sizes)}; expected those of {', '.join(self.sizes)}.")
        for camera, (width, height) in sizes.items():
            check_whole(f"the width of {camera}", width)
            check_whole(f"the height of {camera}", height)
        self._render, self._depth, self._sizes = render, depth, sizes
        self.on_physics_step: list[Callable[[InProcessEnvironment], None]] = []
        self._scene: Scene | None = None

    @classmethod
    def interface(cls, split: str) -> Interface:
        sizes = {name: (height, width) for name, (width, height) in cls.sizes.items()}
        return Interface(cls.action_dims, sizes, 1 / cls.control_dt)

    # Episodes

    def step(self, action: np.ndarray, mode: str = "ee", observe: bool = True) -> StepResult:
        """Executes one action. `info["reached"]`: arm -> whether the target was within reach.

        Raises ValueError for a bad action or mode, RuntimeError before `reset` and after the last step.
        """
        self._active_scene()
        action = checked_action(action, mode, self.action_dims)
        if self._step >= self.step_limit:
            raise RuntimeError(f"the episode has ended after its {self.step_limit} steps: call reset(seed).")
        reached = self._execute(action, mode)
        self._step += 1
        success = self._succeeds()
        info = {
            "step": self._step,
            "step_limit": self.step_limit,
            "done": success or self._step >= self.step_limit,
            "reached": reached,
        }
        return StepResult(self.observe() if observe else None, success, info)

    def instruction(self, split: str = "seen") -> str:
        self._active_scene()
        templates = getattr(self._task, check_choice("split", split, ("seen", "unseen")))
        chosen = templates[self._generator(f"instruction/{split}").integers(len(templates))]
        return chosen.format(**self._task.words)

    def close(self) -> None:
        self._scene = None

    # Observations and measurements

    def observe(self) -> Observation:
        scene = self._active_scene()
        qpos = scene.qpos()
        pictures = self._pictures() if self._render else {}
        views = {
            name: {"intrinsic_cv": camera.intrinsics, "extrinsic_cv": camera.extrinsics} | pictures.get(name, {})
            for name, camera in self.cameras().items()
        }
        grippers = np.clip(qpos[[6, 13]], 0.0, 1.0)
        tools = [[*scene.tcp(arm), gripper] for arm, gripper in zip(ARMS, grippers, strict=True)]
        endpose = unpack_endpose(np.concatenate(tools))
        return {"observation": views, "joint_action": {"vector": qpos}, "endpose": endpose}

    def cameras(self) -> dict[str, Camera]:
        self._active_scene()
        return self._rig.cameras()

    def tcp(self, arm: str) -> np.ndarray:
        return self._active_scene().tcp(check_choice("arm", arm, ARMS))

    def fk(self, qpos: np.ndarray) -> dict[str, np.ndarray]:
        qpos = checked_action(qpos, "qpos", self.action_dims)
        return {
            arm: self._kinematics[arm].forward(part[:6]) for arm, part in zip(ARMS, np.split(qpos, 2), strict=True)
        }

    def fingers(self) -> dict[str, list[int]]:
        return self._active_scene().fingers

    def robot_links(self) -> list[int]:
        return self._active_scene().robot_links

    def targets(self) -> dict[int, str]:
        scene = self._active_scene()
        return {scene.body_id(name): kind for name, kind in self._task.targets.items()}

    def bodies(self, of: Collection[int] | None = None) -> dict[int, Body]:
        return self._active_scene().bodies(of)

    def contacts(self, of: Collection[int] | None = None) -> list[Contact]:
        return self._active_scene().contacts(of)

    def velocities(self, of: Collection[int] | None = None) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        return self._active_scene().velocities(of)

    # A suite's part

    @abstractmethod
    def expert(self) -> ExpertPath: ...

    @abstractmethod
    def _execute(self, action: np.ndarray, mode: str) -> dict[str, bool]:
        """Simulates one control step. Returns, for each arm, whether its target was within reach."""

    @abstractmethod
    def _succeeds(self) -> bool:
        """Whether the scene fulfils the task after the latest step."""

    @abstractmethod
    def _pictures(self) -> dict[str, dict[str, np.ndarray]]:
        """The pictures of each camera."""

    # Internals

    def _active_scene(self) -> Scene:
        if self._scene is None:
            raise RuntimeError("the environment has no scene: call reset(seed) first.")
        return self._scene

    def _physics_step(self) -> None:
        self._scene.step()
        for callback in self.on_physics_step:
            callback(self)

    def _generator(self, stream: str) -> np.random.Generator:
        return scene_generator(self.task, self._base, self._seed, stream)
