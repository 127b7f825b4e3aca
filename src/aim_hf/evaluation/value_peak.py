"""How far the peak of a value map lies from the true contact: the diagnostic that the value loss can't give."""

import numpy as np

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


def value_peak_error(
    value_map: np.ndarray, contacts: list[tuple[float, float]], pixel_size: tuple[float, float]
) -> float | None:
    """Distance between a map's peak and the nearest true contact, as a share of the canvas's width.

    Args:
        value_map: (height, width), one camera's predicted map.
        contacts: (u, v) in that camera's pixels, as of [`ExpertRun.contacts`]; more than one where both arms act.
        pixel_size: width and height of one of the camera's pixels on the canvas, as shares of the canvas's width.

    Returns:
        None where no contact is in view.
    """
    u, v = peak(value_map)
    distances = [np.hypot((u - x) * pixel_size[0], (v - y) * pixel_size[1]) for x, y in contacts]
    return float(min(distances)) if distances else None
