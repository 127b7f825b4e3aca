"""Serves one task of RoboTwin 2.0 over a pipe. It runs in RoboTwin's own interpreter:

    python worker.py checkout ROOT
    python worker.py package FOLDER

The working directory holds `assets/`. The worker imports only the standard library, numpy and the files `cpu_planner`,
`messages`, `requirements` and `scene` beside it, nothing of `aim_hf`, and uses the syntax of Python 3.10. It runs
RoboTwin as RoboTwin's own scripts do, and changes no file of it.
"""

import contextlib
import copy
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import os
import random
import select
import signal
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NoReturn

import cpu_planner
import numpy as np
import requirements
from cpu_planner import load_yaml
from messages import Arrays, read_message, write_message
from scene import ARMS, CAMERAS, RoboTwinScene, Sample, pack

THERE = 1e-3  # rad: for shorter paths RoboTwin's time-optimal planner returns none
DESCRIPTIONS = 100  # instructions generated for a scene, as in an official run of 100 episodes


class Failed(Exception):
    """An operation failed. `kind`: `missing`, `setup`, `scene`, `broken`, `expert` or `recording`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Abandoned(BaseException):
    """Aborts a demonstration. A BaseException, so that no `except Exception` of RoboTwin catches it."""


def versions() -> dict[str, str]:
    """Versions of the packages that RoboTwin simulates and plans with."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in ("sapien", "mplib", "nvidia_curobo", "torch", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


class Simulator:
    """One task of RoboTwin. Its public methods are the operations of requests.

    layout: `checkout`, or `package` for the pip package.
    """

    def __init__(
        self,
        layout: str,
        send: Callable[[dict[str, Any], Arrays], None],
        receive: Callable[[], tuple[dict[str, Any], Arrays]],
    ) -> None:
        self.layout, self.send, self.receive = layout, send, receive
        self.env = self.scene = None
        self.episodes = 0
        self.came_up = False  # whether any scene has been set up
        self.samples: list[Sample] | None = None  # of the physics steps since the last message, if requested
        self.on_step: Callable[[], None] | None = None

    def open(self, request: dict[str, Any], arrays: Arrays) -> dict[str, Any]:
        """Imports the task. Answers with its properties that are known before the first scene.

        Raises:
            Failed: `setup` for an unknown embodiment or shader, `missing` with all missing requirements.
        """
        if requirements.unimportable("yaml", ""):  # needed below
            raise Failed("missing", "\n".join(requirements.missing_for_import(self.layout)))

        self.task, self.target, self.depth = request["task"], request["target"], request["depth"]
        configs, shader, planner = request["configs"], request["shader"], request["planner"]
        args = load_yaml(configs, request["config"] + ".yml")
        args["embodiment"] = request["embodiment"] or args["embodiment"]
        folders = self._embodiment_folders(args["embodiment"], load_yaml(configs, "_embodiment_config.yml"))
        if planner == "cpu":
            cpu_planner.stand_in_for_curobo()
        missing = self._import_task() or requirements.missing_for_task(self.layout, self.module)
        missing += requirements.missing_for_scenes(self.layout, args, folders) + requirements.missing_for_simulation(
            shader
        )
        if planner == "curobo":
            missing += requirements.missing_for_planning(self.layout)
        if missing:
            raise Failed("missing", "\n".join(missing))
        self._complete_arguments(args, request["config"], folders)
        self.args = args

        if planner == "cpu":
            names = [f"{self.modules}.robot.{name}" for name in ("planner", "robot")]
            cpu_planner.replace_curobo(*map(importlib.import_module, names))
        if shader is not None:
            self._choose_shader(shader)
        self.env = getattr(self.module, self.task)()
        clutter = type(self.env).get_cluttered_table
        self.clutter_defaults = copy.deepcopy(clutter.__defaults__)

        sizes = load_yaml(configs, "_camera_config.yml")
        kinds = [args["camera"][kind + "_camera_type"] for kind in ("head", "wrist", "wrist")]
        self.step_limit = load_yaml(configs, "_eval_step_limit.yml").get(self.task, 1000)
        return {
            "versions": versions(),
            "package_version": self.layout == "package" and importlib.metadata.version("rlinf-robotwin-runtime"),
            "made_with": {
                "assets": _assets_name(),
                "embodiment": " ".join(map(str, args["embodiment"])),
                "shader": shader or "rt",
                "planner": planner,
            },
            "arm_joints": [
                len(args[f"{arm}_embodiment_config"]["arm_joints_name"][index]) for index, arm in enumerate(ARMS)
            ],
            "step_limit": self.step_limit,
            "save_freq": args["save_freq"],
            "sizes": [[sizes[kind]["h"], sizes[kind]["w"]] for kind in kinds],
        }

    @property
    def modules(self) -> str:
        """The package of the tasks' modules."""
        return "robotwin.envs" if self.layout == "package" else "envs"

    def _embodiment_folders(self, embodiment: list[Any], known: dict[str, Any]) -> list[str]:
        """The folders of the left and the right robot, which are equal for a robot with two arms."""
        names = embodiment[:2]
        unknown = [name for name in names if name not in known]
        if unknown or len(embodiment) not in (1, 3):
            raise Failed(
                "setup",
                f"embodiment={embodiment} is unknown: give one of {list(known)} alone, or two and the "
                "distance between them in meters",
            )
        # Absolute, because a checkout looks for some of their files in itself and for some in the working directory.
        return [os.path.abspath(known[name]["file_path"]) for name in (names[0], names[-1])]

    def _import_task(self) -> list[str]:
        """Imports the task. Returns what is missing for that."""
        if importlib.util.find_spec("open3d") is None:
            sys.modules["open3d"] = types.ModuleType("open3d")  # it would only write point clouds
        try:
            import sapien  # noqa: F401  reported as missing here

            self.module = importlib.import_module(f"{self.modules}.{self.task}")
        except BaseException:
            missing = requirements.missing_for_import(self.layout)
            if not missing:
                raise
            return missing
        return []

    def _choose_shader(self, shader: str) -> None:
        """Replaces the shader pack that RoboTwin chooses."""
        import sapien

        packs = sorted(os.listdir(os.path.join(os.path.dirname(sapien.__file__), "vulkan_shader")))
        if shader not in packs:
            raise Failed("setup", f"shader={shader!r} is unknown: give one of {packs}")
        choose = sapien.render.set_camera_shader_dir
        sapien.render.set_camera_shader_dir = lambda _: choose(shader)

    def _complete_arguments(self, args: dict[str, Any], config: str, folders: list[str]) -> None:
        """Adds the arguments that RoboTwin's own scripts add to a config."""
        embodiment = args["embodiment"]
        args.update(task_name=self.task, task_config=config, dual_arm_embodied=len(embodiment) == 1)
        args.update(left_robot_file=folders[0], right_robot_file=folders[1], render_freq=0)
        robots = [load_yaml(folder, "config.yml") for folder in folders]
        left, right = (robot["arm_joints_name"][index] for index, robot in enumerate(robots))
        if len(embodiment) == 1 and left == right:
            raise Failed(
                "setup",
                f"embodiment={embodiment} has one arm: give two robots and the distance between them in meters",
            )
        args.update({f"{arm}_embodiment_config": robot for arm, robot in zip(ARMS, robots)})
        if len(embodiment) == 3:
            args["embodiment_dis"] = embodiment[2]
        args["data_type"].update(rgb=True, qpos=True, endpose=True, depth=self.depth)
        args["camera"].update(collect_head_camera=True, collect_wrist_camera=True)

    def setup(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Sets up the scene of a seed as RoboTwin does."""
        env = self.env
        if self.scene is not None:
            vars(env.scene).pop("step", None)
            self.scene = None
            self.episodes += 1
            env.close_env(clear_cache=self.episodes % self.args["clear_cache_freq"] == 0)
        # RoboTwin shifts these default limits in place, so a scene would depend on the scenes before it.
        type(env).get_cluttered_table.__defaults__ = copy.deepcopy(self.clutter_defaults)
        args = copy.deepcopy(self.args)
        if request["evaluation"]:
            args["eval_mode"] = True
        try:
            env.setup_demo(now_ep_num=self.episodes, seed=request["seed"], is_test=True, **args)
        except (Exception, SystemExit) as error:
            if type(error).__name__ == "UnStableError":
                self.came_up = True
                raise Failed("scene", f"its scene is unstable: {error}") from error
            if not self.came_up:  # no scene will: a planner or an asset is broken, not the seed
                raise
            raise Failed("broken", f"its scene can't be set up: {type(error).__name__}: {error}") from error
        self.came_up = True
        cpu_planner.note_table(env.table_z_bias)
        cameras = env.cameras
        shown = [index for index, name in enumerate(cameras.static_camera_name) if name == "head_camera"]
        cameras.static_camera_list = [cameras.static_camera_list[index] for index in shown]
        cameras.static_camera_name = ["head_camera"]
        env.step_lim = self.step_limit  # the pip package's tasks set another one outside of its evaluation
        self._set_expected_attributes()
        self.scene = RoboTwinScene(env, self.target)
        self.steps, self.samples = 0, None
        step = env.scene.step

        def watched_step() -> None:
            step()
            self.steps += 1
            if self.samples is not None:
                self.samples.append(self.scene.sample(True))
            if self.on_step is not None:
                self.on_step()

        env.scene.step = watched_step
        return self.scene.description(), self._measurements(request["observe"])

    def _set_expected_attributes(self) -> None:
        """Sets attributes that the success checks of three tasks read and only their experts set. They depend only on
        the initial scene."""
        env, task = self.env, self.task
        if task in ("place_object_scale", "put_object_cabinet"):
            env.arm_tag = self.module.ArmTag("right" if env.object.get_pose().p[0] > 0 else "left")
        if task == "put_object_cabinet":
            env.origin_z = env.object.get_pose().p[2]
        if task == "open_laptop":
            facing = self.module.get_face_prod(env.laptop.get_pose().q, [1, 0, 0], [1, 0, 0])
            env.arm_tag = self.module.ArmTag("left" if facing > 0 else "right")

    def observe(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        return {}, self._observation()

    def _observation(self) -> Arrays:
        observation = self.env.get_obs()
        arrays = {"observation/vector": np.array(observation["joint_action"]["vector"], np.float64)}
        for name in CAMERAS:
            view = observation["observation"][name]
            arrays[f"observation/{name}/rgb"] = view["rgb"]
            if self.depth:  # RoboTwin's is in millimeters
                arrays[f"observation/{name}/depth"] = np.asarray(view["depth"], np.float32) / 1000
        return arrays

    def _measurements(self, observe: bool) -> Arrays:
        """The current state, the samples since the last message, and the observation if wanted."""
        arrays = self.scene.state()
        if self.samples:
            arrays.update({f"steps/{name}": array for name, array in pack(self.samples).items()})
        return {**arrays, **(self._observation() if observe else {})}

    def step(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Executes one action in RoboTwin's own convention."""
        env, before = self.env, self.steps
        self.samples = [] if request["record"] else None
        with self._planning_noted() as planned:
            env.take_action(arrays["action"], action_type=request["mode"])
        header = {"success": bool(env.eval_success), "reached": planned, "physics_steps": self.steps - before}
        answer = header, self._measurements(request["observe"])
        self.samples = None
        return answer

    @contextlib.contextmanager
    def _planning_noted(self) -> Iterator[dict[str, bool]]:
        """Records for each arm whether a path to the target was found, because RoboTwin continues without one."""
        robot, planned, restore = self.env.robot, dict.fromkeys(ARMS, True), contextlib.ExitStack()

        def note(
            arm: str, owner: Any, name: str, is_there: Callable[[Any], bool], found: Callable[[Any], bool]
        ) -> None:
            """Wraps the planning method `name` of `owner`. `is_there`: whether a goal needs no path."""
            plan, own = getattr(owner, name), name in vars(owner)

            def noted(goal: Any, *args: Any, **kwargs: Any) -> Any:
                planned[arm] = is_there(goal)
                result = plan(goal, *args, **kwargs)
                planned[arm] = planned[arm] or found(result)
                return result

            setattr(owner, name, noted)
            if own:
                restore.callback(setattr, owner, name, plan)
            else:
                restore.callback(delattr, owner, name)

        with restore:
            for arm in ARMS:
                note(arm, robot, arm + "_plan_path", lambda pose: False, lambda result: result["status"] == "Success")
                planner = getattr(robot, arm + "_mplib_planner")
                note(arm, planner, "TOPP", _goes_nowhere, lambda result: len(result[1]) > 0)
            yield planned

    def expert(self, request: dict[str, Any], arrays: Arrays) -> dict[str, Any] | tuple[dict[str, Any], Arrays]:
        """Runs the expert from the initial scene, and sends a frame every `save_freq` physics steps.

        After each frame it waits for `next` or `stop`. The answer is the last frame, after the expert has ended, with
        the states at RoboTwin's own frames, `own` (T, D + 14). With `paths`, the number of each arm's recorded joint
        paths, the expert follows those.
        """
        env, every, own = self.env, self.args["save_freq"], self._own_frames()
        if request["paths"] is not None:
            self._follow(request["paths"], arrays)

        def send(success: bool) -> None:
            header = {"success": success, "physics_steps": self.steps}
            self.send(header, self._measurements(request["observe"]))
            if self.samples is not None:
                self.samples.clear()

        def on_step() -> None:
            if self.steps % every == 0:
                send(self._fulfilled())
                if self.receive()[0]["op"] == "stop":
                    raise Abandoned

        self.samples = [] if request["record"] else None
        send(self._fulfilled())
        if self.receive()[0]["op"] == "stop":
            return {"stopped": True}
        self.on_step = on_step
        try:
            info = env.play_once()["info"]
            self.on_step = None
            planned = bool(env.plan_success)
            success = planned and bool(env.check_success())
            info = {key: str(value) for key, value in info.items()}
            header = {"last": True, "success": success, "planned": planned, "info": info, "physics_steps": self.steps}
            if request["paths"] is not None:
                header["followed"] = {arm: getattr(env, arm + "_cnt") for arm in ARMS}
            return header, {**self._measurements(request["observe"]), "own": np.array(own, np.float64)}
        except Abandoned:
            return {"stopped": True}
        except (Exception, SystemExit) as error:
            raise Failed("expert", f"{type(error).__name__}: {error}") from error
        finally:
            self.on_step = self.samples = None

    def _own_frames(self) -> list[list[float]]:
        """A list that gets the joints' targets and the measured poses of both arms at each of RoboTwin's own frames:
        before and after a move, and every `save_freq` physics steps within."""
        robot, own = self.env.robot, []

        def take_picture(*args: Any, **kwargs: Any) -> None:
            joints = [*robot.get_left_arm_jointState(), *robot.get_right_arm_jointState()]
            own.append([*joints, *robot.get_left_ee_pose(), *robot.get_right_ee_pose()])

        self.env._take_picture = take_picture  # RoboTwin's own does nothing unless it saves
        return own

    def _follow(self, counts: dict[str, int], arrays: Arrays) -> None:
        """Lets the expert follow recorded joint paths, as in RoboTwin's collection when it saves pictures."""
        paths = {
            f"{arm}_joint_path": [
                {"status": "Success", **{key: arrays[f"{arm}/{index}/{key}"] for key in ("position", "velocity")}}
                for index in range(counts[arm])
            ]
            for arm in ARMS
        }
        self.env.set_path_lst({"need_plan": False, **paths})

    def recorded(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """The states in an HDF5 file of RoboTwin's, as `_own_frames` notes them: (T, D + 14). It is read here because
        RoboTwin's interpreter has h5py."""
        if missing := requirements.unimportable("h5py", "install h5py there"):
            raise Failed("missing", missing[0])
        import h5py

        try:
            with h5py.File(request["path"], "r") as file:
                own = _own_states(file)
            if own.ndim != 2:
                raise ValueError(f"its states are of shape {own.shape}, expected (frames, numbers)")
            return {}, {"own": own}
        except (OSError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise Failed("recording", str(error).strip("'\"")) from error

    def _fulfilled(self) -> bool:
        """Whether the scene fulfils the task now. Restores all attributes, because some checks set them."""
        attributes = dict(vars(self.env))
        try:
            return bool(self.env.check_success())
        except AttributeError:  # the check reads an attribute that the expert hasn't set yet
            return False
        finally:
            vars(self.env).clear()
            vars(self.env).update(attributes)

    def fk(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Each arm's TCP pose at the joint positions of a `qpos` action: (2, 7)."""
        robot, poses = self.env.robot, []
        for arm, joints in zip(ARMS, np.split(arrays["qpos"], [request["split"]])):
            entity, ee = getattr(robot, arm + "_entity"), getattr(robot, arm + "_ee")
            active, qpos = entity.get_active_joints(), np.array(entity.get_qpos(), np.float64)
            names = [joint.get_name() for joint in active]
            for joint, value in zip(getattr(robot, arm + "_arm_joints"), joints[:-1]):
                qpos[names.index(joint.get_name())] = value
            model = entity.create_pinocchio_model()
            model.compute_forward_kinematics(qpos)
            link = [link.get_name() for link in entity.get_links()].index(ee.child_link.get_name())
            joint_pose = entity.get_root_pose() * model.get_link_pose(link) * ee.get_pose_in_child()
            # RoboTwin computes the tool pose from the joint's pose, which is replaced by the one at `qpos`.
            setattr(robot, arm + "_ee", types.SimpleNamespace(global_pose=joint_pose))
            try:
                poses.append(getattr(robot, f"get_{arm}_tcp_pose")())
            finally:
                setattr(robot, arm + "_ee", ee)
        return {}, {"tcp": np.array(poses, np.float64)}

    def instructions(self, request: dict[str, Any], arrays: Arrays) -> dict[str, Any]:
        """Seen or unseen instructions of RoboTwin's generator, from the expert's description of the scene."""
        name = "robotwin.description.instructions" if self.layout == "package" else "generate_episode_instructions"
        generate_episode_descriptions = importlib.import_module(name).generate_episode_descriptions
        state = random.getstate()
        random.seed(request["seed"])
        try:
            found = generate_episode_descriptions(self.task, [request["info"]], DESCRIPTIONS)
        finally:
            random.setstate(state)
        return {"instructions": found[0].get(request["split"], []) if found else []}


def _own_states(file: Any) -> np.ndarray:
    """The states in a file of the 2025 releases, which holds frames, or in today's, which holds each frame's state
    and, as its action, the next state."""
    if "joint_action" in file:
        names = ["joint_action/vector", "endpose/left_endpose", "endpose/right_endpose"]
        return np.concatenate([np.asarray(file[name], np.float64) for name in names], axis=1)
    names = [f"{arm}_{part}_joint_states" for arm in ARMS for part in ("arm", "ee")] + [
        f"{arm}_ee_poses" for arm in ARMS
    ]
    states, actions = (
        np.concatenate([np.asarray(file[f"{group}/{name}"], np.float64) for name in names], axis=1)
        for group in ("state", "action")
    )
    return np.concatenate([states, actions[-1:]])


def _assets_name() -> str:
    """The assets in the working directory: the commit of RoboTwin's data set, as its downloader notes it, or the
    stand-ins of `standin.py`."""
    for file in (".robotwin-assets.json", "stand-in-assets.json"):
        if os.path.isfile(file):
            with open(file, encoding="utf-8") as stream:
                return str(json.load(stream)["revision"])
    return "unknown"


def _goes_nowhere(path: np.ndarray) -> bool:
    return bool(np.abs(path[-1] - path[0]).max() < THERE)


def serve(layout: str, source: BinaryIO, sink: BinaryIO) -> NoReturn:
    """Answers requests until the other side closes the pipe."""

    def read(size: int) -> bytes:
        data = source.read(size)
        if len(data) < size:
            os._exit(0)  # the other side has closed the pipe
        return data

    send, receive = functools.partial(write_message, sink), functools.partial(read_message, read)
    simulator = Simulator(layout, send, receive)
    while True:
        request, arrays = receive()
        try:
            answer = getattr(simulator, request["op"])(request, arrays)
        except BaseException as error:  # the checkout's code may even exit
            kind = getattr(error, "kind", "failure")
            answer = {
                "error": {"kind": kind, "message": str(error) or repr(error), "traceback": traceback.format_exc()}
            }
        send(*(answer if isinstance(answer, tuple) else (answer,)))


def end_with_parent() -> None:
    """Starts a process that kills this one and its children when the pipe closes, because the simulator may be busy
    for minutes in which no Python thread runs."""
    if os.fork() == 0:
        os.close(1)  # otherwise the client wouldn't notice the end of the worker
        poll = select.poll()
        poll.register(0, 0)
        poll.poll()
        os.killpg(0, signal.SIGKILL)


def main() -> None:
    layout, code = sys.argv[1:]
    end_with_parent()
    # RoboTwin prints to stdout and may read stdin, so the pipe is moved away from them.
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    sys.dont_write_bytecode = True  # write no file to RoboTwin
    if layout == "checkout":
        sys.path[:1] = [code, os.path.join(code, "description", "utils")]
    else:
        del sys.path[0]
    serve(layout, source, sink)


if __name__ == "__main__":
    main()
