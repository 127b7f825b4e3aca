"""The distance of a value map's peak from the true contact, a diagnostic that the value loss doesn't give."""

from dataclasses import dataclass

import numpy as np

FARTHEST = 100.0  # cm: larger distances are clipped
# Standard deviation of the Gaussian that turns a plateau into a peak, as a fraction of the map's width.
SMOOTHING = 0.02


def peak(value_map: np.ndarray) -> tuple[float, float]:
    """The position (u right, v down, in pixels) of the maximum of a slightly smoothed map (height, width). The center
    of pixel (row, column) is at u = column + 0.5, v = row + 0.5."""
    value_map = np.asarray(value_map, dtype=np.float64)
    sigma = SMOOTHING * value_map.shape[1]
    reach = int(np.ceil(3 * sigma))
    window = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    for axis in (0, 1):
        padding = [(reach, reach) if other == axis else (0, 0) for other in (0, 1)]
        slices = np.lib.stride_tricks.sliding_window_view(np.pad(value_map, padding), len(window), axis=axis)
        value_map = slices @ window
    row, column = np.unravel_index(value_map.argmax(), value_map.shape)
    return float(column + 0.5), float(row + 0.5)


@dataclass(frozen=True)
class SeenContact:
    """A true contact in the picture of a camera.

    pixel: (u, v). point (3,): world coordinates (m).
    intrinsics (3, 3), extrinsics (3, 4): of the camera, as in `render.project`.
    """

    pixel: tuple[float, float]
    point: np.ndarray
    intrinsics: np.ndarray
    extrinsics: np.ndarray

    def distance(self, u: float, v: float) -> float:
        """Distance (cm) from the contact to the point that pixel (u, v) shows on the horizontal plane through it.

        At most `FARTHEST`, which is also the distance of pixels above the horizon.
        """
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
    """The distance of a map's peak from the nearest true contact.

    Args:
        value_map: (height, width), the predicted map of one camera.
        contacts: the contacts in view of the camera; more than one if both arms act.
        pixel_size: width and height of a pixel of the camera on the canvas, as fractions of the canvas's width.

    Returns:
        The distance on the canvas as a fraction of its width, and the distance in centimeters on the horizontal plane
        through the contact. None if no contact is in view.
    """
    if not contacts:
        return None
    u, v = peak(value_map)
    distances = [
        np.hypot((u - contact.pixel[0]) * pixel_size[0], (v - contact.pixel[1]) * pixel_size[1])
        for contact in contacts
    ]
    return float(min(distances)), contacts[int(np.argmin(distances))].distance(u, v)
