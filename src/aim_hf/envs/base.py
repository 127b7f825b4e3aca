"""What every simulation suite offers: the environment protocol and its plain data types.

The annotator, the recorder and the evaluator depend on this file alone, so they run unchanged on every suite.

Conventions: world frame with x to the right, y away from the robot, z up, in meters; quaternions are wxyz; a pose is
seven numbers, xyz then wxyz; pictures are uint8 RGB of shape (height, width, 3).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

ARMS = ("left", "right")
CAMERAS = ("head_camera", "left_camera", "right_camera")
SPLITS = ("easy", "hard")

Arm = Literal["left", "right"]
ActionMode = Literal["ee", "qpos"]

# {"observation": {camera: {"rgb": (H, W, 3) uint8, "intrinsic_cv": (3, 3), "extrinsic_cv": (3, 4),
#                           "depth": (H, W) float32, m along the camera's axis; only where it was asked for}},
#  "joint_action": {"vector": (14,)},
#  "endpose": {"left_endpose": (7,), "left_gripper": float, "right_endpose": (7,), "right_gripper": float}}
Observation = dict[str, Any]


class SimulatorLost(RuntimeError):
    """The process that simulates died or hung. The environment can be reset: that starts another."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera at one instant.

    `intrinsics` (3, 3) is in pixels of the observed picture; `extrinsics` (3, 4) maps world points to OpenCV camera
    coordinates (x right, y down, z forward). Pixel (column, row) has its centre at (column + 0.5, row + 0.5).
    """

    intrinsics: np.ndarray
    extrinsics: np.ndarray
    width: int
    height: int


@dataclass(frozen=True)
class Interface:
    """What a suite and a policy must agree on, known without opening an environment or loading a network.

    `action_dims`: by action mode, None where a mode has as many numbers as the robot. `picture_sizes`: camera ->
    (height, width); a policy names the cameras that it looks at. `fps`: control steps a second, None if unknown.
    """

    action_dims: dict[str, int | None]
    picture_sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    fps: float | None = None


@dataclass(frozen=True)
class Contact:
    """Two bodies that push each other in the latest physics step, with N contact points.

    `points` (N, 3) in the world frame; `normals` (N, 3) unit vectors; `impulses` (N, 3) in N·s, acting on `body_a`
    (on `body_b` their negative); `separations` (N,) in meters, negative where the shapes overlap. At least one point
    has an impulse; the others are the rest of the patch, within a millimeter: a face that leans on one edge still
    has both. Bodies that are merely close are no contact.
    """

    body_a: int
    body_b: int
    points: np.ndarray
    normals: np.ndarray
    impulses: np.ndarray
    separations: np.ndarray


@dataclass(frozen=True)
class Body:
    """One rigid body. `pose` (7,); `dynamic` is True for the objects that a robot can move, False for the table,
    other fixed things and the robot's own links."""

    name: str
    pose: np.ndarray
    dynamic: bool


@dataclass(frozen=True)
class StepResult:
    """What a control step brought about.

    `success` tells whether the scene fulfils the task *now*. `info` holds `step`, `step_limit` and `done` (success, or
    no steps left); a suite may add more.
    """

    observation: Observation | None
    success: bool
    info: dict[str, Any]


@dataclass(frozen=True)
class ExpertPath:
    """The scripted expert's nominal path: `actions` (T, 16) in the `ee` layout, one a control step.

    `key_steps` are the indices of the actions that grasp, release, press or push: there the path must be tracked
    exactly, while elsewhere it bears a perturbation of about a centimeter.
    """

    actions: np.ndarray
    key_steps: list[int]


@dataclass(frozen=True)
class ExpertFrame:
    """A frame of a demonstration, and the action that follows it.

    `action` (16,) is what is executed next, in the `ee` layout; `expert_action` (16,) what the expert wanted: the two
    differ where the demonstration is perturbed. Both are None in the last frame. `success` tells whether the scene
    fulfils the task in this frame.
    """

    observation: Observation | None
    action: np.ndarray | None
    expert_action: np.ndarray | None
    success: bool


class SeedRejected(RuntimeError):
    """The scene of a seed is no fair one: it doesn't come to rest, or the suite's own expert fails on it.

    A collector counts it as a failed seed; an evaluation whose protocol says so goes on to the next one.
    """

    def __init__(self, seed: int, reason: str) -> None:
        super().__init__(f"seed {seed} is rejected: {reason}")
        self.seed, self.reason = seed, reason


class Environment(Protocol):
    """A task in a simulator. An episode of T actions has T + 1 observations, the first one from `reset`."""

    suite: str
    task: str
    split: str
    action_dims: dict[str, int]  # by action mode, such as {"ee": 16, "qpos": 14}
    control_dt: float  # seconds a control step
    physics_dt: float  # seconds a physics step, so that force = impulse / physics_dt
    step_limit: int
    simulator: dict[str, str]  # versions and commits of what simulates, for the record
    on_physics_step: list[Callable[[Environment], None]]  # called after every physics step

    @classmethod
    def interface(cls, split: str) -> Interface:
        """What all environments of the split have in common."""

    def reset(self, seed: int) -> Observation:
        """Sets up the scene that (task, split, seed) determine. Raises SeedRejected where a suite filters scenes."""

    def observe(self) -> Observation:
        """Renders the scene as it is now."""

    def step(self, action: np.ndarray, mode: ActionMode = "ee", observe: bool = True) -> StepResult:
        """Executes one action. Raises ValueError for a bad action and leaves the scene as it was.

        `ee`: for each arm, left first, the absolute pose of the tool center point xyz + wxyz (world frame) and the
        gripper (0 closed .. 1 open). `qpos`: for each arm its joint angles (rad) and the gripper.
        """

    def expert(self) -> ExpertPath:
        """The expert's nominal path for the scene as it was reset. The scene stays as it was."""

    def demonstrate(
        self, noise: float = 0.0, rng: np.random.Generator | None = None, observe: bool = True
    ) -> Iterator[ExpertFrame]:
        """Lets the expert act on the scene as it was reset: T + 1 frames, evenly spaced in time.

        A frame is yielded before its action is executed, while `cameras`, `bodies` and the rest tell of that frame.
        `noise` (m) perturbs the tools' paths by `rng`, where the suite's expert can be perturbed; ValueError else.
        Without `observe` the frames have no observation.
        """

    def instruction(self, split: Literal["seen", "unseen"] = "seen") -> str:
        """A sentence that tells the task, decided by the seed; `unseen` templates are kept out of training."""

    def cameras(self) -> dict[str, Camera]:
        """Each camera as it stands now."""

    def tcp(self, arm: Arm) -> np.ndarray:
        """The measured pose (7,) of an arm's tool center point."""

    def fk(self, qpos: np.ndarray) -> dict[str, np.ndarray]:
        """Each arm's tool center point (7,) at the joint positions of a `qpos` action."""

    def fingers(self) -> dict[str, list[int]]:
        """The ids of the bodies that are an arm's fingers."""

    def robot_links(self) -> list[int]:
        """The ids of all the bodies that the robot is made of, fingers included: none of them supports an object."""

    def press_targets(self) -> list[int]:
        """The ids of the bodies that this task wants pressed with closed fingers; empty where it wants none."""

    def push_targets(self) -> list[int]:
        """The ids of the bodies that this task wants pushed along with closed fingers; empty where it wants none."""

    def bodies(self, of: Collection[int] | None = None) -> dict[int, Body]:
        """Every rigid body by id, or only the bodies `of`. Ids hold for one episode."""

    def contacts(self, of: Collection[int] | None = None) -> list[Contact]:
        """The contacts of the latest physics step, or only those that one of the bodies `of` takes part in."""

    def velocities(self, of: Collection[int] | None = None) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """The linear (3,) velocity (m/s) and angular (3,) velocity (rad/s) of the bodies `of`, or of all."""

    def close(self) -> None:
        """Frees the simulator's resources."""
