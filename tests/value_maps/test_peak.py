import numpy as np
import pytest

from aim_hf.value_maps.peak import SeenContact, peak, value_peak_error
from aim_hf.value_maps.render import project, splat


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


INTRINSICS = np.array([[100.0, 0, 48], [0, 100, 32], [0, 0, 1]])


def seen(x: float, y: float, z: float, tilt: float = 0.0) -> SeenContact:
    """By a camera 1 m above the origin, which looks straight down, or turned up about its x by `tilt`."""
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), np.sin(tilt)], [0, -np.sin(tilt), np.cos(tilt)]])
    rotation = turn @ np.diag([1.0, -1, -1])
    extrinsics = np.c_[rotation, rotation @ [0, 0, -1.0]]
    ((u, v),), _ = project(np.array([[x, y, z]]), INTRINSICS, extrinsics)
    return SeenContact((u, v), np.array([x, y, z]), INTRINSICS, extrinsics)


def test_error_is_a_share_of_the_canvas_and_a_distance_on_the_table_to_the_nearest_contact():
    value_map = spots((20.5, 40.5))
    near, far = seen(-0.2, -0.08, 0.2), seen(0.3, 0.1, 0.2)  # pixels (23, 42) and (85.5, 19.5)
    assert near.pixel == pytest.approx((23, 42)) and far.pixel == pytest.approx((85.5, 19.5))
    # A pixel of this camera is two canvas pixels high on a canvas 100 wide; 0.8 cm on a table 0.8 m away.
    share, distance = value_peak_error(value_map, [far, near], pixel_size=(0.01, 0.02))
    assert share == pytest.approx(np.hypot(2.5, 3) / 100) and distance == pytest.approx(0.8 * np.hypot(2.5, 1.5))
    assert value_peak_error(value_map, [], (0.01, 0.02)) is None


def test_what_a_tilted_camera_shows_at_the_height_of_the_contact_is_as_far_as_it_is():
    for tilt in (0.3, -0.7):
        contact, other = seen(0.02, 0.1, 0.3, tilt), seen(0.05, 0.06, 0.3, tilt)
        assert contact.distance(*contact.pixel) == pytest.approx(0, abs=1e-6)
        assert contact.distance(*other.pixel) == pytest.approx(5)
    horizon = seen(0.0, 0.5, 0.3, 1.2)
    assert horizon.distance(48, -40) == 100.0, "it shows the sky"
