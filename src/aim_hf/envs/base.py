"""The environment protocol of all simulation suites, and its data types.

The event detector, the recorder and the evaluator depend only on this file, so they run unchanged on every suite.

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
SPLITS = ("easy", "hard")  # of every suite but aloha, which is easy alone; `names.py` has tabletop's others

Arm = Literal["left", "right"]
ActionMode = Literal["ee", "qpos"]

# {"observation": {camera: {"rgb": (H, W, 3) uint8, "intrinsic_cv": (3, 3), "extrinsic_cv": (3, 4),
#                           "depth": (H, W) float32, m along the camera's axis; only if requested}},
#  "joint_action": {"vector": (14,)},
#  "endpose": {"left_endpose": (7,), "left_gripper": float, "right_endpose": (7,), "right_gripper": float}}
Observation = dict[str, Any]


class SimulatorLost(RuntimeError):
    """The simulator process died or hung. `reset` starts another."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera at one instant.

    `intrinsics` (3, 3) is in pixels of the observed picture; `extrinsics` (3, 4) maps world points to OpenCV camera
    coordinates (x right, y down, z forward). The center of pixel (column, row) is at (column + 0.5, row + 0.5).
    """

    intrinsics: np.ndarray
    extrinsics: np.ndarray
    width: int
    height: int


@dataclass(frozen=True)
class Interface:
    """The properties that a suite and a policy must share, known without opening an environment or loading a model.

    `action_dims`: action mode -> size, None if it depends on the robot. `picture_sizes`: camera -> (height, width);
    a policy lists the cameras that it uses. `fps`: control steps a second, None if unknown.
    """

    action_dims: dict[str, int | None]
    picture_sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    fps: float | None = None


@dataclass(frozen=True)
class Contact:
    """Two bodies that push each other in the latest physics step, with N contact points.

    `points` (N, 3) in the world frame; `normals` (N, 3) unit vectors; `impulses` (N, 3) in N·s, acting on `body_a`
    (on `body_b` their negative); `separations` (N,) in meters, negative where the shapes overlap. At least one point
    has an impulse. Points without impulse belong to the same contact patch, closer than a millimeter, such as the
    second edge of a face that leans on the first. Bodies that are close without an impulse are no contact.
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
    """The result of a control step.

    `success`: whether the scene fulfils the task after this step. `info` holds `step`, `step_limit` and `done`
    (success, or no steps left); a suite may add more.
    """

    observation: Observation | None = field(repr=False)
    success: bool
    info: dict[str, Any]


@dataclass(frozen=True)
class Attempt:
    """The actions `start` .. `end - 1` of an expert's path, in which `arm` approaches an object and grasps or presses
    it, pushes it along, or sets it down and retreats."""

    kind: Literal["grasp", "press", "push", "place"]
    arm: Arm
    start: int
    end: int


@dataclass(frozen=True)
class Mistake:
    """A failure in an expert's path. `offset` (T, 16), added to the actions, makes `arm` miss its object, or
    stop short of its place; `intervention` is the first action of the recovery. `hidden`: the demonstration begins
    with it, since the frames before show a contact that isn't wanted."""

    arm: Arm
    offset: np.ndarray
    intervention: int
    hidden: bool = False


@dataclass(frozen=True)
class ExpertPath:
    """The scripted expert's path: `actions` (T, 16) in the `ee` layout, one per control step.

    `key_steps` are the indices of the actions that grasp, release, press or push. They must be tracked exactly; other
    actions tolerate a perturbation of about a centimeter. `attempts` are in time order.
    """

    actions: np.ndarray
    key_steps: list[int]
    attempts: tuple[Attempt, ...] = ()
    mistake: Mistake | None = None


@dataclass(frozen=True)
class ExpertFrame:
    """A frame of a demonstration, and the action that follows it.

    `action` (16,) is the executed action in the `ee` layout; `expert_action` (16,) is the action without perturbation.
    Both are None in the last frame. `success`: whether the scene fulfils the task in this frame. `intervention`:
    whether the expert sees a mistake in this frame, and begins to recover.
    """

    observation: Observation | None
    action: np.ndarray | None
    expert_action: np.ndarray | None
    success: bool
    intervention: bool = False


class SeedRejected(RuntimeError):
    """The scene of a seed is unsuitable: it doesn't come to rest, or the suite's own expert fails on it.

    A collection counts it as a failed seed. An evaluation continues with the next seed if its protocol says so.
    `mendable`: the scene couldn't be set up, for example without an asset.
    """

    def __init__(self, seed: int, reason: str, mendable: bool = False) -> None:
        super().__init__(seed, reason, mendable)  # the arguments as given, so that the error can be pickled
        self.seed, self.reason, self.mendable = seed, reason, mendable

    def __str__(self) -> str:
        return f"seed {self.seed} is rejected: {self.reason}"


class Environment(Protocol):
    """A task in a simulator. An episode of T actions has T + 1 observations, the first one from `reset`."""

    suite: str
    task: str
    split: str
    action_dims: dict[str, int]  # by action mode, such as {"ee": 16, "qpos": 14}
    control_dt: float  # seconds a control step
    physics_dt: float  # seconds a physics step, so that force = impulse / physics_dt
    step_limit: int
    simulator: dict[str, str]  # versions and commits of the simulator, for provenance
    on_physics_step: list[Callable[[Environment], None]]  # called after every physics step

    @classmethod
    def interface(cls, split: str) -> Interface:
        """The interface of all environments of the split."""

    def reset(self, seed: int) -> Observation:
        """Sets up the scene that (task, split, seed) determine. Raises SeedRejected where a suite filters scenes."""

    def observe(self) -> Observation:
        """Renders the current scene."""

    def step(self, action: np.ndarray, mode: ActionMode = "ee", observe: bool = True) -> StepResult:
        """Executes one action. Raises ValueError for a bad action and leaves the scene as it was.

        `ee`: for each arm, left first, the absolute pose of the tool center point xyz + wxyz (world frame) and the
        gripper (0 closed .. 1 open). `qpos`: for each arm its joint angles (rad) and the gripper.
        """

    def expert(self) -> ExpertPath:
        """The expert's nominal path from the state after `reset`. Doesn't change the scene."""

    def demonstrate(
        self,
        noise: float = 0.0,
        rng: np.random.Generator | None = None,
        observe: bool = True,
        mistake_rng: np.random.Generator | None = None,
    ) -> Iterator[ExpertFrame]:
        """Runs the expert from the state after `reset`: T + 1 frames, evenly spaced in time.

        A frame is yielded before its action is executed, so that `cameras`, `bodies` and so on describe that frame.
        `noise` (m) perturbs the end effectors' paths by `rng`. With `mistake_rng` the expert fails once to
        grasp, press, push or place an object, and recovers; until then `expert_action` is the path without the miss.
        Where an object was placed wrongly, the demonstration begins with the recovery. Raises ValueError if the suite
        doesn't support one of them, SeedRejected if the arm that was to miss reaches the object or the recovery takes
        too long. Without `observe`, frames have no observation.
        """

    def instruction(self, split: Literal["seen", "unseen"] = "seen") -> str:
        """An instruction for the task, chosen by the seed. `unseen` templates are not used in training."""

    def cameras(self) -> dict[str, Camera]:
        """All cameras in their current poses."""

    def tcp(self, arm: Arm) -> np.ndarray:
        """The measured pose (7,) of an arm's tool center point."""

    def fk(self, qpos: np.ndarray) -> dict[str, np.ndarray]:
        """Forward kinematics: arm -> pose (7,) of its tool center point at the joint positions of a `qpos` action."""

    def fingers(self) -> dict[str, list[int]]:
        """Arm -> ids of the bodies that are its fingers."""

    def robot_links(self) -> list[int]:
        """The ids of all bodies of the robot, including the fingers. They can't support a placed object."""

    def targets(self) -> dict[int, str]:
        """Body id -> "press" or "push" if the task requires closed fingers to press it, or to push it along; "insert"
        if it requires a held body to be inserted in it. May be empty."""

    def bodies(self, of: Collection[int] | None = None) -> dict[int, Body]:
        """All rigid bodies by id, or only the bodies `of`. Ids are valid for one episode."""

    def contacts(self, of: Collection[int] | None = None) -> list[Contact]:
        """The contacts of the latest physics step, or only those of the bodies `of`."""

    def velocities(self, of: Collection[int] | None = None) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """The linear (3,) velocity (m/s) and angular (3,) velocity (rad/s) of the bodies `of`, or of all."""

    def close(self) -> None:
        """Frees the simulator's resources."""
