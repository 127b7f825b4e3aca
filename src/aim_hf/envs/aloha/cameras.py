"""The three cameras: their poses, pictures and matrices.

They are gym-aloha's `top`, `left_wrist` and `right_wrist`, placed and opened for small pictures. The head camera looks
straight down on the area of the objects: in gym-aloha's view, twice as wide, a cube would be two pixels. The wrist
cameras are above the hands, where they see what is between the fingers: from gym-aloha's place the hand hides it.

Pictures are rendered here instead of by gym-aloha, and without the shadows and the multisampling that take most of its
time.
"""

from __future__ import annotations

import atexit
import itertools
from functools import cache, cached_property
from typing import Any

import mujoco
import numpy as np

from ...utils.extras import SimulatorFailed
from ..base import CAMERAS, Camera
from ..renderers import use_renderer

SUPERSAMPLING = 2  # pictures are rendered larger by this factor and averaged

SIZES = {name: (96, 64) for name in CAMERAS}  # width, height; equal, as LeRobot's diffusion policy wants them

NAMES = {"head_camera": "top", "left_camera": "left_wrist", "right_camera": "right_wrist"}  # of gym-aloha's cameras
FOVY = {"head_camera": 36.0, "left_camera": 60.0, "right_camera": 60.0}  # degrees

_HEAD_POSITION = (0.0, 0.5, 0.8)  # m
_STRAIGHT_DOWN = (1.0, 0.0, 0.0, 0.0)  # with the world's y up in the picture
_WRIST_POSITION = (0.0, 0.0, 0.2)  # m, in the frame of `gripper_link`; it looks at gym-aloha's point by the fingertips
_NEAR = 0.03  # m, the near plane; gym-aloha's, at 0.17 m, would cut the hands away

_OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0])


_NO_DEVICE = (
    "MuJoCo found no EGL device to render with. On a machine without a GPU it needs Mesa's EGL: on Debian "
    "`apt-get install libegl1 libegl-mesa0 libopengl0`; on one with a GPU, its driver. Physics alone needs no "
    "renderer: pass render=False."
)


class RendererMissing(SimulatorFailed):
    """MuJoCo found no EGL device to render with."""


@cache
def _egl() -> Any:
    """MuJoCo's module for EGL. Raises RendererMissing without a device."""
    try:
        from mujoco import egl
    except ImportError as error:
        raise RendererMissing(_NO_DEVICE) from error
    if egl.create_initialized_egl_device_display() == egl.EGL.EGL_NO_DISPLAY:
        raise RendererMissing(_NO_DEVICE)
    return egl


@cache
def _gl_context() -> Any:
    """The OpenGL context of this process. It has no size: each rig brings its framebuffer."""
    context = _egl().GLContext(0, 0)
    atexit.register(context.free)  # before EGL ends, which mujoco has registered earlier
    return context


class CameraRig:
    """A camera above the table, and one on each hand. `sizes`: camera -> (width, height) of its pictures."""

    def __init__(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        render: bool,
        sizes: dict[str, tuple[int, int]] = SIZES,
    ) -> None:
        self._model, self._data, self._sizes = model, data, sizes
        self._ids = {name: model.camera(NAMES[name]).id for name in CAMERAS}
        for name, camera in self._ids.items():
            model.cam_fovy[camera] = FOVY[name]
            model.cam_pos[camera] = _WRIST_POSITION
        head = self._ids["head_camera"]
        model.cam_mode[head] = mujoco.mjtCamLight.mjCAMLIGHT_FIXED
        model.cam_pos[head], model.cam_quat[head] = _HEAD_POSITION, _STRAIGHT_DOWN
        model.vis.map.znear = _NEAR / model.stat.extent
        model.vis.quality.offsamples = 0
        largest = SUPERSAMPLING * np.max([sizes[name] for name in CAMERAS], axis=0)
        model.vis.global_.offwidth, model.vis.global_.offheight = largest
        if render:
            _egl()
            self._scene = mujoco.MjvScene(model, maxgeom=1000)
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
            self._options, self._view = mujoco.MjvOption(), mujoco.MjvCamera()
            self._view.type = mujoco.mjtCamera.mjCAMERA_FIXED

    @cached_property
    def _context(self) -> mujoco.MjrContext:
        """The framebuffer and the model's meshes. It isn't made before the first picture, so that a process that has
        only made the rig can be forked. `_gl_context` is current."""
        context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_50)
        context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        return context

    def cameras(self) -> dict[str, Camera]:
        """All cameras in their current poses."""
        found = {}
        for name, camera in self._ids.items():
            width, height = self._sizes[name]
            focal = height / 2 / np.tan(np.deg2rad(FOVY[name]) / 2)
            intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
            rotation = _OPENCV_FROM_OPENGL @ self._data.cam_xmat[camera].reshape(3, 3).T
            extrinsics = np.column_stack([rotation, -rotation @ self._data.cam_xpos[camera]])
            found[name] = Camera(intrinsics, extrinsics, width, height)
        return found

    def pictures(self, depth: bool = False) -> dict[str, dict[str, np.ndarray]]:
        """Renders every camera: `rgb` uint8 (height, width, 3) and, with `depth`, float32 (height, width) in m."""
        use_renderer(_egl())
        _gl_context().make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)  # others may have bound theirs
        pictures = {}
        for name, camera in self._ids.items():
            width, height = (SUPERSAMPLING * size for size in self._sizes[name])
            self._view.fixedcamid = camera
            mujoco.mjv_updateScene(
                self._model,
                self._data,
                self._options,
                None,
                self._view,
                mujoco.mjtCatBit.mjCAT_ALL,
                self._scene,
            )
            large, nearness = np.empty((height, width, 3), np.uint8), np.empty((height, width), np.float32)
            rectangle = mujoco.MjrRect(0, 0, width, height)
            mujoco.mjr_render(rectangle, self._scene, self._context)
            mujoco.mjr_readPixels(large, nearness, rectangle, self._context)
            pictures[name] = {"rgb": _averaged(large[::-1])}
            if depth:
                pictures[name]["depth"] = self._depth(nearness[::-1][::SUPERSAMPLING, ::SUPERSAMPLING])
        return pictures

    def _depth(self, nearness: np.ndarray) -> np.ndarray:
        """Depth (height, width) in m along the camera's axis. `nearness` is linear in 1 / depth: 1 on the near plane
        and 0 on the far one."""
        extent, planes = self._model.stat.extent, self._model.vis.map
        near, far = extent * planes.znear, extent * planes.zfar
        inverse = nearness.astype(np.float64) * (1 / near - 1 / far) + 1 / far
        return np.where(nearness > 0, 1 / inverse, np.inf).astype(np.float32)


def _averaged(large: np.ndarray) -> np.ndarray:
    """The means of squares of `SUPERSAMPLING` pixels of uint8 pictures (height, width, 3), rounded."""
    offsets = itertools.product(range(SUPERSAMPLING), repeat=2)
    total = sum(large[down::SUPERSAMPLING, right::SUPERSAMPLING].astype(np.uint16) for down, right in offsets)
    return ((total + SUPERSAMPLING**2 // 2) // SUPERSAMPLING**2).astype(np.uint8)
