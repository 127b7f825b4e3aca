import numpy as np
import pytest

from aim_hf.data.value_maps import splat
from aim_hf.evaluation.value_peak import peak, value_peak_error


def spots(*places, sigma=3.0, height=64, width=96):
    pixels = np.array(places, dtype=np.float64)[None]
    return splat(pixels, np.full(pixels.shape[:2], sigma), height, width)[0]


def test_peak_of_a_spot():
    assert peak(spots((20.5, 40.5))) == (20.5, 40.5)


def test_peak_of_a_plateau_is_its_middle():
    plateau = np.zeros((64, 96))
    plateau[30:41, 50:61] = 1
    assert peak(plateau) == (55.5, 35.5)


def test_a_single_bright_pixel_is_no_match_for_a_spot():
    noisy = 0.8 * spots((70.5, 30.5))
    noisy[5, 5] = 1
    assert peak(noisy) == (70.5, 30.5)


def test_error_is_a_share_of_the_canvas_to_the_nearest_contact():
    value_map = spots((20.5, 40.5))
    # A pixel of this camera is two canvas pixels high on a canvas 100 wide.
    error = value_peak_error(value_map, [(90.0, 10.0), (23.5, 42.5)], pixel_size=(0.01, 0.02))
    assert error == pytest.approx(0.05)
    assert value_peak_error(value_map, [], (0.01, 0.02)) is None
