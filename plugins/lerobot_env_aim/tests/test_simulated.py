"""A scene as a robot of LeRobot, and its expert as a teleoperator."""

import numpy as np
import pytest
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError
from lerobot_env_aim import SimulatedExpert, SimulatedExpertConfig, SimulatedRobot, SimulatedRobotConfig


def test_an_unconnected_device_says_so_and_a_connected_one_keeps_its_scene(tmp_path):
    robot = SimulatedRobot(SimulatedRobotConfig(task="turn_switch", seed=3, calibration_dir=tmp_path))
    expert = SimulatedExpert(SimulatedExpertConfig(task="turn_switch", seed=3, calibration_dir=tmp_path))
    for call in (robot.get_observation, lambda: robot.send_action({}), expert.get_action):
        with pytest.raises(DeviceNotConnectedError, match="is not connected"):
            call()
    robot.connect()
    expert.connect()
    start = robot.get_observation()
    for _ in range(3):
        robot.send_action(expert.get_action())
    moved = robot.get_observation()
    for device in (robot, expert):
        with pytest.raises(DeviceAlreadyConnectedError, match="is already connected"):
            device.connect()
    numbers = list(robot.action_features)
    assert [robot.get_observation()[name] for name in numbers] == [moved[name] for name in numbers]
    assert any(start[name] != moved[name] for name in numbers)
    for device in (robot, expert):
        device.disconnect()
        with pytest.raises(DeviceNotConnectedError, match="is not connected"):
            device.disconnect()
    robot.connect()  # sets up the scene anew
    np.testing.assert_array_equal(robot.get_observation()["head_camera"], start["head_camera"])
    robot.disconnect()


@pytest.mark.parametrize(
    "fields, told",
    [
        ({"task": "click_bells"}, "no task click_bells in suite 'tabletop'; choose from click_bell"),
        ({"split": "camera-9"}, "split='camera-9' is unknown in suite 'tabletop'"),
        ({"seed": -1}, "seed is -1; expected a whole number, 0 to 99999999"),
        ({"action_mode": "joint"}, "action_mode is 'joint'; expected one of ee, qpos"),
    ],
)
def test_bad_values_are_named_before_a_folder_is_made(fields, told):
    for config in (SimulatedRobotConfig, SimulatedExpertConfig)[: 2 - ("action_mode" in fields)]:
        with pytest.raises(ValueError, match=told):
            config(**fields)
