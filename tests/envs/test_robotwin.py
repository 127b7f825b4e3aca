"""The adapter to RoboTwin, against a stand-in for its checkout (`fixtures_robotwin.py`)."""

import argparse
import hashlib
import inspect
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from aim_hf.data.recorder import Failure, record_episode
from aim_hf.envs import TASKS, make_environment
from aim_hf.envs.base import ARMS, CAMERAS, Environment, SeedRejected
from aim_hf.envs.poses import pack_endpose
from aim_hf.envs.robotwin import (
    RoboTwinEnvironment,
    RoboTwinError,
    RoboTwinMissing,
    SimulatorLost,
    add_robotwin_arguments,
    chosen_settings,
)
from aim_hf.envs.robotwin.standin import has_assets, write_assets
from aim_hf.envs.robotwin.tasks import simulator_seed
from aim_hf.envs.seeds import SEED_RANGES
from aim_hf.envs.tabletop import TabletopEnvironment
from aim_hf.rollout.vector_env import Chunks, VectorEnvironment, WorkerLost
from aim_hf.utils.files import UnreadableFile
from aim_hf.value_maps.contacts import EventDetector
from aim_hf.value_maps.oracle import record_expert

from .fixtures_actions import BAD_ACTIONS, holding
from .fixtures_robotwin import (
    CRASH_COMMAND,
    CRASHES,
    EXITS,
    FREEZE_COMMAND,
    HANG_COMMAND,
    HANGS,
    NO_PLAN,
    OWN_SCRIPT,
    RAISES,
    TEMPLATES,
    UNFULFILLED,
    UNSTABLE,
    write_checkout,
)

EVALUATION = SEED_RANGES["evaluation"].start
RL = SEED_RANGES["rl"].start


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return write_checkout(tmp_path_factory.mktemp("robotwin"))


def make(checkout, task="stack_blocks_two", split="easy", **options):
    root, python = checkout
    return make_environment("robotwin", task, split, root=root, python=python, **options)


@pytest.fixture(scope="module")
def env(checkout):
    environment = make(checkout)
    yield environment
    environment.close()


def digest(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def own_script(checkout, task, seed, config="demo_clean"):
    """The result of running the expert as RoboTwin's own scripts do."""
    root, python = checkout
    command = [python, "-c", OWN_SCRIPT, root, task, str(seed), config]
    variables = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=root, env=variables, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.rpartition("RESULT")[2])


def positions(environment):
    return {str(body): state.pose[:3].tolist() for body, state in environment.bodies().items()}


# The protocol


def test_tasks_and_methods_are_those_of_the_protocol():
    assert len(set(TASKS["robotwin"])) == 50
    for name in (name for name in vars(Environment) if not name.startswith("_")):
        expected = inspect.signature(getattr(TabletopEnvironment, name)).parameters
        assert list(inspect.signature(getattr(RoboTwinEnvironment, name)).parameters) == list(expected), name


def test_observation(env, checkout, monkeypatch):
    observation = env.reset(0)
    assert tuple(observation["observation"]) == CAMERAS
    for name, camera in env.cameras().items():
        view = observation["observation"][name]
        assert view["rgb"].shape == (camera.height, camera.width, 3) == (12, 16, 3) and view["rgb"].dtype == np.uint8
        np.testing.assert_array_equal(view["intrinsic_cv"], camera.intrinsics)
        np.testing.assert_array_equal(view["extrinsic_cv"], camera.extrinsics)
        assert view["rgb"].flags.writeable and "depth" not in view
    assert env.action_dims == {"ee": 16, "qpos": 14}
    assert observation["joint_action"]["vector"].shape == (14,)
    for arm in ARMS:
        np.testing.assert_array_equal(observation["endpose"][f"{arm}_endpose"], env.tcp(arm))
        assert observation["endpose"][f"{arm}_gripper"] == 1.0
    assert (env.step_limit, env.control_dt) == (12, pytest.approx(0.06))
    monkeypatch.setenv("ROBOTWIN_ROOT", str(checkout[0]))
    told = RoboTwinEnvironment.interface("easy")  # without opening one
    assert told.picture_sizes == dict.fromkeys(CAMERAS, (12, 16))
    assert told.fps == pytest.approx(1 / env.control_dt) and told.action_dims == env.action_dims | {"qpos": None}


@pytest.mark.parametrize(
    ("content", "reason"),
    [("camera: [", "expected the node content"), ("save_freq: 15", "has no 'camera'"), ("", "None")],
)
def test_a_damaged_configuration_is_one_line(tmp_path, monkeypatch, content, reason):
    folder = tmp_path / "task_config"
    folder.mkdir()
    (folder / "demo_clean.yml").write_text(content)
    (folder / "_camera_config.yml").write_text("D435: {w: 320, h: 240}")
    monkeypatch.setenv("ROBOTWIN_ROOT", str(tmp_path))
    with pytest.raises(
        UnreadableFile, match=f"{folder}(/demo_clean.yml)? can't be read .*{reason}.*; restore RoboTwin's"
    ) as raised:
        RoboTwinEnvironment.interface("easy")
    assert "\n" not in str(raised.value)


def test_an_observation_belongs_to_whom_it_is_given(env):
    """Whoever scales a picture scales its matrix too."""
    cameras, reset = env.cameras, lambda: env.reset(0)
    for observed in (reset, reset, env.observe, lambda: env.step(holding(env)).observation):
        view, camera = observed()["observation"]["head_camera"], cameras()["head_camera"]
        np.testing.assert_array_equal(view["intrinsic_cv"], camera.intrinsics)
        assert view["rgb"].any() and view["intrinsic_cv"].any()
        view["rgb"][:] = 0
        view["intrinsic_cv"][:] = 0
        assert cameras()["head_camera"].intrinsics.any()


def test_depth_is_in_meters(checkout):
    environment = make(checkout, depth=True)
    depth = environment.reset(0)["observation"]["left_camera"]["depth"]
    assert depth.dtype == np.float32 and depth.shape == (12, 16)
    np.testing.assert_allclose(depth, 1.5)
    environment.close()


def test_bodies_have_names_of_their_own(env):
    env.reset(0)
    bodies = env.bodies()
    assert {body.name for body in bodies.values() if body.dynamic} == {"box_1", "box_2"}
    assert {bodies[body].name for body in env.fingers()["right"]} == {"right_finger_1", "right_finger_2"}
    assert {bodies[body].name for body in set(env.robot_links())} >= {"base", "left_hand", "left_finger_1"}
    assert env.velocities().keys() == bodies.keys()
    names = {frozenset((bodies[contact.body_a].name, bodies[contact.body_b].name)) for contact in env.contacts()}
    assert names == {frozenset(("box_1", "table")), frozenset(("box_2", "table"))}  # and none without an impulse


# Actions


def test_ee_actions_are_poses_of_the_tcp(env):
    env.reset(0)
    action = holding(env)
    half = np.pi / 6
    action[:3] += [0.05, 0.1, -0.1]
    action[3:7] = np.array([np.cos(half), 0, np.sin(half), 0]) * 1.2  # any length will do
    action[15] = 0.5
    result = env.step(action)
    np.testing.assert_allclose(env.tcp("left")[:3], action[:3], atol=1e-6)
    np.testing.assert_allclose(env.tcp("left")[3:], action[3:7] / 1.2, atol=1e-6)
    np.testing.assert_allclose(env.tcp("right"), action[8:15], atol=1e-6)
    assert result.info["reached"] == {"left": True, "right": True}
    assert result.observation["endpose"]["right_gripper"] == 0.5
    assert result.info["physics_steps"] == 131  # the larger turn is 0.52 rad, at 0.004 a step


def test_qpos_actions_and_forward_kinematics(env):
    vector = env.reset(0)["joint_action"]["vector"].copy()
    vector[[0, 4, 8]] += [0.1, -0.3, 0.05]
    expected = env.fk(vector)
    result = env.step(vector, mode="qpos")
    np.testing.assert_allclose(result.observation["joint_action"]["vector"], vector, atol=1e-9)
    for arm in ARMS:
        np.testing.assert_allclose(env.tcp(arm), expected[arm], atol=1e-6)
    assert env.step(vector, mode="qpos").info["reached"] == {"left": True, "right": True}  # there already


def test_unreachable_target_is_reported(env):
    env.reset(0)
    action, before = holding(env), env.tcp("left")
    action[:3] = [5, 5, 5]
    result = env.step(action, observe=False)
    assert result.info["reached"] == {"left": False, "right": True}
    assert result.observation is None
    np.testing.assert_array_equal(env.tcp("left"), before)


@pytest.mark.parametrize(("change", "mode", "message"), BAD_ACTIONS)
def test_bad_action_is_refused_and_changes_nothing(env, change, mode, message):
    env.reset(0)
    before = positions(env)
    with pytest.raises(ValueError, match=message):
        env.step(change(holding(env)), mode=mode)
    assert positions(env) == before
    assert env.step(holding(env)).info["step"] == 1


def test_episode_ends_at_the_step_limit(env):
    env.reset(0)
    action = holding(env)
    results = [env.step(action, observe=False) for _ in range(env.step_limit)]
    assert [result.info["done"] for result in results] == [False] * 11 + [True]
    with pytest.raises(RuntimeError, match="after its 12 steps: call reset"):
        env.step(action)


def test_bad_names_options_and_order(checkout):
    with pytest.raises(ValueError, match="task is 'fly'"):
        make(checkout, "fly")
    with pytest.raises(ValueError, match="split='medium'"):
        make(checkout, split="medium")
    with pytest.raises(ValueError, match=r"embodiment=\['hexapod'\] is unknown: give one of \['aloha-agilex'\]"):
        make(checkout, embodiment=["hexapod"])
    with pytest.raises(ValueError, match=r"shader='fog' is unknown: give one of \['trivial'\]"):
        make(checkout, shader="fog")
    with pytest.raises(ValueError, match=r"planner is 'gps'; expected one of curobo, cpu"):
        make(checkout, planner="gps")
    environment = make(checkout)
    with pytest.raises(RuntimeError, match="reset"):
        environment.observe()
    environment.reset(0)
    with pytest.raises(ValueError, match="noise=0.01 and mistakes can't be added"):
        environment.demonstrate(noise=0.01)
    with pytest.raises(ValueError, match="noise=0.0 and mistakes can't be added"):
        environment.demonstrate(mistake_rng=np.random.default_rng(0))
    with pytest.raises(RuntimeError, match="run demonstrate"):
        environment.instruction()
    environment.close()


# Seeds


def test_ranges_of_seeds_stay_apart():
    ranges = {"train": range(100_000), "rl": SEED_RANGES["rl"], "evaluation": SEED_RANGES["evaluation"]}
    own = {name: (simulator_seed(seeds[0]), simulator_seed(seeds[-1])) for name, seeds in ranges.items()}
    assert own["train"] == (0, 99_999)
    assert own["evaluation"][0] == 100_000  # where RoboTwin's own evaluation begins
    assert own["evaluation"][1] < own["rl"][0] < own["rl"][1] < 2**32
    with pytest.raises(ValueError, match="seed=100000 is for training"):
        simulator_seed(100_000)


def test_rejected_seeds_say_why(env):
    for seed, reason in (
        (EVALUATION + UNSTABLE, "unstable: Objects is unstable"),
        (EVALUATION + NO_PLAN, "found no way"),
        (RL + UNFULFILLED, "doesn't fulfil the task"),
        (RL + RAISES, "the expert failed: IndexError: no such pose"),
        (EVALUATION + EXITS, "the expert failed: SystemExit"),
    ):
        with pytest.raises(SeedRejected, match=reason) as raised:
            env.reset(seed)
        assert raised.value.seed == seed
        with pytest.raises(RuntimeError, match="reset"):
            env.observe()
    env.reset(EVALUATION)


def test_training_seeds_are_set_up_and_no_more(env):
    env.reset(NO_PLAN)
    for seed in (UNSTABLE, NO_PLAN, UNFULFILLED, RAISES):
        failure = record_episode(env, seed, 0.0)
        assert isinstance(failure, Failure) and failure.seed == seed and len(failure.reason) > 15
        assert not failure.mendable, "the scene itself, or its expert"


def test_a_failure_of_the_machine_or_of_an_asset_is_mendable(tmp_path):
    root, _ = checkout = write_checkout(tmp_path)
    environment = make(checkout, "click_bell")
    died = record_episode(environment, CRASHES, 0.0)
    assert "the simulator's process ended" in died.reason and died.mendable
    environment.reset(0)
    (root / "assets/objects/050_bell/model_data0.json").unlink()
    lacking = record_episode(environment, 1, 0.0)
    assert "its scene can't be set up: FileNotFoundError" in lacking.reason and lacking.mendable
    environment.close()


# RoboTwin's own way


@pytest.mark.parametrize("layout", ["env_cfg/task_config", "task_config"])
def test_expert_is_that_of_the_own_script_and_the_checkout_untouched(tmp_path, monkeypatch, layout):
    checkout = write_checkout(tmp_path, layout)
    root, _ = checkout
    before = digest(root)
    initial, final, success, info = own_script(checkout, "stack_blocks_two", 100_001)
    assert success and digest(root) == before
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("ROBOTWIN_ROOT", "../RoboTwin")
    monkeypatch.setenv("ROBOTWIN_PYTHON", "../python")
    environment = make_environment("robotwin", "stack_blocks_two")
    environment.reset(EVALUATION)  # what came before doesn't matter
    environment.reset(EVALUATION + 1)
    assert positions(environment) == {body: np.float32(pose[:3]).tolist() for body, pose in initial.items()}
    for observe in (False, True):  # of the play that `reset` kept, and of another one
        frames = list(environment.demonstrate(observe=observe))
        assert frames[-1].success and not frames[0].success
        assert positions(environment) == {body: np.float32(pose[:3]).tolist() for body, pose in final.items()}
        environment.reset(EVALUATION + 1)
    assert environment.instruction() in {
        template.replace("{A}", info["{A}"]).replace("{B}", info["{B}"]).replace("{a}", info["{a}"])
        for template in TEMPLATES["stack_blocks_two"]["seen"]
    }
    assert environment.instruction("unseen") == "Pile red block, green block"
    environment.close()
    assert digest(root) == before


def test_evaluation_seed_is_set_up_twice_and_then_free(env):
    """The official order: set up, expert, set up again; and neither a look at its play nor a reset plays again."""
    env.reset(EVALUATION + 2)
    before = env._client._output.seek(0, os.SEEK_END)
    run = record_expert(env, EVALUATION + 2)
    observation = env.reset(EVALUATION + 2)
    path = env.expert()
    assert env._client._output.seek(0, os.SEEK_END) == before  # the simulator printed nothing: it wasn't asked
    assert run.success and [event.kind for event in run.events] == ["pick", "place", "pick", "place"]
    assert path.actions.shape == (run.num_frames - 1, 16)
    np.testing.assert_allclose(path.actions[path.key_steps][:, [7, 15]].min(), 0.4, atol=1e-6)
    assert observation["observation"]["head_camera"]["rgb"][1, 0, 0] % 40 == 1  # the pictures of `eval_mode`
    assert env.reset(RL)["observation"]["head_camera"]["rgb"][1, 0, 0] % 40 == 0
    assert env.step(holding(env)).info["step"] == 1


def test_demonstration_of_an_evaluation_seed_has_to_be_reset(env):
    env.reset(EVALUATION)
    for _ in env.demonstrate(observe=False):
        pass
    for forbidden in (env.observe, env.demonstrate, env.expert, lambda: env.step(holding(env))):
        with pytest.raises(RuntimeError, match="reset"):
            forbidden()
    env.reset(EVALUATION)
    env.observe()


def test_abandoned_demonstration(env):
    env.reset(1)
    frames = env.demonstrate()
    next(frames)
    next(frames)
    frames.close()
    observation = env.reset(1)
    assert len(list(env.demonstrate())) > 20
    np.testing.assert_equal(env.reset(1), observation)


def test_expert_of_a_training_seed_leaves_the_scene(env):
    env.reset(1)
    before = positions(env)
    path = env.expert()
    assert positions(env) == before
    assert len(path.actions) == len(list(env.demonstrate())) - 1


def test_what_only_experts_set_is_there_without_one(checkout):
    environment = make(checkout, "place_object_scale")
    for seed in range(8):  # the object is on either side
        environment.reset(seed)
        arm = "right" if environment.bodies()[max(environment.bodies())].pose[0] > 0 else "left"
        action = holding(environment)
        action[10 if arm == "right" else 2] = 0.8  # the arm that the check asks for goes down
        if seed not in (UNSTABLE,):
            assert environment.step(action).success
        if seed == UNSTABLE - 1:
            break
    environment.close()


def test_state_does_not_leak_from_scene_to_scene(checkout):
    environment = make(checkout, "dump_bin_bigbin", "hard")
    places = []
    for seed in (0, 1, 0):
        environment.reset(seed)
        clutter = next(body for body in environment.bodies().values() if body.name == "clutter")
        places.append(clutter.pose[0])
    assert places == [pytest.approx(-0.2)] * 3
    environment.close()


# Physics steps and events


def test_recorded_episode(env):
    episode = record_episode(env, 1, 0.0)
    assert [(event.kind, event.arm, event.body_name) for event in episode.events] == [
        ("pick", "left", "box_1"),
        ("place", "left", "table"),
        ("pick", "right", "box_2"),
        ("place", "right", "box_1"),
    ]
    assert episode.success and episode.fps == pytest.approx(1000 / 60)
    assert len(episode.state) == len(episode.action) + 1 == len(episode.rgb["head_camera"])
    np.testing.assert_allclose(episode.action, episode.state[1:], atol=1e-6)
    # Evenly spaced: where an arm moves steadily, it does so by as much in each frame, except in the last one.
    steps = np.linalg.norm(np.diff(episode.state[:, :3], axis=0), axis=1)
    assert steps.max() < 15 * 0.004 * np.sqrt(3) + 1e-6


def test_events_are_found_while_acting(env):
    env.reset(1)
    path = env.expert()
    detector = EventDetector(env)
    heights = []
    env.on_physics_step += [detector, lambda e: heights.append(e.bodies()[max(e.bodies())].pose[2])]
    box = next(body.pose for body in env.bodies().values() if body.name == "box_1")
    action, steps = holding(env), 0
    action[3:7] = path.actions[20, 3:7]
    for where, value in ((range(3), box[:3]), (7, 0.4), (2, 0.95), (range(3), [0, -0.13, 0.78]), (7, 1.0), (0, -0.3)):
        action[where] = value
        detector.add_frame(env, action)
        steps += env.step(action, observe=False).info["physics_steps"]
    env.on_physics_step.clear()
    detector.add_frame(env, None)
    assert [(event.kind, event.frame, event.body_name) for event in detector.events()] == [
        ("pick", 3, "box_1"),  # a gripper alone moves in one physics step here
        ("place", 6, "table"),
    ]
    assert len(heights) == steps


def test_press_is_found_and_looking_latches_nothing(checkout):
    environment = make(checkout, "click_bell")
    episode = record_episode(environment, 1, 0.0)
    assert [(event.kind, event.body_name) for event in episode.events] == [("press", "050_bell")]
    _, _, success, _ = own_script(checkout, "click_bell", 1)
    assert success
    environment.reset(1)
    fulfilled = [frame.success for frame in environment.demonstrate(observe=False)]
    assert fulfilled[0] is False and fulfilled[-1] is True
    # RoboTwin's check remembers a press; ours of each frame tells of that frame, until RoboTwin itself has looked.
    assert fulfilled.index(True) < len(fulfilled) - 1
    environment.close()


def test_evaluation_runs_unchanged(checkout, monkeypatch):
    for name, path in zip(("ROBOTWIN_ROOT", "ROBOTWIN_PYTHON"), checkout):
        monkeypatch.setenv(name, str(path))
    with VectorEnvironment("robotwin", "easy", num_workers=1) as environments:
        (start,) = environments.reset("stack_blocks_two", [EVALUATION + 1], "unseen", Chunks(4, 2), True)
        assert start.expert_success and start.instruction == "Pile red block, green block"
        assert start.value_maps["head_camera"].shape == (2, 12, 16)
        action = np.concatenate([[*start.observation["endpose"][f"{arm}_endpose"], 1.0] for arm in ARMS])
        progress = environments.step({0: np.tile(action, (4, 1))}, "ee")[0]
        assert progress.steps == 4 and not progress.done and len(progress.observations) == 2


def test_a_simulator_that_hangs_costs_its_row_alone_and_one_that_starts_has_time(checkout, monkeypatch):
    for name, path in zip(("ROBOTWIN_ROOT", "ROBOTWIN_PYTHON"), checkout):
        monkeypatch.setenv(name, str(path))
    options = {"num_workers": 1, "timeout": 1.0, "discard_lost": True}  # less than a start takes
    with VectorEnvironment("robotwin", "easy", **options) as environments:
        seeds = [EVALUATION + 1, EVALUATION + 2]
        starts = environments.reset("stack_blocks_two", seeds, "seen", Chunks(4, 2), expert=False)
        worker = environments.workers[0].process
        hanging, still = (np.tile(pack_endpose(start.observation), (4, 1)) for start in starts)
        hanging[1:, 7] = HANG_COMMAND
        assert list(environments.step({0: hanging, 1: still}, "ee")) == [1]
        assert list(environments.lost) == [0] and "hung for 1 s" in str(environments.lost[0])
        assert environments.workers[0].process is worker and worker.is_alive()


def test_a_rejected_row_stays_rejected_when_its_worker_dies(checkout, monkeypatch):
    for name, path in zip(("ROBOTWIN_ROOT", "ROBOTWIN_PYTHON"), checkout):
        monkeypatch.setenv(name, str(path))
    with VectorEnvironment("robotwin", "easy", num_workers=1, discard_lost=True) as environments:
        seeds = [EVALUATION + UNSTABLE, EVALUATION + 1]
        rejected, start = environments.reset("stack_blocks_two", seeds, "seen", Chunks(4, 2), expert=False)
        assert rejected is None and start is not None
        environments.workers[0].process.kill()
        assert environments.step({1: np.zeros((4, 16))}, "ee") == {}
        assert isinstance(environments.lost[0], SeedRejected) and environments.lost[0].seed == seeds[0]
        assert isinstance(environments.lost[1], WorkerLost) and environments.lost[1].seed == seeds[1]


# A simulator that dies or hangs


def test_dead_simulator_is_replaced(env):
    env.reset(0)
    action = holding(env)
    action[7] = CRASH_COMMAND
    with pytest.raises(SimulatorLost, match="(?s)by signal SIGSEGV.*step: 1 / 12"):
        env.step(action)
    with pytest.raises(RuntimeError, match="reset"):
        env.tcp("left")
    env.reset(0)
    with pytest.raises(SimulatorLost, match="exit code 42"):
        env.reset(CRASHES)
    assert env.reset(1) and env.step(holding(env)).info["step"] == 1


def test_hung_simulator_is_killed_with_all_it_started(checkout):
    environment = make(checkout, timeout=1.0)
    environment.reset(0)
    process = environment._client._process
    action = holding(environment)
    action[7] = HANG_COMMAND
    start = time.monotonic()
    with pytest.raises(SimulatorLost, match="hung for 1 s"):
        environment.step(action)
    assert time.monotonic() - start < 5 and process.returncode is not None
    environment.reset(0)
    environment._starting = False  # the first scene of a process may take long, for the planner's sake
    with pytest.raises(SimulatorLost, match="hung for 1 s"):
        environment.reset(HANGS)
    environment.close()


def test_simulator_ends_with_its_parent(checkout):
    """Even while it hangs, with no thread of its Python running."""
    root, python = checkout
    code = f"""if True:
        import numpy as np, os
        from aim_hf.envs import make_environment
        env = make_environment("robotwin", "stack_blocks_two", root={str(root)!r}, python={str(python)!r})
        env.reset(0)
        action = np.concatenate([[*env.tcp(arm), {FREEZE_COMMAND}] for arm in ("left", "right")])
        env._client.send("step", {{"action": action}}, mode="ee", observe=False, record=False)
        print(env._client._process.pid, flush=True)
        os._exit(0)
    """
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    deadline = time.monotonic() + 10
    while _is_alive(int(done.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# What is missing


def lacking(checkout, **options) -> str:
    with pytest.raises(RoboTwinMissing) as raised:
        make(checkout, **options)
    return str(raised.value)


def test_missing_checkout_and_interpreter(checkout, tmp_path, monkeypatch):
    root, python = checkout
    for name in ("ROBOTWIN_ROOT", "ROBOTWIN_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    assert f"{python} has no package rlinf-robotwin-runtime: pass root=, or set ROBOTWIN_ROOT" in lacking(
        (None, python)
    )
    assert "pass python=, or set ROBOTWIN_PYTHON" in lacking((root, None))
    assert "/nowhere is no folder" in lacking(("/nowhere", python))
    message = lacking((tmp_path, python))
    assert "envs/_base_task.py isn't there" in message
    assert "neither env_cfg/task_config/demo_clean.yml nor task_config/demo_clean.yml" in message
    assert "'/nowhere/python' can't be started (No such file or directory)" in lacking((root, "/nowhere/python"))
    (tmp_path / "python").write_text("#!/bin/sh\necho no such environment >&2; exit 3\n")
    (tmp_path / "python").chmod(0o755)
    message = lacking((root, tmp_path / "python"))
    assert "ends with exit code 3 (no such environment)" in message
    assert f"'{tmp_path}' can't be started (it is a folder): give RoboTwin's own" in lacking((root, tmp_path))
    for answer in ("true", "echo 3.11", "printf '\\377'"):
        silent = tmp_path / answer.split()[0]
        silent.write_text(f"#!/bin/sh\n{answer}\n")
        silent.chmod(0o755)
        assert f"'{silent}' is no Python, it answers " in lacking((root, silent))
    for assets in ("/nowhere", tmp_path / "python", tmp_path):
        assert f"{assets} holds no folder assets: give the folder" in lacking(checkout, assets=assets)


def test_all_that_is_missing_is_said_at_once(tmp_path):
    root, _ = checkout = write_checkout(tmp_path)
    (tmp_path / "packages/sapien/no_vulkan").touch()
    (tmp_path / "packages/curobo/wrap/reacher/motion_gen.py").write_text("import nvidia_driver")
    (tmp_path / "packages/mplib/__init__.py").write_text("__version__ = '0.2.1'")
    curobo = root / "assets/embodiments/aloha-agilex/curobo_left.yml"
    curobo.write_text("robot_cfg: {kinematics: {urdf_path: /old/place/robot.urdf}}")
    curobo.with_name("curobo_right.yml").rename(curobo.with_name("curobo_right_tmp.yml"))
    (root / "assets/objects/same.json").unlink()
    message = lacking(checkout)
    assert message.count("\n- ") == 6
    for said, mend in (
        ("curobo.wrap.reacher.motion_gen (ModuleNotFoundError: No module named 'nvidia_driver')", "NVIDIA GPU"),
        ("mplib 0.2.1 crashes with numpy", "install 'numpy<2'"),
        ("no Vulkan device to render with (RuntimeError: failed to find a rendering device)", "Mesa 24.3"),
        ("curobo_left.yml points to /old/place/robot.urdf", "update_embodiment_config_path.py"),
        ("curobo_right.yml isn't there", "update_embodiment_config_path.py"),
        ("assets/objects/same.json isn't there", "objects.zip"),
    ):
        line = next(line for line in message.splitlines() if said in line)
        assert mend in line


def test_missing_planner_and_slow_renderer(tmp_path, monkeypatch):
    checkout = write_checkout(tmp_path)
    monkeypatch.setenv("FAKE_DEVICE", "llvmpipe (LLVM 15)")
    (tmp_path / "packages/torch.py").write_text("class cuda:\n    is_available = lambda: False\n")
    message = lacking(checkout)
    assert message.count("\n- ") == 2
    assert "torch finds no CUDA: take the planner cpu (--robotwin_planner cpu)" in message
    assert "renders on the CPU here (llvmpipe (LLVM 15))" in message and "--robotwin_shader trivial" in message


def test_ray_tracing_on_a_cpu_is_refused_by_its_name_too(tmp_path, monkeypatch):
    """It was only where the shader was left out; a picture then never came."""
    checkout = write_checkout(tmp_path)
    (tmp_path / "packages/sapien/vulkan_shader/rt").touch()
    make(checkout, shader="rt").close()
    monkeypatch.setenv("FAKE_DEVICE", "llvmpipe (LLVM 15)")
    assert "where RoboTwin's ray tracing doesn't end" in lacking(checkout, shader="rt")


@pytest.mark.parametrize("content", ["a: [", "", "\xff"])
def test_a_damaged_configuration_of_the_worker_is_one_line(tmp_path, content):
    """It was the worker's traceback."""
    root, _ = checkout = write_checkout(tmp_path)
    robot = root / "assets/embodiments/aloha-agilex"
    configs = [root / "env_cfg/task_config" / f"{name}.yml" for name in ("_eval_step_limit", "_embodiment_config")]
    for path in (*configs, robot / "config.yml", robot / "curobo_left.yml"):
        whole = path.read_text()
        path.write_bytes(content.encode("latin-1"))
        with pytest.raises(ValueError, match=f"{path} can't be read .*: restore RoboTwin's") as raised:
            make(checkout)
        assert "\n" not in str(raised.value)
        path.write_text(whole)
    make(checkout).close()


def test_a_robot_with_one_arm_isnt_taken_for_two(tmp_path):
    """Both arms were the same joints, and the scene was set up."""
    root, _ = checkout = write_checkout(tmp_path)
    (root / "assets/embodiments/aloha-agilex/config.yml").write_text("arm_joints_name: [[a, b], [a, b]]")
    with pytest.raises(ValueError, match=r"embodiment=\['aloha-agilex'\] has one arm: give two robots and the dist"):
        make(checkout)
    make(checkout, embodiment=["aloha-agilex", "aloha-agilex", 0.6]).close()


def test_recordings_of_another_layout_are_told(tmp_path):
    """They ended the annotation of all episodes: an error of another kind, or states that are no table."""
    checkout = write_checkout(tmp_path)
    reader = "import json\n\nclass File(dict):\n    def __init__(self, path, mode):\n        "
    reader += "super().__init__(json.load(open(path)))\n    __enter__ = lambda self: self\n    "
    reader += "__exit__ = lambda *of: None\n"  # of a file whose groups are dicts
    (tmp_path / "packages/h5py.py").write_text(reader)
    environment, path = make(checkout), tmp_path / "episode0.hdf5"
    names, rows = ("joint_action/vector", "endpose/left_endpose", "endpose/right_endpose"), [[1.0, 2.0], [3.0, 4.0]]
    good = {"joint_action": {}} | dict.fromkeys(names, rows)
    path.write_text(json.dumps(good))
    np.testing.assert_array_equal(environment.recorded_states(path), np.tile(rows, (1, 3)))
    for content, told in (
        ({**good, names[0]: {"left": rows}}, "dict"),
        (dict.fromkeys(good, [rows, rows]), r"its states are of shape \(2, 6, 2\), expected \(frames, numbers\)"),
        (dict.fromkeys(good, [1.0, 2.0]), "axis 1 is out of bounds"),
        ({}, "state/left_arm_joint_states"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=told):
            environment.recorded_states(path)
    environment.close()


def test_old_sapien_on_a_cpu(tmp_path):
    checkout = write_checkout(tmp_path)
    (tmp_path / "packages/sapien/no_vulkan").touch()
    sapien = tmp_path / "packages/sapien/__init__.py"
    sapien.write_text(sapien.read_text() + "\n__version__ = '3.0.0b1'\n")
    assert "sapien 3.0.3 in RoboTwin's interpreter" in lacking(checkout)


def test_options_are_variables(checkout, monkeypatch):
    parser = argparse.ArgumentParser()
    add_robotwin_arguments(parser)
    for variable in ("ROBOTWIN_EMBODIMENT", "ROBOTWIN_SHADER"):
        monkeypatch.setenv(variable, "")  # restores it in the end
    for distance in ("far", "nan", "inf", "-0.6", "0"):
        parser.parse_args(["--robotwin_embodiment", "hexapod", "hexapod", distance])
        for refusing in (lambda: make(checkout), lambda: chosen_settings("robotwin")):
            with pytest.raises(ValueError, match="expected the distance of two robots in meters"):
                refusing()
    parser.parse_args(["--robotwin_embodiment", "hexapod", "hexapod", "0.6"])
    with pytest.raises(ValueError, match=r"embodiment=\['hexapod', 'hexapod', 0.6\] is unknown"):
        make(checkout)
    parser.parse_args(["--robotwin_embodiment", "aloha-agilex", "--robotwin_shader", "trivial"])
    environment = make(checkout)
    assert environment.simulator | {"embodiment": "aloha-agilex", "shader": "trivial"} == environment.simulator
    assert (environment.simulator["planner"], environment.simulator["assets"]) == ("curobo", "unknown")
    environment.close()
    for name, value in (("EMBODIMENT", " "), ("SHADER", ""), ("PLANNER", "")):  # as if they weren't set
        monkeypatch.setenv(f"ROBOTWIN_{name}", value)
    environment = make(checkout)
    assert (environment.simulator["planner"], environment.simulator["shader"]) == ("curobo", "rt")
    environment.close()
    monkeypatch.setenv("ROBOTWIN_SHADER", "trivial ")
    environment = make(checkout)
    assert environment.simulator["shader"] == chosen_settings("robotwin")["shader"] == "trivial"
    environment.close()
    monkeypatch.setenv("ROBOTWIN_PLANNER", "gps")
    with pytest.raises(ValueError, match="planner is 'gps'; expected one of curobo, cpu"):
        chosen_settings("robotwin")


def test_missing_assets_are_told_apart(tmp_path):
    root, _ = checkout = write_checkout(tmp_path)
    demo = root / "env_cfg/task_config/demo_clean.yml"
    demo.write_text(demo.read_text().replace("random_background: false", "random_background: true"))
    assert lacking(checkout).count("\n- ") == 1
    (root / "assets").rename(root / "things")
    message = lacking(checkout)
    assert message.count("\n- ") == 4
    for archive in ("(objects.zip)", "(embodiments.zip)", "(background_texture.zip)"):
        assert archive in message


def test_broken_planner_is_an_error_and_no_rejected_seed(tmp_path):
    root, _ = checkout = write_checkout(tmp_path)
    config = root / "assets/embodiments/aloha-agilex/config.yml"
    config.write_text(config.read_text() + "broken: true\n")
    environment = make(checkout)
    for _ in range(2):
        with pytest.raises(RoboTwinError, match="(?s)'NoneType' object is not subscriptable.*Traceback"):
            environment.reset(0)
    environment.close()


def test_stand_ins_are_there_where_they_were_written(tmp_path):
    """Some of their files name the folder."""
    folder = tmp_path / "stand-ins"
    assert not has_assets(folder)
    write_assets(folder)
    assert has_assets(folder)
    note = folder / "stand-in-assets.json"
    whole = note.read_text()
    note.write_text(whole[:9])  # as another program may leave it
    assert not has_assets(folder)
    write_assets(folder)
    assert has_assets(folder)
    assert not has_assets(folder.rename(tmp_path / "elsewhere"))


def test_stand_ins_replace_no_other_assets(tmp_path):
    """RoboTwin's own, gigabytes from the network, were deleted."""
    own = tmp_path / "assets" / "objects" / "own.glb"
    own.parent.mkdir(parents=True)
    own.touch()
    with pytest.raises(FileExistsError, match=f"{tmp_path} holds assets that are no stand-ins; give another folder"):
        write_assets(tmp_path)
    assert own.exists() and [path.name for path in tmp_path.iterdir()] == ["assets"]
