"""The environment of the robotwin suite, which implements the protocol of `envs.base` with RoboTwin's tasks."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import yaml

from ...utils.checks import check_choice, check_positive, naming
from ...utils.files import reading
from ...utils.provenance import source_commit
from ..actions import checked_action
from ..base import (
    ARMS,
    CAMERAS,
    Body,
    Camera,
    Contact,
    ExpertFrame,
    ExpertPath,
    Interface,
    Observation,
    SeedRejected,
    SimulatorLost,
    StepResult,
)
from ..names import check_split
from ..poses import along_tools, unpack_endpose
from ..seeds import SEED_RANGES, scene_generator
from .client import START_TIMEOUT, Answer, Client, OperationFailed, RoboTwinMissing, SceneBroken
from .installation import ASSETS, PACKAGE, PYTHON, ROOT, find_configs, find_installation
from .tasks import CONFIGS, OFFICIAL, TARGETS, TASKS, simulator_seed

JointPaths = dict[str, list[tuple[np.ndarray, np.ndarray]]]  # arm -> positions and velocities (steps, J) of each move

_D435, _SAVE_FREQ = (240, 320), 15  # RoboTwin's (height, width) of cameras; physics steps between frames
FRAME_BEHIND_TCP = 0.12  # m along the tool's x axis from RoboTwin's `ee` poses to the tool center point

_PLAYED = "with the expert's play"
_EMBODIMENT, _SHADER, _PLANNER = "ROBOTWIN_EMBODIMENT", "ROBOTWIN_SHADER", "ROBOTWIN_PLANNER"  # variables
PLANNERS = ("curobo", "cpu")


class _SetVariable(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: str | list[str], option_string: Any = None) -> None:
        os.environ[self.const] = values if isinstance(values, str) else " ".join(values)


def _given_settings() -> dict[str, str]:
    """The settings in environment variables, without those that are empty. Raises ValueError for bad ones."""
    variables = {"shader": _SHADER, "embodiment": _EMBODIMENT, "planner": _PLANNER}
    words = {name: os.environ.get(variable, "").split() for name, variable in variables.items()}
    given = {name: " ".join(of) for name, of in words.items() if of}
    check_choice("planner", given.get("planner", OFFICIAL["planner"]), PLANNERS)
    _embodiment(given.get("embodiment", ""))
    return given


def chosen_settings(suite: str) -> dict[str, str]:
    """The settings in environment variables that differ from official runs, for records of a run's settings; {} for
    other suites than robotwin. Raises ValueError for bad ones."""
    given = _given_settings() if suite == "robotwin" else {}
    return {name: value for name, value in given.items() if value != OFFICIAL[name]}


def add_robotwin_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options for RoboTwin. They set environment variables, which workers inherit."""
    for option, variable, meaning, extra in (
        ("root", ROOT, f"folder of a RoboTwin 2.0 checkout; without one, {PACKAGE} is used", {}),
        ("python", PYTHON, "Python interpreter that RoboTwin is installed in", {}),
        ("assets", ASSETS, "folder that contains RoboTwin's assets/; without one, the checkout's", {}),
        ("shader", _SHADER, "SAPIEN's shader pack, on a CPU trivial; without one, RoboTwin's ray tracing", {}),
        ("embodiment", _EMBODIMENT, "one robot, or two and their distance in meters", {"nargs": "+"}),
        ("planner", _PLANNER, "RoboTwin's curobo, or cpu, which needs no GPU", {"choices": PLANNERS}),
    ):
        text = f"{meaning}; default: {variable}"
        # Without a default, so that a parser for dataclasses finds nothing left over.
        extra |= {"action": _SetVariable, "const": variable, "default": argparse.SUPPRESS, "help": text}
        parser.add_argument(f"--robotwin_{option}", **extra)


@dataclass(frozen=True)
class _Sample:
    """The bodies after one physics step: `poses` (B, 7), `velocities` (B, 6), and their contacts."""

    poses: np.ndarray
    velocities: np.ndarray
    contacts: list[Contact]


@dataclass(frozen=True)
class _Moment:
    """All measurements at one instant. `tools` (2, 8): each arm's TCP pose and commanded gripper."""

    sample: _Sample
    tools: np.ndarray
    cameras: dict[str, Camera]


@dataclass(frozen=True)
class _Frame:
    """A frame of the expert's demonstration, with a sample of each physics step since the last frame."""

    moment: _Moment
    observation: Observation | None
    success: bool
    samples: list[_Sample]


class RoboTwinEnvironment:
    """One task of RoboTwin 2.0; see `envs.base.Environment` for the methods' contracts.

    RoboTwin runs in its own process and interpreter, which `reset` starts again if it was lost. Split `easy` is
    RoboTwin's config `demo_clean`, `hard` its `demo_randomized`.

    Args:
        root: a checkout; default: the environment variable ROBOTWIN_ROOT. Without one, RoboTwin is the pip package
            rlinf-robotwin-runtime in the interpreter.
        python: the interpreter that RoboTwin is installed in; default: ROBOTWIN_PYTHON.
        assets: the folder that contains `assets/`; default: ROBOTWIN_ASSETS_ROOT, otherwise the checkout.
        embodiment: one robot of RoboTwin's `_embodiment_config.yml`, or two robots and the distance between them in
            meters, such as ["franka-panda", "franka-panda", 0.6]; default: ROBOTWIN_EMBODIMENT, otherwise as in the
            config.
        shader: SAPIEN's shader pack for the cameras; default: ROBOTWIN_SHADER, otherwise RoboTwin's ray tracing, which
            never finishes on a CPU: take "trivial" there. Pictures then differ from those of official results.
        planner: "curobo", RoboTwin's own, or "cpu", this project's, which needs no GPU (`cpu_planner.py`); default:
            ROBOTWIN_PLANNER, otherwise "curobo".
        depth: add `depth` (H, W) float32 in meters to observations.
        timeout: seconds without an answer after which the simulator counts as hung.

    Seeds: `tasks.simulator_seed` maps a seed to RoboTwin's. With a training seed, `reset` only sets up the scene, as
    RoboTwin's collection does. With any other seed it follows RoboTwin's evaluation: it sets up the scene, runs the
    expert, raises SeedRejected if the expert fails, and sets up the scene again. That demonstration is kept for
    `demonstrate(observe=False)` and `expert()`. Another `reset` of the same seed before any action reuses the scene.
    Scenes of evaluation seeds have the textures that RoboTwin reserves for evaluation.

    Differences from `tabletop`:
        - `joint_action/vector` of an observation holds drive targets, with grippers as commanded. `endpose` is the
          measured pose of the tool center point.
        - A control step takes as long as the motion that RoboTwin's planner finds, `info["physics_steps"]`;
          `control_dt` is that of the expert.
        - An episode ends with success.
        - `on_physics_step` is called after the action, once for each of its physics steps. `bodies`,
          `velocities` and `contacts` are those of the physics step, `contacts` only of bodies that the fingers have
          touched in the episode; `tcp` and `cameras` are those at the end of the action.

    Difference from RoboTwin's own runs: in `hard` scenes of dump_bin_bigbin and put_bottles_dustbin, clutter lies in
    the region of a first scene. RoboTwin shifts that region from scene to scene.

    After a demonstration, `own_states` (T, D + 14) holds the states at the frames of RoboTwin's own collection, which
    are taken before and after each move and every 15 physics steps in between: the joints' targets, then the measured
    poses of the left and the right arm, 0.12 m behind the tool center points.

    Raises:
        ValueError: for an unknown task or split or a bad option.
        RoboTwinMissing: if requirements are missing; lists them with their remedies.
        RoboTwinError: if RoboTwin's code fails.
    """

    suite = "robotwin"
    physics_dt = 1 / 250

    def __init__(
        self,
        task: str,
        split: str = "easy",
        root: str | os.PathLike | None = None,
        python: str | os.PathLike | None = None,
        assets: str | os.PathLike | None = None,
        embodiment: list[str | float] | None = None,
        shader: str | None = None,
        planner: str | None = None,
        depth: bool = False,
        timeout: float = 300.0,
    ) -> None:
        self.task, self.split = check_choice("task", task, TASKS), check_split(self.suite, split)
        self.on_physics_step: list[Callable[[RoboTwinEnvironment], None]] = []
        given = _given_settings()
        self._options = {
            "embodiment": embodiment or _embodiment(given.get("embodiment", "")),
            "shader": shader or given.get("shader"),
            "planner": check_choice("planner", planner or given.get("planner", OFFICIAL["planner"]), PLANNERS),
            "depth": depth,
        }
        self._installation = find_installation(root, python, assets, task)
        self._timeout = timeout
        self._client: Client | None = None
        self._moment: _Moment | None = None
        self._seed: int | None = None
        self._untouched = False  # whether the scene is still as `_set_up` left it
        self._ended: str | None = None  # how the episode ended
        self._info: dict[str, str] | None = None  # the expert's description of this seed's scene, for instructions
        self._recording: list[_Frame] | None = None  # the expert's demonstration
        self._paths: JointPaths | None = None  # that the expert follows
        self.own_states: np.ndarray | None = None
        self._start()

    @classmethod
    def interface(cls, split: str) -> Interface:
        """By the configuration of the RoboTwin that environment variables name; RoboTwin's defaults without one."""
        sizes, every = [_D435] * len(CAMERAS), _SAVE_FREQ
        if (configs := find_configs()) is not None:
            with reading(configs, "restore RoboTwin's configuration"):
                config, cameras = (_read_yaml(configs / f"{name}.yml") for name in (CONFIGS[split], "_camera_config"))
                kinds = [cameras[config["camera"][f"{kind}_camera_type"]] for kind in ("head", "wrist", "wrist")]
                sizes, every = [(kind["h"], kind["w"]) for kind in kinds], config["save_freq"]
        fps = 1 / (every * cls.physics_dt)
        return Interface({"ee": 16, "qpos": None}, dict(zip(CAMERAS, sizes, strict=True)), fps)

    # Episodes

    def reset(self, seed: int) -> Observation:
        """Sets up the scene of (task, split, seed).

        Raises ValueError for a seed that `tasks.simulator_seed` refuses, SeedRejected for a scene that RoboTwin's own
        scripts skip.
        """
        own_seed = simulator_seed(seed)
        if self._client is None:
            self._start()
        if self._untouched and seed == self._seed:
            self._moment, self._ended = self._first_moment, None
            return deepcopy(self._first_observation)
        if seed != self._seed:
            self._info = self._recording = None
        self._seed, self._own_seed = seed, own_seed
        if self._info is None and seed not in SEED_RANGES["train"]:
            self._set_up(observe=False)
            recording = list(self._play(observe=False, record=True))
            if not recording[-1].success:
                self._reject("the expert doesn't fulfil the task")
            self._recording = recording
        self._first_observation = self._set_up(observe=True)
        return deepcopy(self._first_observation)

    def step(self, action: np.ndarray, mode: str = "ee", observe: bool = True) -> StepResult:
        """Executes one action.

        `info["reached"]`: arm -> whether RoboTwin's planner found a path to the target; otherwise the arm didn't move.
        `info["physics_steps"]`: duration of the action. Raises ValueError for a bad action or mode, RuntimeError
        before `reset` and after the end of the episode.
        """
        self._active_moment()
        action = checked_action(action, mode, self.action_dims)
        if self._ended is not None:
            raise RuntimeError(f"the episode has ended {self._ended}: call reset(seed).")
        self._untouched = False
        command = along_tools(action, -FRAME_BEHIND_TCP) if mode == "ee" else action
        header, arrays = self._ask(
            "step", {"action": command}, mode=mode, observe=observe, record=bool(self.on_physics_step)
        )
        self._step += 1
        moment = self._unpack_moment(arrays)
        self._replay(moment, self._unpack_samples(arrays, "steps/"))
        self._moment = moment
        success = header["success"]
        if success:
            self._ended = "with success"
        elif self._step >= self.step_limit:
            self._ended = f"after its {self.step_limit} steps"
        info = {
            "step": self._step,
            "step_limit": self.step_limit,
            "done": self._ended is not None,
            "reached": header["reached"],
            "physics_steps": header["physics_steps"],
        }
        return StepResult(self._unpack_observation(arrays) if observe else None, success, info)

    def expert(self) -> ExpertPath:
        """The path of a demonstration."""
        self._require_untouched()
        frames = self._recording
        if frames is None:
            frames = list(self._play(observe=False, record=False))
            self._set_up(observe=False)
        grippers = np.array([frame.moment.tools[:, 7] for frame in frames])
        moved = np.any(np.diff(grippers, axis=0) != 0, axis=1)
        return ExpertPath(np.array([_reaching(frame) for frame in frames[1:]]), np.flatnonzero(moved).tolist())

    def demonstrate(
        self,
        noise: float = 0.0,
        rng: np.random.Generator | None = None,
        observe: bool = True,
        mistake_rng: np.random.Generator | None = None,
    ) -> Iterator[ExpertFrame]:
        """Runs RoboTwin's expert. Yields a frame every 15 physics steps (`save_freq`), and the final frame.

        An action holds the TCP poses of the next frame and the commanded grippers. Raises ValueError for noise and
        mistakes, which RoboTwin's expert doesn't support, SeedRejected if the expert finds no path.
        """
        if noise or mistake_rng is not None:
            raise ValueError(
                f"noise={noise} and mistakes can't be added: RoboTwin's expert plans as it moves; pass noise=0 and no "
                "mistake_rng."
            )
        self._require_untouched()
        return self._demonstrate(observe)

    def _demonstrate(self, observe: bool) -> Iterator[ExpertFrame]:
        self._ended = _PLAYED
        if self._recording is not None and not observe:
            frames = (frame for frame in self._recording)
        else:
            frames = self._play(observe, record=bool(self.on_physics_step))
        with closing(frames):
            current = next(frames)
            for following in frames:
                self._moment = current.moment
                action = _reaching(following)
                yield ExpertFrame(current.observation, action, action, current.success)
                self._replay(following.moment, following.samples)
                current = following
            self._moment = current.moment
            yield ExpertFrame(current.observation, None, None, current.success)

    def follow(self, paths: JointPaths | None) -> None:
        """Lets the expert follow recorded joint paths in later demonstrations instead of planning; None ends that.

        RoboTwin's collection plans an episode first, and follows the plan again when it saves pictures.

        Raises ValueError for paths of another robot.
        """
        for arm, joints in zip(ARMS, self._arm_joints, strict=True):
            for index, (position, velocity) in enumerate(paths[arm] if paths else ()):
                if not position.shape == velocity.shape == (len(position), joints):
                    raise ValueError(
                        f"path {index} of the {arm} arm has positions {position.shape} and velocities "
                        f"{velocity.shape}; expected (steps, {joints}) of both."
                    )
        self._paths = paths

    def recorded_states(self, path: Path) -> np.ndarray:
        """The states in an HDF5 file of RoboTwin's collection, in the order of `own_states`.

        Raises ValueError for a file that isn't one, RoboTwinMissing without h5py.
        """
        if self._client is None:
            self._start()
        return self._ask("recorded", path=str(path.resolve()))[1]["own"]

    @property
    def description(self) -> dict[str, str]:
        """RoboTwin's description of the scene after the expert's play: the names that its instructions fill in."""
        return dict(self._info or {})

    def instruction(self, split: str = "seen") -> str:
        """An instruction of RoboTwin's own generator, chosen by the seed; the task's name if there is none.

        Raises RuntimeError for a training seed before `demonstrate`, because RoboTwin derives instructions from the
        expert's actions.
        """
        self._active_moment()
        check_choice("split", split, ("seen", "unseen"))
        if self._info is None:
            raise RuntimeError(
                "RoboTwin words a scene by the actions of its expert, which hasn't acted yet: run demonstrate() "
                "first, or take a seed for evaluation."
            )
        header, _ = self._ask("instructions", info=self._info, split=split, seed=self._own_seed)
        found = header["instructions"] or [self.task]
        generator = scene_generator(self.task, self.split, self._seed, f"instruction/{split}")
        return found[generator.integers(len(found))]

    def close(self) -> None:
        if self._client is not None:
            self._client.kill()
        self._client = self._moment = None
        self._untouched = False

    # Observations and measurements

    def observe(self) -> Observation:
        self._active_moment()
        if self._untouched and self._ended is not None:
            raise RuntimeError("the expert's play was recorded without pictures: call reset(seed), then observe.")
        return self._unpack_observation(self._ask("observe")[1])

    def cameras(self) -> dict[str, Camera]:
        return dict(self._active_moment().cameras)

    def tcp(self, arm: str) -> np.ndarray:
        return self._active_moment().tools[ARMS.index(arm), :7].copy()

    def fk(self, qpos: np.ndarray) -> dict[str, np.ndarray]:
        self._active_moment()
        qpos = checked_action(qpos, "qpos", self.action_dims)
        _, arrays = self._ask("fk", {"qpos": qpos}, split=self._arm_joints[0] + 1)
        return dict(zip(ARMS, arrays["tcp"], strict=True))

    def fingers(self) -> dict[str, list[int]]:
        self._active_moment()
        return self._scene["fingers"]

    def robot_links(self) -> list[int]:
        self._active_moment()
        return self._scene["robot_links"]

    def targets(self) -> dict[int, str]:
        self._active_moment()
        return dict.fromkeys(self._scene["targets"], self._target_kind)

    def bodies(self, of: Collection[int] | None = None) -> dict[int, Body]:
        scene, poses = self._scene, self._active_moment().sample.poses
        return {
            body: Body(name, pose, dynamic)
            for body, name, pose, dynamic in zip(scene["ids"], scene["names"], poses, scene["dynamic"], strict=True)
            if of is None or body in of
        }

    def contacts(self, of: Collection[int] | None = None) -> list[Contact]:
        contacts = self._active_moment().sample.contacts
        return [contact for contact in contacts if of is None or contact.body_a in of or contact.body_b in of]

    def velocities(self, of: Collection[int] | None = None) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        scene, velocities = self._scene, self._active_moment().sample.velocities
        return {
            body: (velocity[:3], velocity[3:])
            for body, velocity in zip(scene["ids"], velocities, strict=True)
            if of is None or body in of
        }

    # Internals

    def _start(self) -> None:
        found = self._installation
        self._client = Client(found.python, found.code, found.assets, found.is_package)
        self._starting = True  # until the first scene is set up, which warms up the planner
        request = {"task": self.task, "config": CONFIGS[self.split], "configs": str(found.configs)}
        target, self._target_kind = TARGETS.get(self.task, (None, None))
        try:
            facts, _ = self._ask("open", target=target, **request, **self._options)
        except SimulatorLost as error:
            raise RoboTwinMissing(f"the interpreter {found.python!r} can't run the worker: {error}") from error
        if not found.is_package:
            self.simulator = {"robotwin": source_commit(found.code) or "no git checkout"}
        else:
            self.simulator = {"robotwin": f"{PACKAGE} {facts['package_version']}"}
        self.simulator |= facts["made_with"] | facts["versions"]
        self._arm_joints = facts["arm_joints"]
        self.action_dims = {"ee": 16, "qpos": sum(self._arm_joints) + 2}
        self.step_limit = facts["step_limit"]
        self.control_dt = facts["save_freq"] * self.physics_dt
        self._sizes = dict(zip(CAMERAS, facts["sizes"], strict=True))

    def _set_up(self, observe: bool) -> Observation | None:
        self._moment, self._untouched = None, False
        evaluation = self._seed in SEED_RANGES["evaluation"]
        try:
            self._scene, arrays = self._ask("setup", seed=self._own_seed, evaluation=evaluation, observe=observe)
        except OperationFailed as error:
            self._reject(str(error), mendable=isinstance(error, SceneBroken))
        self._starting = False
        self._moment = self._first_moment = self._unpack_moment(arrays)
        self._untouched, self._ended, self._step = True, None, 0
        return self._unpack_observation(arrays) if observe else None

    def _play(self, observe: bool, record: bool) -> Iterator[_Frame]:
        """Runs the expert on the scene that has just been set up."""
        self._untouched, self._ended, waiting = False, _PLAYED, True
        paths, counts = self._paths or {}, self._paths and {arm: len(of) for arm, of in self._paths.items()}
        arrays = {
            f"{arm}/{index}/{key}": array
            for arm, of in paths.items()
            for index, path in enumerate(of)
            for key, array in zip(("position", "velocity"), path, strict=True)
        }
        self._client.send("expert", arrays, observe=observe, record=record, paths=counts)
        frame, steps = None, 0
        try:
            while True:
                header, arrays = self._receive()
                waiting, last = not header.get("last"), frame
                if frame is None or header["physics_steps"] > steps:
                    observation = self._unpack_observation(arrays) if observe else None
                    samples = self._unpack_samples(arrays, "steps/")
                    frame = _Frame(self._unpack_moment(arrays), observation, header["success"], samples)
                    steps = header["physics_steps"]
                    if last is not None:
                        yield last
                else:  # the expert ended at the last frame
                    frame = replace(frame, success=header["success"])
                if not waiting:
                    break
                self._client.send("next")
        except OperationFailed as error:
            waiting = False
            self._reject(f"the expert failed: {error}")
        finally:
            if waiting and self._client is not None:
                self._client.send("stop")
                self._receive()
        if not header["planned"]:
            self._reject("the expert found no way")
        if counts and header["followed"] != counts:
            self._reject(f"the expert took {header['moves']} of the recorded paths {counts}")
        self._info, self.own_states = header["info"], arrays.get("own")
        yield frame

    def _reject(self, reason: str, mendable: bool = False) -> NoReturn:
        self._moment = self._info = None
        raise SeedRejected(self._seed, reason, mendable) from None

    def _ask(self, op: str, arrays: dict[str, np.ndarray] | None = None, **request: Any) -> Answer:
        self._client.send(op, arrays, **request)
        return self._receive()

    def _receive(self) -> Answer:
        try:
            return self._client.receive(max(self._timeout, START_TIMEOUT) if self._starting else self._timeout)
        except OperationFailed:
            raise
        except BaseException:  # failed, lost or interrupted: the next answer would belong to this request
            self.close()
            raise

    def _active_moment(self) -> _Moment:
        if self._moment is None:
            raise RuntimeError("the environment has no scene: call reset(seed) first.")
        return self._moment

    def _require_untouched(self) -> None:
        self._active_moment()
        if not self._untouched or self._ended is not None:
            raise RuntimeError("the expert plays from the scene as it was set up: call reset(seed) first.")

    def _replay(self, moment: _Moment, samples: list[_Sample]) -> None:
        """Calls `on_physics_step` for each sample."""
        for sample in samples:
            self._moment = replace(moment, sample=sample)
            for callback in self.on_physics_step:
                callback(self)

    def _unpack_moment(self, arrays: dict[str, np.ndarray]) -> _Moment:
        cameras = {
            name: Camera(intrinsics.astype(np.float64), extrinsics.astype(np.float64), *self._sizes[name][::-1])
            for name, intrinsics, extrinsics in zip(
                CAMERAS, arrays["state/intrinsics"], arrays["state/extrinsics"], strict=True
            )
        }
        return _Moment(self._unpack_samples(arrays, "state/")[0], arrays["state/tools"], cameras)

    def _unpack_samples(self, arrays: dict[str, np.ndarray], prefix: str) -> list[_Sample]:
        if prefix + "poses" not in arrays:
            return []
        poses, velocities, points = (
            arrays[prefix + name].astype(np.float64) for name in ("poses", "velocities", "points")
        )
        contacts: list[list[Contact]] = [[] for _ in poses]
        end = 0
        for index, first, second, count in arrays[prefix + "contacts"].tolist():
            start, end = end, end + count
            position, normal, impulse = np.split(points[start:end, :9], 3, axis=1)
            contacts[index].append(Contact(first, second, position, normal, impulse, points[start:end, 9]))
        return [_Sample(*sample) for sample in zip(poses, velocities, contacts, strict=True)]

    def _unpack_observation(self, arrays: dict[str, np.ndarray]) -> Observation:
        """The observation in `arrays`, with `endpose` at the TCP. State that `arrays` lacks is the current one."""
        moment = self._unpack_moment(arrays) if "state/tools" in arrays else self._active_moment()
        views = {}
        for name, camera in moment.cameras.items():
            view = {"intrinsic_cv": camera.intrinsics.copy(), "extrinsic_cv": camera.extrinsics.copy()}
            prefix = f"observation/{name}/"
            pictures = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
            views[name] = view | pictures
        vector, endpose = arrays["observation/vector"], unpack_endpose(moment.tools.reshape(16))
        return {"observation": views, "joint_action": {"vector": vector}, "endpose": endpose}


def _read_yaml(path: Path) -> Any:
    """Raises UnreadableFile for a missing or damaged file."""
    with reading(path, "restore RoboTwin's configuration"):
        return yaml.safe_load(path.read_text(encoding="utf-8"))


def _embodiment(text: str) -> list[str | float] | None:
    """The embodiment that a variable names: a robot, or two and the distance between them. None for an empty text.

    Raises ValueError for a bad distance.
    """
    names = text.split()
    if len(names) != 3:
        return names or None
    with naming(f"{_EMBODIMENT}={text!r}: expected the distance of two robots in meters at the end"):
        return [*names[:2], check_positive("the distance", float(names[2]))]


def _reaching(frame: _Frame) -> np.ndarray:
    """The `ee` action (16,) that leads to this frame."""
    return frame.moment.tools.reshape(16).astype(np.float32)
