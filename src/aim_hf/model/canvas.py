"""One canvas holds the pictures of all cameras: packed, cut apart, as the VAE's pixels, and as value maps."""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral

import numpy as np
import torch
import torch.nn.functional as F

from ..utils.arrays import as_array, as_numbers
from ..utils.checks import check_kind, shortened


def t_pose_canvas(
    canvas_size: tuple[int, int], head_size: tuple[int, int], wrist_size: tuple[int, int]
) -> dict[str, dict[str, list[int]]]:
    """The T-pose layout: the head camera on the upper two thirds, left and right wrist camera side by side below.

    Args:
        canvas_size, head_size, wrist_size: (height, width) in pixels of the canvas and of the cameras' pictures.

    Returns:
        The `cameras` of [`AIMProcessor`].

    Raises:
        ValueError: if the canvas height isn't divisible by 3, or its width by 2.
    """
    height, width = canvas_size
    if height % 3 or width % 2:
        raise ValueError(f"canvas_size is {tuple(canvas_size)}; a T-pose needs height % 3 == 0 and width % 2 == 0.")
    third, half = height // 3, width // 2
    return {
        "head_camera": {"size": list(head_size), "slot": [0, 0, 2 * third, width]},
        "left_camera": {"size": list(wrist_size), "slot": [2 * third, 0, third, half]},
        "right_camera": {"size": list(wrist_size), "slot": [2 * third, half, third, half]},
    }


class CanvasMixin:
    """The methods of [`AIMProcessor`] for pictures: numpy arrays (..., height, width, 3), as in simulators and
    datasets. A camera whose pictures and slot differ in size is resized by antialiased bilinear interpolation, which
    averages when it shrinks."""

    canvas_size: list[int]
    cameras: dict[str, dict[str, list[int]]]

    def _set_canvas(self, canvas_size: Sequence[int], cameras: Mapping[str, Mapping[str, Sequence[int]]]) -> None:
        self.canvas_size = _whole_numbers("canvas_size", canvas_size, 2)
        if not cameras:
            raise ValueError("cameras are none; expected at least one, name -> its size and slot.")
        check_kind("cameras", cameras, Mapping)
        # Sorted as in the saved JSON, so that a loaded processor has the same order.
        self.cameras = {}
        for name in sorted(cameras):
            check_kind(f"camera {name}", cameras[name], Mapping)
            if missing := [key for key in ("size", "slot") if key not in cameras[name]]:
                raise ValueError(f"camera {name} has no {', '.join(missing)}; expected size and slot.")
            size = _whole_numbers(f"size of {name}", cameras[name]["size"], 2)
            self.cameras[name] = {
                "size": size,
                "slot": _whole_numbers(f"slot of {name}", cameras[name]["slot"], 4, -math.inf),
            }
        self._check_slots()

    def _check_slots(self) -> None:
        height, width = self.canvas_size
        taken = np.zeros((height, width), dtype=bool)
        for name, camera in self.cameras.items():
            top, left, h, w = camera["slot"]
            if top < 0 or left < 0 or h < 1 or w < 1 or top + h > height or left + w > width:
                raise ValueError(
                    f"slot of {name} is {camera['slot']} (top, left, height, width); it must lie within the canvas of "
                    f"{height} x {width}."
                )
            if taken[top : top + h, left : left + w].any():
                raise ValueError(f"slot of {name}, {camera['slot']}, overlaps another one; move it.")
            taken[top : top + h, left : left + w] = True

    def pack_canvas(self, views: Mapping[str, np.ndarray]) -> np.ndarray:
        """Packs a picture, a clip or a batch of clips of each camera into canvases.

        Args:
            views: camera -> uint8 (..., H, W, 3), H and W the camera's size; the same leading shape for all cameras.

        Returns:
            uint8 (..., canvas height, canvas width, 3); black outside of the cameras' slots.

        Raises:
            ValueError: for wrong camera names, sizes or dtypes.
        """
        if not isinstance(views, Mapping):
            raise ValueError(f"pictures are {type(views).__name__}; expected a dict, camera -> uint8 (..., H, W, 3).")
        if set(views) != set(self.cameras):
            raise ValueError(f"cameras are {sorted(views)}; expected {sorted(self.cameras)}. Rename or complete them.")
        views = {name: as_array(f"picture of {name}", views[name]) for name in self.cameras}
        leading = next(iter(views.values())).shape[:-3]
        canvas = np.zeros((*leading, *self.canvas_size, 3), dtype=np.uint8)
        for name, camera in self.cameras.items():
            view, expected = views[name], (*leading, *camera["size"], 3)
            if view.dtype != np.uint8:
                raise ValueError(
                    f"picture of {name} has dtype {view.dtype}; expected uint8 RGB, 0 to 255. Convert it."
                )
            if view.shape != expected:
                raise ValueError(
                    f"picture of {name} has shape {view.shape}; expected {expected} (height, width and RGB last). "
                    "Render at this size, or load a processor made for that camera."
                )
            top, left, h, w = camera["slot"]
            canvas[..., top : top + h, left : left + w, :] = _resize(view, (h, w))
        return canvas

    def unpack_canvas(self, canvas: np.ndarray) -> dict[str, np.ndarray]:
        """Cuts canvases into pictures of the cameras' sizes: the inverse of `pack_canvas`, exact if a slot has its
        camera's size.

        Args:
            canvas: (..., canvas height, canvas width, channels), uint8 or floating point.

        Returns:
            camera -> (..., H, W, channels), same dtype.

        Raises:
            ValueError: for a canvas of another size.
        """
        canvas = np.asarray(canvas)
        if canvas.ndim < 3 or list(canvas.shape[-3:-1]) != self.canvas_size:
            raise ValueError(
                f"canvas has shape {canvas.shape}; expected (..., height, width, channels) with height and width "
                f"{self.canvas_size}."
            )
        views = {}
        for name, camera in self.cameras.items():
            top, left, h, w = camera["slot"]
            views[name] = _resize(canvas[..., top : top + h, left : left + w, :], camera["size"])
        return views

    def canvas_to_pixels(self, canvas: np.ndarray) -> torch.Tensor:
        """uint8 (B, T, H, W, 3) -> float32 (B, 3, T, H, W) in [-1, 1], the VAE's input. Raises ValueError for another
        shape or dtype."""
        canvas = np.asarray(canvas)
        if canvas.dtype != np.uint8 or canvas.ndim != 5 or canvas.shape[-1] != 3:
            raise ValueError(f"canvas is {canvas.dtype} {canvas.shape}; expected uint8 (B, T, H, W, 3).")
        return torch.from_numpy(canvas).permute(0, 4, 1, 2, 3).float() / 127.5 - 1

    def pixels_to_canvas(self, pixels: torch.Tensor) -> np.ndarray:
        """(B, 3, T, H, W) in [-1, 1] -> float32 (B, T, H, W, 3) in [0, 1]."""
        return (pixels.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 4, 1).cpu().numpy()

    def value_to_rgb(self, value_map: np.ndarray) -> np.ndarray:
        """Value map (..., H, W) in [0, 1] -> gray RGB picture, uint8 (..., H, W, 3). Raises ValueError for numbers of
        another dtype or range."""
        value_map = as_numbers("value map", value_map)
        if not ((value_map >= 0) & (value_map <= 1)).all():
            raise ValueError(
                f"value map spans {value_map.min()} to {value_map.max()}; expected numbers in [0, 1] and no NaN."
            )
        gray = np.round(value_map * 255).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=-1)

    def rgb_to_value(self, rgb: np.ndarray) -> np.ndarray:
        """RGB picture of a value map -> the map, which is the clamped channel mean. (..., H, W, 3), uint8 or floating
        point in [0, 1] -> float32 (..., H, W) in [0, 1]. Raises ValueError for another dtype."""
        rgb = np.asarray(rgb)
        if rgb.dtype != np.uint8 and rgb.dtype.kind != "f":  # other integers would be white
            raise ValueError(f"picture of a value map has dtype {rgb.dtype}; expected uint8, or floats in [0, 1].")
        scale = 255 if rgb.dtype == np.uint8 else 1
        return np.clip(rgb.mean(axis=-1, dtype=np.float32) / scale, 0, 1)


def _whole_numbers(name: str, numbers: Sequence[int], count: int, least: float = 1) -> list[int]:
    """`numbers` as a list. Raises ValueError unless these are `count` integers of at least `least`."""
    several = isinstance(numbers, Sequence | np.ndarray) and not isinstance(numbers, str) and len(numbers) == count
    if not several or not all(isinstance(n, Integral) and not isinstance(n, bool) and n >= least for n in numbers):
        above = f", each at least {least}" if math.isfinite(least) else ""
        raise ValueError(f"{name} is {shortened(numbers)}; expected {count} whole numbers{above}.")
    return [int(number) for number in numbers]


def _resize(pictures: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """(..., H, W, C) -> (..., *size, C), same dtype. Pictures that have this size already are returned unchanged."""
    *leading, height, width, channels = pictures.shape
    if (height, width) == tuple(size):
        return pictures
    flat = torch.from_numpy(np.ascontiguousarray(pictures).reshape(-1, height, width, channels)).permute(0, 3, 1, 2)
    resized = F.interpolate(flat.float(), size=tuple(size), mode="bilinear", antialias=True)
    resized = resized.permute(0, 2, 3, 1).numpy()
    if pictures.dtype == np.uint8:
        resized = resized.round().clip(0, 255)
    return resized.astype(pictures.dtype).reshape(*leading, *size, channels)
