"""The adapter to RoboTwin against RoboTwin's own code, with stand-in assets: `make test-robotwin`.

It needs .venv-robotwin, which `make robotwin` makes, and is skipped without it. ROBOTWIN_CHECKOUTS names checkouts of
RoboTwin that are tried too, separated by colons; ROBOTWIN_TASKS=all compares every task with RoboTwin's own path.
"""

import hashlib
import os

import numpy as np
import pytest

from aim_hf.commands import collect, validate
from aim_hf.data.recorder import record_episode
from aim_hf.envs import make_environment
from aim_hf.envs.base import ARMS, CAMERAS, SeedRejected
from aim_hf.envs.names import TASKS as NAMES
from aim_hf.envs.robotwin import RoboTwinMissing
from aim_hf.envs.robotwin.standin.assets import REVISION
from aim_hf.envs.seeds import SEED_RANGES
from aim_hf.value_maps.oracle import record_expert

from .fixtures_robotwin_runtime import needs_robotwin, own_play

pytestmark = [
    needs_robotwin,
    pytest.mark.usefixtures("robotwin"),
]
# One of each kind: stacking, pressing, placing beside, both arms, joints, a vessel.
SAMPLE = ("stack_blocks_two", "click_bell", "place_a2b_left", "lift_pot", "open_laptop", "place_bread_basket")
TASKS = NAMES["robotwin"] if os.environ.get("ROBOTWIN_TASKS") == "all" else SAMPLE
ROOTS = ["", *filter(None, os.environ.get("ROBOTWIN_CHECKOUTS", "").split(":"))]  # without one, the package
CONFIGS = {"easy": "demo_clean", "hard": "demo_randomized"}


def poses(environment):
    return {str(body): state.pose.tolist() for body, state in environment.bodies().items()}


def pictures(environment, observation):
    """Of each camera a digest of the picture, and the calibration."""
    views = observation["observation"]
    return {
        name: [hashlib.sha256(np.ascontiguousarray(views[name]["rgb"])).hexdigest()]
        + [views[name][key].tolist() for key in ("intrinsic_cv", "extrinsic_cv")]
        for name in CAMERAS
    }


@pytest.mark.parametrize("split", CONFIGS)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("root", ROOTS)
def test_scene_and_expert_are_those_of_the_own_path(assets, root, task, split):
    """To the last bit: poses, pictures and calibration of the scene, and the expert's result; or both fail."""
    try:
        environment = make_environment("robotwin", task, split, root=root)
    except RoboTwinMissing as error:
        pytest.skip(str(error))
    own = own_play(assets, root, task, CONFIGS[split], 3)
    try:
        observation = environment.reset(3)
        assert poses(environment) == own["initial"] and pictures(environment, observation) == own["pictures"]
        *_, last = environment.demonstrate(observe=False)
        assert poses(environment) == own["final"] and last.success is own["success"]
        assert environment.description == own["info"]
    except SeedRejected as rejected:
        assert "error" in own or not own["planned"], rejected
    environment.close()


@pytest.mark.skipif("ROBOTWIN_CHECKOUTS" not in os.environ, reason="ROBOTWIN_CHECKOUTS names no checkout")
@pytest.mark.parametrize("split", ["easy", "hard"])
def test_checkouts_run_with_stand_ins_too(split):
    for root in ROOTS[1:]:
        for embodiment in (None, ["piper", "piper", 0.6]):
            environment = make_environment("robotwin", "stack_blocks_two", split, root=root, embodiment=embodiment)
            for seed in (0, 1):
                environment.reset(seed)
                *_, last = environment.demonstrate(observe=False)
                assert last.success
            environment.close()


def test_settings_are_in_the_provenance():
    environment = make_environment("robotwin", "click_bell")
    settings = {"embodiment": "aloha-agilex", "shader": "trivial", "planner": "cpu", "assets": REVISION}
    assert environment.simulator | settings == environment.simulator
    assert environment.simulator["robotwin"] == "rlinf-robotwin-runtime 0.1.3"
    environment.close()


def test_same_actions_give_the_same_states():
    environment = make_environment("robotwin", "stack_blocks_two")
    environment.reset(0)
    actions = environment.expert().actions[::12][:10]
    runs = []
    for _ in range(2):
        environment.reset(0)
        states = []
        for action in actions:
            result = environment.step(action, "ee", observe=False)
            states.append((poses(environment), result.info["physics_steps"]))
            assert all(result.info["reached"].values())
        runs.append(states)
    assert runs[0] == runs[1]
    arms = {arm: environment.tcp(arm) for arm in ARMS}
    qpos = environment.observe()["joint_action"]["vector"]
    for arm, pose in environment.fk(qpos).items():
        np.testing.assert_allclose(pose[:3], arms[arm][:3], atol=0.01)
    environment.close()


@pytest.mark.parametrize("task, kinds", [("stack_blocks_two", ["pick", "place"] * 2), ("click_bell", ["press"])])
def test_labels(task, kinds):
    environment = make_environment("robotwin", task, depth=True)
    episode = record_episode(environment, 0, 0.0)
    assert [event.kind for event in episode.events] == kinds
    for camera in CAMERAS:
        assert episode.rgb[camera].shape[1:] == (240, 320, 3)
    assert episode.value_maps("head_camera").max() > 200
    environment.close()


@pytest.mark.parametrize(
    "task, seed, kinds", [("place_bread_skillet", 0, ["pick", "pick", "place"]), ("turn_switch", 7, ["push"])]
)
def test_events_of_the_expert(task, seed, kinds):
    """Bread that still moves on the skillet at the end, and a switch far aside."""
    environment = make_environment("robotwin", task)
    run = record_expert(environment, seed)
    assert run.success and [event.kind for event in run.events] == kinds
    environment.close()


def test_evaluation_scene():
    environment = make_environment("robotwin", "place_a2b_right", "hard")
    first = SEED_RANGES["evaluation"].start
    observation = environment.reset(first)
    assert observation["observation"]["head_camera"]["rgb"].std() > 20
    assert environment.instruction("unseen") != environment.instruction("seen")
    assert environment.step_limit == 400
    environment.close()


def test_two_robots_have_names_of_their_own():
    environment = make_environment("robotwin", "click_bell", embodiment=["piper", "piper", 0.6])
    environment.reset(0)
    names = [body.name for body in environment.bodies().values()]
    assert {"left/hand", "right/hand", "left/finger_1", "right/finger_1"} <= set(names)
    assert len(names) == len(set(names)) and environment.simulator["embodiment"] == "piper piper 0.6"
    environment.close()


def test_bad_input_is_told_before_a_scene(tmp_path, monkeypatch):
    for options, message in (
        ({"shader": "fog"}, "shader='fog' is unknown: give one of"),
        ({"embodiment": ["hexapod"]}, r"embodiment=\['hexapod'\] is unknown"),
        ({"task": "fly"}, "task is 'fly'"),
    ):
        with pytest.raises(ValueError, match=message):
            make_environment("robotwin", **({"task": "click_bell"} | options))
    (tmp_path / "assets").mkdir()
    for options, message in (
        ({"planner": "curobo"}, "can't import curobo.*--robotwin_planner cpu"),
        ({"assets": tmp_path}, "aloha-agilex/config.yml isn't there: download RoboTwin's assets .embodiments.zip"),
        ({"assets": tmp_path}, "assets/objects/050_bell isn't there"),
        ({"assets": tmp_path / "assets"}, "holds no folder assets"),
        ({"python": "/usr/bin/false"}, "ends with exit code 1"),
    ):
        with pytest.raises(RoboTwinMissing, match=message):
            make_environment("robotwin", "click_bell", **options)
    monkeypatch.delenv("ROBOTWIN_SHADER")
    try:
        make_environment("robotwin", "click_bell").close()  # a GPU traces rays
    except RoboTwinMissing as error:
        assert "--robotwin_shader trivial" in str(error)


def test_collection_is_made_and_validated(tmp_path, capsys):
    arguments = ["--suite", "robotwin", "--tasks", "click_bell", "--episodes", "1", "--splits", "easy"]
    arguments += ["--seeds_per_episode", "2", "--shard_size", "1"]
    collect.main([*arguments, "--output_dir", str(tmp_path / "episodes")])
    with pytest.raises(SystemExit) as ended:
        validate.main([str(tmp_path / "episodes")])
    assert ended.value.code == 0 and "1 simulated again; 0 problems" in capsys.readouterr().out
