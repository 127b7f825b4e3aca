"""The three cameras: their poses, pictures and matrices.

Matrices are computed here instead of read from the renderer, so that they are available without rendering.
"""

from __future__ import annotations

import itertools

import numpy as np
import sapien

from ...utils.extras import SimulatorFailed
from ..base import CAMERAS, Camera
from .scene import TabletopScene

SUPERSAMPLING = 2  # pictures are rendered larger by this factor and averaged

SIZES = {"head_camera": (96, 64), "left_camera": (48, 32), "right_camera": (48, 32)}  # width, height
FOVY = {"head_camera": np.deg2rad(31.5), "left_camera": np.deg2rad(65), "right_camera": np.deg2rad(65)}

HEAD_POSITION = np.array([0.0, -0.40, 1.36])
HEAD_TARGET = np.array([0.0, -0.005, 0.76])

# The wrist cameras are on the robot's side of the hand and look past the fingertips. Hand frame: x to the fingertips,
# z away from the robot.
_WRIST_POSITION = np.array([-0.11, 0.0, -0.075])
_WRIST_TARGET = np.array([0.03, 0.0, 0.012])

_OPENCV_FROM_SAPIEN = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])


NO_DEVICE = (
    "SAPIEN found no device to render with. On a machine without a GPU it needs Mesa 24.3 or newer (lavapipe): on "
    "Debian 12 install `mesa-vulkan-drivers` from bookworm-backports (`apt-get install -t bookworm-backports "
    "mesa-vulkan-drivers`); on one with a GPU, its Vulkan driver. Physics alone needs no renderer: pass render=False."
)


class RendererMissing(SimulatorFailed):
    """SAPIEN found no Vulkan device to render with."""


def look_at(position: np.ndarray, target: np.ndarray, up: np.ndarray) -> sapien.Pose:
    """The pose of a camera at `position` that looks at `target`, in SAPIEN's convention (x forward, y left, z up)."""
    forward = (target - position) / np.linalg.norm(target - position)
    left = np.cross(up, forward)
    left /= np.linalg.norm(left)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([forward, left, np.cross(forward, left)], axis=1)
    matrix[:3, 3] = position
    return sapien.Pose(matrix)


class CameraRig:
    """The fixed head camera, and a camera on each hand.

    `head_jitter` (6,) displaces the head camera: meters along x, y, z and radians about x, y, z. `sizes`: camera ->
    (width, height) of its pictures.
    """

    def __init__(
        self, scene: TabletopScene, head_jitter: np.ndarray | None = None, sizes: dict[str, tuple[int, int]] = SIZES
    ) -> None:
        jitter = np.zeros(6) if head_jitter is None else head_jitter
        head = look_at(HEAD_POSITION, HEAD_TARGET, np.array([0.0, 0.0, 1.0]))
        turn = sapien.Pose()
        turn.set_rpy(jitter[3:])
        self._head_pose = sapien.Pose(head.p + jitter[:3], (turn * sapien.Pose(q=head.q)).q)
        self._wrist_pose = look_at(_WRIST_POSITION, _WRIST_TARGET, np.array([0.0, 0.0, 1.0]))
        self._scene, self._sizes = scene, sizes
        self._components = self._add_components() if scene.visual else {}

    def _add_components(self) -> dict[str, sapien.render.RenderCameraComponent]:
        components = {}
        for name in CAMERAS:
            width, height = (SUPERSAMPLING * size for size in self._sizes[name])
            component = sapien.render.RenderCameraComponent(width, height)
            component.set_fovy(FOVY[name], compute_x=True)
            component.near, component.far = 0.01, 10.0
            components[name] = component
            if name == "head_camera":
                mount = sapien.Entity()
                mount.add_component(component)
                mount.pose = self._head_pose
                self._scene.sapien.add_entity(mount)
            else:
                self._hand(name).add_component(component)
                component.local_pose = self._wrist_pose
        return components

    def _hand(self, name: str) -> sapien.Entity:
        return self._scene.arms[name.removesuffix("_camera")].links[6].entity

    def cameras(self) -> dict[str, Camera]:
        """All cameras in their current poses."""
        found = {}
        for name in CAMERAS:
            pose = self._head_pose if name == "head_camera" else self._hand(name).pose * self._wrist_pose
            width, height = self._sizes[name]
            focal = height / 2 / np.tan(FOVY[name] / 2)
            intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
            world_to_camera = pose.inv().to_transformation_matrix().astype(np.float64)
            found[name] = Camera(intrinsics, _OPENCV_FROM_SAPIEN @ world_to_camera[:3], width, height)
        return found

    def pictures(self, tint: np.ndarray, depth: bool = False) -> dict[str, dict[str, np.ndarray]]:
        """Renders every camera: `rgb` uint8 (height, width, 3) and, on request, `depth` float32 (height, width) in m.
        `tint` (3,) multiplies colors, like colored light."""
        self._scene.sapien.update_render()
        pictures = {}
        for name, component in self._components.items():
            component.take_picture()
            large = component.get_picture("Color")[..., :3]
            width, height = self._sizes[name]
            # Adding slices takes an eighth of the time of numpy's mean over two short axes.
            offsets = itertools.product(range(SUPERSAMPLING), repeat=2)
            mean = sum(large[down::SUPERSAMPLING, right::SUPERSAMPLING] for down, right in offsets) / SUPERSAMPLING**2
            pictures[name] = {"rgb": np.clip(mean * tint * 255 + 0.5, 0, 255).astype(np.uint8)}
            if depth:
                # In OpenGL camera coordinates z points backwards. Depths aren't averaged: means lie on no surface.
                position = component.get_picture("Position")[::SUPERSAMPLING, ::SUPERSAMPLING, 2]
                pictures[name]["depth"] = np.where(position < 0, -position, np.inf).astype(np.float32)
        return pictures
