"""Conventions of rotations and grippers, and configs that don't fit."""

import numpy as np
import pytest

from aim_hf.data.lerobot.robot import CONVENTIONS, Contacts, check_absolute, closings_and_openings
from aim_hf.data.lerobot.source import LeRobotSource
from aim_hf.envs.poses import rotation_matrix

from ..fixtures_lerobot import ARM, FIXTURES, JOINTS, TOOL, robot


def test_rotation_conventions_agree():
    rng = np.random.default_rng(0)
    wxyz = rng.normal(size=(20, 4))
    wxyz /= np.linalg.norm(wxyz, axis=1, keepdims=True) * np.sign(wxyz[:, :1])
    expected = rotation_matrix(wxyz)
    angle = 2 * np.arccos(wxyz[:, :1])
    vector = angle * wxyz[:, 1:] / np.sin(angle / 2)
    pitch = -np.arcsin(expected[:, 2, 0])
    roll = np.arctan2(expected[:, 2, 1], expected[:, 2, 2])
    yaw = np.arctan2(expected[:, 1, 0], expected[:, 0, 0])
    given = {
        "wxyz": wxyz,
        "xyzw": wxyz[:, [1, 2, 3, 0]],
        "rpy": np.stack([roll, pitch, yaw], axis=1),
        "rotation_vector": vector,
    }
    assert given.keys() == CONVENTIONS.keys()
    for name, rotation in given.items():
        np.testing.assert_allclose(rotation_matrix(CONVENTIONS[name](rotation)), expected, atol=1e-9, err_msg=name)
    np.testing.assert_array_equal(CONVENTIONS["rotation_vector"](np.zeros((1, 3))), [[1, 0, 0, 0]])


@pytest.mark.parametrize("convention", ["wxyz", "rpy"])
def test_signs_of_quaternions_are_no_motion(tmp_path, convention):
    """A tool that turns a little is measured with roll angles of both signs about 180 degrees, and with both signs of
    quaternions."""
    time = np.linspace(0, 1, 20)
    roll = np.pi - 0.01 * (-1.0) ** np.arange(20)
    roll[roll > np.pi] -= 2 * np.pi
    angles = np.stack([roll, 0.9 + 0.1 * time, 0.8 - 0.1 * time], axis=1)
    target = np.stack([np.full(20, np.pi), 0.9 + 0.1 * time, 0.8 - 0.1 * time], axis=1)
    measured, commanded = (CONVENTIONS["rpy"](of) if convention == "wxyz" else of for of in (angles, target))
    xyz, still = np.stack([0.1 * time, 0 * time, 0 * time], axis=1), np.ones((20, 1))
    width = measured.shape[1]
    pose = {"xyz": "[0:3]", "rotation": f"[3:{3 + width}]", "gripper": f"[{3 + width}]"}
    poses = {part: {name: f"{part}{place}" for name, place in pose.items()} for part in ("state", "action")}
    described = robot(
        TOOL | {"arms": {"right": poses | {"convention": convention}}, "calibration": {}, "contacts": None}, tmp_path
    )
    frames = {
        "state": np.concatenate([xyz, measured, still], axis=1),
        "action": np.concatenate([xyz, commanded, still], axis=1),
    }
    state, action = described.states_and_actions(frames)
    assert np.abs(np.diff(state, axis=0)).max() < 0.03
    check_absolute("turns", np.ptp(action, axis=0), np.ptp(state, axis=0))


@pytest.mark.parametrize("convention", ["rpy", "rotation_vector"])
def test_degrees_are_refused(convention):
    """Taken for rad, they would be other rotations."""
    angles = np.array([[0.1, 0, 0], [-180, 0.5, 89]])
    with pytest.raises(ValueError, match=r"angles of frame 1 are \[-180.0, 0.5, 89.0\]; expected rad, at most 12.6"):
        CONVENTIONS[convention](angles)
    CONVENTIONS[convention](np.deg2rad(angles))


def test_a_noisy_gripper_makes_one_event_each_way():
    thresholds = Contacts(closed=0.3, open=0.6)
    noisy = np.array([1, 0.9, 0.4, 0.2, 0.35, 0.25, 0.5, 0.7, 0.5, 0.65])
    assert closings_and_openings(noisy, thresholds) == [(3, "pick"), (7, "place")]
    assert closings_and_openings(np.array([0, 0.1, 1, 1]), thresholds) == [], "nothing was held"


MOVED = np.eye(4) + np.outer([0.1, 0.2, 0.3, 0], [0, 0, 0, 1])


def calibrated(extrinsics: list) -> dict:
    return {"head_camera": {"intrinsics": [4, 4, 2, 2], "size": [4, 4], "extrinsics": extrinsics}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": {"top": "observation.images.top"}}, "cameras has top; expected some of head_camera"),
        ({"cameras": {}}, "cameras is empty"),
        ({"action_space": "joints"}, "action_space is 'joints'; expected one of ee, qpos"),
        ({"arms": {}}, "action space ee needs arms"),
        ({"arms": {"right": ARM | {"convention": "zyx"}}}, "convention of the right arm is 'zyx'"),
        ({"arms": {"right": ARM | {"gripper_open": 0}}}, "gripper_closed and gripper_open of the right arm are both"),
        ({"arms": {"right": {"state": ARM["state"]}}}, "action of the right arm must have xyz"),
        ({"calibration": {}}, "contacts make value maps, which need calibration"),
        ({"contacts": {"closed": 0.7}}, "contacts: closed is 0.7 and open 0.6"),
        ({"contacts": {"threshold": 0.7}}, "contacts has unknown threshold; expected some of closed, open"),
        ({"speed": 3}, "the file has unknown speed"),
        ({"instruction": ""}, "instruction is ''; expected a sentence, or leave it out to use the dataset's tasks"),
        ({"instruction": " \n"}, r"instruction is ' \\n'; expected a sentence, or leave it out"),
        ({"state": "observation.state"}, "state is 'observation.state'; expected list"),
        ({"state": ["a[1"]}, r"'a\[1' names no column"),
        ({"state": [], "action": []}, "state or action is an empty list; expected columns"),
        ({"calibration": calibrated([[1, 0], [0]])}, r"calibration of head_camera: .* 4 x 4 .*; got \[\[1.0, 0.0\], "),
        ({"calibration": calibrated([])}, "calibration of head_camera: expected a 4 x 4 matrix"),
        ({"calibration": calibrated((2 * np.eye(4)).tolist())}, "calibration of head_camera: .* of a rotation"),
        ({"calibration": calibrated(MOVED.T.tolist())}, "calibration of head_camera: .* last row is 0, 0, 0, 1; got"),
    ],
)
def test_a_wrong_config_says_where(tmp_path, changes, message):
    with pytest.raises(ValueError, match=f"robot.json: {message}"):
        robot(TOOL | changes, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"cameras": {"head_camera": "observation.images.front"}},
            "has no camera observation.images.front; it has observation.images.top, observation.images.wrist",
        ),
        ({"action": ["action[0:9]"]}, r"action\[0:9\] is out of range: action has 7 numbers"),
        ({"action": ["actions"]}, "has no column actions of numbers; it has observation.state, action"),
        ({"action": ["action[0:6]"]}, r"state has 7 numbers .* and action 6"),
        ({"arms": {"left": {"state": {"xyz": "observation.tool"}}}}, "observation.tool has 8 numbers; expected 3"),
    ],
)
def test_a_config_that_does_not_fit_the_dataset_says_what_there_is(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        robot(JOINTS | changes, tmp_path).check_source(LeRobotSource(FIXTURES / "lerobot_v3"))
