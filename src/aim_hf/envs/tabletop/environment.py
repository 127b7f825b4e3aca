"""The environment of the tabletop suite, which implements the protocol of `envs.base`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
import sapien

from ...utils.provenance import running_version
from ..base import ARMS, ExpertFrame, ExpertPath, Observation, SeedRejected
from ..demonstration import play_path
from ..in_process import InProcessEnvironment
from ..names import check_split
from ..renderers import use_renderer
from ..seeds import check_seed, scene_generator
from . import robot
from .cameras import NO_DEVICE, SIZES, CameraRig, RendererMissing
from .kinematics import ArmKinematics
from .mistakes import HELD, with_mistake
from .motion import OPEN, home_poses
from .perturbations import Perturbation, perturb, reworded
from .randomization import add_clutter, sample_look
from .scene import PHYSICS_DT, ArmBuilders, TabletopScene
from .tasks import TASKS

PHYSICS_STEPS = 20  # per control step
_SETTLING_STEPS = 25
_LARGEST_JOINT_CHANGE = 0.5  # rad per control step, which limits the speed towards far targets
_LARGEST_FINGER_CHANGE = 0.02  # m per control step: fingers close within three steps


class TabletopEnvironment(InProcessEnvironment):
    """One task of the tabletop suite; see `envs.base.Environment` for the methods' contracts.

    `split`: easy, hard, or one of `names.PERTURBATIONS`, described in `perturbations.py`. On the splits `delay-*`,
    `step` executes the action given some steps before, at first the start pose, and `info["reached"]` refers to the
    executed one.

    A control step takes 0.08 s.

    In observations, `endpose` is the measured pose of the tool center point, and `joint_action/vector` holds measured
    positions. With `render=False` observations have no `rgb`, and neither Vulkan nor a GPU is needed. With
    `depth=True` each camera also has `depth`. `sizes`: camera -> (width, height) of its pictures.

    Raises ValueError for an unknown task or split, RendererMissing if pictures are requested but can't be rendered.
    """

    suite = "tabletop"
    control_dt = PHYSICS_STEPS * PHYSICS_DT
    physics_dt = PHYSICS_DT
    sizes = SIZES

    def __init__(
        self,
        task: str,
        split: str = "easy",
        render: bool = True,
        depth: bool = False,
        sizes: dict[str, tuple[int, int]] = SIZES,
    ) -> None:
        axis, _, strength = check_split(self.suite, split).partition("-")
        super().__init__(task, split, "easy" if strength else split, TASKS, render, depth, sizes)
        self._axis, self._strength = (axis, int(strength)) if strength else (None, 0)  # of the perturbation
        self.step_limit = TASKS[task].step_limit
        self.simulator = {"sapien": sapien.__version__, "aim_hf": running_version()}
        if render:
            use_renderer(self)
            _use_fast_shader()
        self._arm_builders = ArmBuilders(visual=render)
        scene = TabletopScene(self._arm_builders, visual=render)
        self._kinematics = {arm: ArmKinematics(scene.arms[arm]) for arm in ARMS}
        neutral = np.zeros(6)
        self._home = {arm: self._kinematics[arm].inverse(pose, neutral)[0] for arm, pose in home_poses().items()}

    # Episodes

    def reset(self, seed: int) -> Observation:
        """Sets up the scene of (task, split, seed). Raises ValueError for a seed outside `envs.seeds.SEED_RANGES`."""
        self._seed = check_seed(seed)
        # A new scene for every episode, because caches of a used scene would change results by rounding.
        if self._axis:
            change = perturb(self._axis, self._strength, self._axis_generator("perturbation"))
        else:
            change = Perturbation(sample_look(self.split, self._generator("look")))
        look, clutter = change.look, self._generator("clutter")
        scene = TabletopScene(self._arm_builders, self._render, change.paint, change.scale)
        scene.add_table(look.table_color, look.table_offset, look.table_texture)
        self._task = TASKS[self.task]()
        self._task.build(scene, self._base, self._generator("objects"))
        wanted = clutter.integers(2, 6) if self.split == "hard" else change.distractors
        add_clutter(scene, wanted, self._task.keep_clear, clutter)
        scene.add_floor(look.floor_color)
        self._tint = look.tint
        self._rig = CameraRig(scene, look.head_jitter, self._sizes)
        self._scene = scene
        self._step = 0
        self._joints = {arm: joints.copy() for arm, joints in self._home.items()}
        self._fingers = {arm: OPEN * robot.FINGER_STROKE for arm in ARMS}
        start = np.concatenate([[*self._joints[arm], OPEN] for arm in ARMS])
        self._waiting = deque([(start, "qpos")] * change.delay)
        for arm, articulation in scene.arms.items():
            articulation.qpos = np.concatenate([self._joints[arm], [self._fingers[arm]] * 2])
            for joint, target in zip(articulation.active_joints, articulation.qpos, strict=True):
                joint.set_drive_target(target)
        for _ in range(_SETTLING_STEPS):
            scene.step()
        return self.observe()

    def expert(self) -> ExpertPath:
        self._active_scene()
        return self._task.expert()

    def demonstrate(
        self,
        noise: float = 0.0,
        rng: np.random.Generator | None = None,
        observe: bool = True,
        mistake_rng: np.random.Generator | None = None,
    ) -> Iterator[ExpertFrame]:
        """As `Environment.demonstrate`. The expert acts without delay on the splits `delay-*` too."""
        self._waiting.clear()
        path = self.expert()
        if mistake_rng is not None and path.attempts:
            path = with_mistake(path, mistake_rng)
            if len(path.actions) > self.step_limit:
                raise SeedRejected(self._seed, f"with a mistake, {self.task} takes more than {self.step_limit} steps")
        for frame in play_path(self, path, noise, rng, observe):
            if frame.intervention:
                held = not path.mistake.hidden and self._active_scene().gripper(path.mistake.arm) > HELD
                if frame.success or held:
                    raise SeedRejected(self._seed, "the arm that was to miss its object has reached it")
            yield frame

    def instruction(self, split: str = "seen") -> str:
        """As `Environment.instruction`. On the splits `wording-*` the sentence is the perturbation's, whatever `split`
        is."""
        sentence = super().instruction(split)
        if self._axis == "wording":
            chosen = reworded(self._task, self._strength, self._axis_generator("instruction"))
            sentence = chosen.format(**self._task.words)
        return sentence

    # Internals

    def _execute(self, action: np.ndarray, mode: str) -> dict[str, bool]:
        self._waiting.append((action, mode))
        action, mode = self._waiting.popleft()
        joints, fingers, reached = {}, {}, {}
        for arm, part in zip(ARMS, np.split(action, 2), strict=True):
            if mode == "ee":
                wanted, reached[arm] = self._kinematics[arm].inverse(part[:7], self._joints[arm])
            else:
                wanted = np.clip(part[:6], robot.JOINT_LIMITS[:, 0], robot.JOINT_LIMITS[:, 1])
                reached[arm] = bool(np.array_equal(wanted, part[:6]))
            change = wanted - self._joints[arm]
            change *= min(1.0, _LARGEST_JOINT_CHANGE / max(np.abs(change).max(), 1e-9))
            joints[arm] = self._joints[arm] + change
            opening = np.clip(part[-1], 0.0, 1.0) * robot.FINGER_STROKE
            fingers[arm] = self._fingers[arm] + np.clip(
                opening - self._fingers[arm], -_LARGEST_FINGER_CHANGE, _LARGEST_FINGER_CHANGE
            )
        self._simulate(joints, fingers)
        return reached

    def _succeeds(self) -> bool:
        return self._task.success(self._scene)

    def _pictures(self) -> dict[str, dict[str, np.ndarray]]:
        use_renderer(self)
        return self._rig.pictures(self._tint, self._depth)

    def _axis_generator(self, stream: str) -> np.random.Generator:
        """A generator that is the same for all strengths of an axis."""
        return scene_generator(self.task, self._axis, self._seed, stream)

    def _simulate(self, joints: dict[str, np.ndarray], fingers: dict[str, float]) -> None:
        """Moves the drive targets linearly to the given ones over a control step."""
        scene = self._scene
        start = np.concatenate([[*self._joints[arm], self._fingers[arm], self._fingers[arm]] for arm in ARMS])
        end = np.concatenate([[*joints[arm], fingers[arm], fingers[arm]] for arm in ARMS])
        drives = [joint for arm in ARMS for joint in scene.arms[arm].active_joints]
        for joint, speed in zip(drives, (end - start) / self.control_dt, strict=True):
            joint.set_drive_velocity_target(speed)
        for targets in np.linspace(start, end, PHYSICS_STEPS + 1)[1:].tolist():
            for joint, target in zip(drives, targets, strict=True):
                joint.set_drive_target(target)
            self._physics_step()
        self._joints, self._fingers = joints, fingers


def _use_fast_shader() -> None:
    """Selects the unlit shader. Raises RendererMissing without a device to render with."""
    try:
        sapien.render.RenderSystem()
    except RuntimeError as error:
        raise RendererMissing(NO_DEVICE) from error
    sapien.render.set_camera_shader_dir("trivial")
    sapien.render.set_viewer_shader_dir("trivial")
