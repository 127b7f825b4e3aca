"""The stand-in robots: RoboTwin's embodiment folders, with the arms of `tabletop`.

`aloha-agilex` is one robot with two arms, `piper` one arm, of which RoboTwin loads two. A tool frame of RoboTwin has x
along the fingers and z away from the table's near edge, as the link `hand` has, whose frame is the tool center point.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from ...base import ARMS
from ...tabletop.robot import FINGER_STROKE, arm_urdf

ROBOT_POSE = [0.0, -0.65, 0.0, 0.7071068, 0.0, 0.0, 0.7071068]  # as RoboTwin's robots: x is the world's y
BASES = {"left": (0.23, 0.3, 0.74), "right": (0.23, -0.3, 0.74)}  # of the arms, in the robot's frame
# rad: the tool center points are 0.21 m above the table, the fingers point down by 60° from level.
HOME = [0.0, -0.566, 0.917, 0.0, -0.875, 0.0]

_CAMERA = '<link name="{arm}camera"/><joint name="{arm}camera_joint" type="fixed"><parent link="{arm}hand"/>'
_CAMERA += '<child link="{arm}camera"/><origin xyz="-0.11 0 0.075" rpy="0 0.55 0"/></joint>'
_MOUNT = '<joint name="{arm}mount" type="fixed"><parent link="root"/><child link="{arm}base"/>'
_MOUNT += '<origin xyz="{x} {y} {z}" rpy="0 0 0"/></joint>'

# Collision spheres of the planner, link -> (x, radius) along the link's x axis.
_SPHERES = {"forearm": [(0.30, 0.03)], "wrist_pitch": [(0.03, 0.03)], "hand": [(-0.10, 0.02), (0.0, 0.008)]}

_WIDE = (-3.1, 3.1)
# rad, wider than in tabletop: RoboTwin's experts also grasp from the side and near the base, and turn things round.
_LIMITS = {"q2": (-1.9, 1.9), "q3": (-1.6, 2.5), "q4": _WIDE, "q5": _WIDE, "q6": _WIDE}
_COLLIDING = ("upper_arm", "forearm", "hand", "finger_1", "finger_2")  # links with collision shapes


def write_robots(folder: Path, root: Path) -> None:
    """Writes `aloha-agilex` and `piper` into the folder `embodiments`. `root` will contain `assets/`."""
    mounts = [_MOUNT.format(arm=f"{arm}_", x=x, y=y, z=z) for arm, (x, y, z) in BASES.items()]
    parts = "".join(_elements(arm, f"{arm}_") for arm in ARMS)
    dual = f'<robot name="aloha-agilex"><link name="root"/>{parts}{"".join(mounts)}</robot>'
    _write(folder / "aloha-agilex", dual, [f"{arm}_" for arm in ARMS], BASES, root)
    x, y, z = 0.23, 0.0, 0.74
    single = f'<robot name="piper"><link name="root"/>{_elements("left", "")}'
    single += _MOUNT.format(arm="", x=x, y=y, z=z) + "</robot>"
    _write(folder / "piper", single, ["", ""], dict.fromkeys(ARMS, (x, y, z)), root)


def _elements(arm: str, prefix: str) -> str:
    """The links and joints of an arm, their names prefixed, with a camera on the hand."""
    robot = ElementTree.fromstring(arm_urdf(arm))
    for name, (lower, upper) in _LIMITS.items():
        limits = robot.find(f"joint[@name='{name}']/limit")
        limits.set("lower", str(lower))
        limits.set("upper", str(upper))
    for element in robot:
        element.set("name", prefix + element.get("name"))
        for end in element.findall("parent") + element.findall("child"):
            end.set("link", prefix + end.get("link"))
    return "".join(ElementTree.tostring(element, "unicode") for element in robot) + _CAMERA.format(arm=prefix)


def _write(
    folder: Path, urdf: str, prefixes: list[str], bases: dict[str, tuple[float, float, float]], root: Path
) -> None:
    folder.mkdir(parents=True)
    (folder / "robot.urdf").write_text(urdf)
    (folder / "robot.srdf").write_text(_srdf(folder.name, prefixes))
    _write_yaml(folder / "config.yml", _config(prefixes))
    for arm, prefix in zip(ARMS, prefixes, strict=True):
        path = f"assets/embodiments/{folder.name}/robot.urdf"
        config = {
            "robot_cfg": {
                "kinematics": {
                    "urdf_path": "${ASSETS_PATH}/" + path,
                    "base_link": f"{prefix}base",
                    "ee_link": f"{prefix}hand",
                    "collision_spheres": {
                        prefix + link: [{"center": [x, 0.0, 0.0], "radius": radius} for x, radius in balls]
                        for link, balls in _SPHERES.items()
                    },
                }
            },
            "planner": {"frame_bias": [-value for value in bases[arm]]},
        }
        _write_yaml(folder / f"curobo_{arm}_tmp.yml", config)  # the pip package fills in the path
        config["robot_cfg"]["kinematics"]["urdf_path"] = str(root / path)
        _write_yaml(folder / f"curobo_{arm}.yml", config)  # for checkouts
    if prefixes[0] == prefixes[1]:
        _write_yaml(folder / "curobo.yml", config)  # for checkouts, of a robot with one arm


def _srdf(name: str, prefixes: list[str]) -> str:
    """Switches off the collisions within an arm: boxes of neighbors overlap when the wrist bends."""
    pairs = "".join(
        f'<disable_collisions link1="{prefix}{first}" link2="{prefix}{second}" reason="Default"/>'
        for prefix in dict.fromkeys(prefixes)
        for first, second in combinations(_COLLIDING, 2)
    )
    return f'<robot name="{name}">{pairs}</robot>'


def _config(prefixes: list[str]) -> dict[str, Any]:
    """RoboTwin's `config.yml` of an embodiment."""
    return {
        "urdf_path": "robot.urdf",
        "joint_stiffness": 1000,
        "joint_damping": 200,
        "gripper_stiffness": 1000,
        "gripper_damping": 200,
        "move_group": [f"{prefix}hand" for prefix in prefixes],
        "ee_joints": [f"{prefix}q6" for prefix in prefixes],
        "arm_joints_name": [[f"{prefix}q{index}" for index in range(1, 7)] for prefix in prefixes],
        "gripper_name": [{"base": f"{prefix}f1", "mimic": [[f"{prefix}f2", 1.0, 0.0]]} for prefix in prefixes],
        "gripper_bias": 0.0,  # from the link to the tool center point
        "gripper_scale": [0.0, FINGER_STROKE],
        "homestate": [HOME, HOME],
        "delta_matrix": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        # From the frame of q6, as SAPIEN lays it, to the link.
        "global_trans_matrix": [[1, 0, 0], [0, -1, 0], [0, 0, -1]],
        "robot_pose": [ROBOT_POSE],
        "planner": "mplib_RRT",
        "dual_arm": prefixes[0] != prefixes[1],
        "rotate_lim": [0, 0],
        "grasp_perfect_direction": ["front_right", "front_left"],
        "static_camera_list": [
            {
                "name": "head_camera",
                "type": "D435",
                "position": [-0.032, -0.45, 1.35],
                "forward": [0.0, 0.6, -0.8],
                "left": [-1.0, 0.0, 0.0],
            }
        ],
    }


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
