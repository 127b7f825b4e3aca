"""The robot as URDF text: two arms of primitives, each with six revolute joints and a two-finger gripper.

At joint angles 0, the upper arm points up, the forearm forward and the hand down. The last link of an arm, `hand`, has
its frame at the tool center point (TCP) between the fingertips: x is the approach direction, fingers move along y.
"""

from __future__ import annotations

import numpy as np

SHOULDER_HEIGHT = 0.16  # of the shoulder axis above the base
UPPER_ARM = 0.36
FOREARM = 0.36
WRIST_TO_TCP = 0.15

FINGER_STROKE = 0.05  # of each finger; the gripper opens by twice this
FINGER_GAP = 0.002  # from a closed finger to the middle plane, because touching fingers would jitter
FINGER_WIDTH = 0.022
FINGER_TIP = 0.012  # from the TCP to the fingertips

JOINT_LIMITS = np.array(
    [[-2.6, 2.6], [-1.2, 1.9], [-1.6, 2.2], [-1.6, 1.6], [-2.2, 2.2], [-2.9, 2.9]]
)  # rad, for q1 to q6

# Bases are beside the workspace, so that the arms reach it from the sides and don't block the head camera.
BASE_POSITIONS = {"left": (-0.42, -0.34, 0.74), "right": (0.42, -0.34, 0.74)}
BASE_QUATERNION = (np.sqrt(0.5), 0.0, 0.0, np.sqrt(0.5))  # an arm's x is the world's y

TOOL_DOWN = np.array([0.5, -0.5, 0.5, 0.5])  # TCP x down, y to the left, z away from the robot

_SHELL = (0.80, 0.81, 0.84)
_JOINT = (0.46, 0.48, 0.53)
_PALM = (0.30, 0.31, 0.35)
_FINGER = (0.10, 0.10, 0.13)
_TIP = (1.0, 0.45, 0.85)  # unlike every object's color


def _shape(geometry: str, xyz: tuple, rpy: tuple, color: tuple, visual: bool, collision: bool) -> str:
    origin = f'<origin xyz="{xyz[0]} {xyz[1]} {xyz[2]}" rpy="{rpy[0]} {rpy[1]} {rpy[2]}"/>'
    body = f"{origin}<geometry>{geometry}</geometry>"
    text = ""
    if visual:
        rgba = f"{color[0]} {color[1]} {color[2]} 1"
        text += f'<visual>{body}<material name=""><color rgba="{rgba}"/></material></visual>'
    if collision:
        text += f"<collision>{body}</collision>"
    return text


def _link(name: str, mass: float, shapes: str) -> str:
    # Inertia of a ball of 5 cm radius. Drives act on accelerations, so only the order of magnitude matters.
    inertia = 0.4 * mass * 0.05**2
    tensor = f'ixx="{inertia}" iyy="{inertia}" izz="{inertia}" ixy="0" ixz="0" iyz="0"'
    return (
        f'<link name="{name}"><inertial><origin xyz="0 0 0"/><mass value="{mass}"/><inertia {tensor}/></inertial>'
        f"{shapes}</link>"
    )


def _joint(name: str, kind: str, parent: str, child: str, xyz: tuple, rpy: tuple, axis: tuple, limits: tuple) -> str:
    return (
        f'<joint name="{name}" type="{kind}"><parent link="{parent}"/><child link="{child}"/>'
        f'<origin xyz="{xyz[0]} {xyz[1]} {xyz[2]}" rpy="{rpy[0]} {rpy[1]} {rpy[2]}"/>'
        f'<axis xyz="{axis[0]} {axis[1]} {axis[2]}"/>'
        f'<limit lower="{limits[0]}" upper="{limits[1]}" effort="1000" velocity="100"/></joint>'
    )


def arm_urdf(arm: str, visual: bool = True) -> str:
    """The URDF text of one arm. `visual=False` omits visual shapes; the physics is the same."""

    def box(size: tuple, xyz: tuple, color: tuple, collision: bool = True) -> str:
        return _shape(f'<box size="{size[0]} {size[1]} {size[2]}"/>', xyz, (0, 0, 0), color, visual, collision)

    def cylinder(radius: float, length: float, xyz: tuple, rpy: tuple, color: tuple) -> str:
        return _shape(f'<cylinder radius="{radius}" length="{length}"/>', xyz, rpy, color, visual, False)

    across = (np.pi / 2, 0, 0)  # turns a URDF cylinder (along z) to lie along y
    forward = (0, np.pi / 2, 0)  # turns it to lie along x
    finger_length = 0.078 + FINGER_TIP
    finger_center = FINGER_TIP - finger_length / 2

    def finger(side: int) -> str:
        thickness = 0.012
        y = side * (FINGER_GAP + thickness / 2)
        tip = 0.030
        return box((finger_length, thickness, FINGER_WIDTH), (finger_center, y, 0), _FINGER) + box(
            (tip, thickness + 0.001, FINGER_WIDTH + 0.001), (FINGER_TIP - tip / 2 + 0.0005, y, 0), _TIP, False
        )

    links = [
        _link("base", 4.0, cylinder(0.055, 0.10, (0, 0, 0.05), (0, 0, 0), _JOINT)),
        _link("shoulder", 2.0, cylinder(0.045, 0.10, (0, 0, -0.01), (0, 0, 0), _SHELL)),
        _link(
            "upper_arm",
            1.5,
            cylinder(0.042, 0.10, (0, 0, 0), across, _JOINT)
            + box((0.055, 0.055, UPPER_ARM), (0, 0, UPPER_ARM / 2), _SHELL),
        ),
        _link(
            "forearm",
            1.0,
            cylinder(0.036, 0.08, (0, 0, 0), across, _JOINT)
            + box((FOREARM - 0.02, 0.044, 0.044), (FOREARM / 2 - 0.01, 0, 0), _SHELL),
        ),
        _link("wrist_roll", 0.4, cylinder(0.026, 0.05, (-0.025, 0, 0), forward, _JOINT)),
        _link("wrist_pitch", 0.4, cylinder(0.026, 0.054, (0, 0, 0), across, _SHELL)),
        _link(
            "hand",
            0.5,
            box((0.035, 0.136, 0.036), (-0.0955, 0, 0), _PALM) + box((0.045, 0.04, 0.04), (-0.13, 0, 0), _SHELL),
        ),
        _link("finger_1", 0.1, finger(1)),
        _link("finger_2", 0.1, finger(-1)),
    ]
    limits = JOINT_LIMITS
    joints = [
        _joint("q1", "revolute", "base", "shoulder", (0, 0, SHOULDER_HEIGHT), (0, 0, 0), (0, 0, 1), limits[0]),
        _joint("q2", "revolute", "shoulder", "upper_arm", (0, 0, 0), (0, 0, 0), (0, 1, 0), limits[1]),
        _joint("q3", "revolute", "upper_arm", "forearm", (0, 0, UPPER_ARM), (0, 0, 0), (0, 1, 0), limits[2]),
        _joint("q4", "revolute", "forearm", "wrist_roll", (FOREARM, 0, 0), (0, 0, 0), (1, 0, 0), limits[3]),
        _joint("q5", "revolute", "wrist_roll", "wrist_pitch", (0, 0, 0), (0, np.pi / 2, 0), (0, 1, 0), limits[4]),
        _joint("q6", "revolute", "wrist_pitch", "hand", (WRIST_TO_TCP, 0, 0), (0, 0, 0), (1, 0, 0), limits[5]),
        _joint("f1", "prismatic", "hand", "finger_1", (0, 0, 0), (0, 0, 0), (0, 1, 0), (0, FINGER_STROKE)),
        _joint("f2", "prismatic", "hand", "finger_2", (0, 0, 0), (0, 0, 0), (0, -1, 0), (0, FINGER_STROKE)),
    ]
    return f'<robot name="{arm}_arm">{"".join(links)}{"".join(joints)}</robot>'
