"""How far the peak of a value map lies from the true contact: the diagnostic that the value loss can't give."""

from dataclasses import dataclass

import numpy as np

FARTHEST = 100.0  # cm: farther off is no more wrong
SMOOTHING = 0.02  # of the map's width: the standard deviation of the Gaussian that turns a plateau into a peak


def peak(value_map: np.ndarray) -> tuple[float, float]:
    """The place (u right, v down, in pixels) where a map (height, width), slightly smoothed, is largest. Pixel
    (row, column) has its middle at u = column + 0.5, v = row + 0.5."""
    value_map = np.asarray(value_map, dtype=np.float64)
    sigma = SMOOTHING * value_map.shape[1]
    reach = int(np.ceil(3 * sigma))
    window = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    for axis in (0, 1):
        padding = [(reach, reach) if i == axis else (0, 0) for i in (0, 1)]
        slices = np.lib.stride_tricks.sliding_window_view(np.pad(value_map, padding), len(window), axis=axis)
        value_map = slices @ window
    row, column = np.unravel_index(value_map.argmax(), value_map.shape)
    return float(column + 0.5), float(row + 0.5)


@dataclass(frozen=True)
class SeenContact:
    """A true contact in the picture of a camera.

    pixel: (u, v). point (3,): where it is, in the world (m).
    intrinsics (3, 3), extrinsics (3, 4): the camera's, as of `value_maps.project`.
    """

    pixel: tuple[float, float]
    point: np.ndarray
    intrinsics: np.ndarray
    extrinsics: np.ndarray

    def distance(self, u: float, v: float) -> float:
        """Centimetres from the contact to what pixel (u, v) shows at its height; at most `FARTHEST`, as of a pixel
        above the horizon."""
        rotation, shift = np.float64(self.extrinsics[:, :3]), np.float64(self.extrinsics[:, 3])
        eye, sight = -rotation.T @ shift, rotation.T @ np.linalg.solve(np.float64(self.intrinsics), [u, v, 1.0])
        height = self.point[2] - eye[2]
        if height * sight[2] <= 0:
            return FARTHEST
        place = eye + sight * (height / sight[2])
        return float(min(100 * np.linalg.norm((place - self.point)[:2]), FARTHEST))


def value_peak_error(
    value_map: np.ndarray, contacts: list[SeenContact], pixel_size: tuple[float, float]
) -> tuple[float, float] | None:
    """How far a map's peak lies from the nearest true contact: on the canvas, as a share of its width, and on the
    horizontal plane through that contact, such as a table, in centimetres.

    Args:
        value_map: (height, width), one camera's predicted map.
        contacts: those that the camera sees; more than one where both arms act.
        pixel_size: width and height of one of the camera's pixels on the canvas, as shares of the canvas's width.

    Returns:
        None where no contact is in view.
    """
    if not contacts:
        return None
    u, v = peak(value_map)
    shares = [np.hypot((u - c.pixel[0]) * pixel_size[0], (v - c.pixel[1]) * pixel_size[1]) for c in contacts]
    return float(min(shares)), contacts[int(np.argmin(shares))].distance(u, v)
