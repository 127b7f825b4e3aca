"""Value maps against geometry worked out by hand."""

import numpy as np
import pytest

from aim_hf.envs.poses import rotation_matrix
from aim_hf.value_maps.render import (
    MAX_SIGMA,
    MIN_SIGMA,
    RADIUS,
    TOGETHER,
    Event,
    fill_hull,
    project,
    render_value_maps,
    shown_events,
    splat,
    visible_shares,
)

from ..data.fixtures_episodes import camera_above, resting_at

HEIGHT, WIDTH = 64, 96
POINT = np.zeros((1, 3), dtype=np.float32)


def event(frame, pose, points=POINT, kind="pick", arm="left") -> Event:
    return Event(kind, arm, frame, "block", np.asarray(points, dtype=np.float32), pose)


def gray(events, num_frames=10, focal=100.0, z=1.74) -> np.ndarray:
    intrinsics, extrinsics = camera_above(num_frames, HEIGHT, WIDTH, focal, z)
    maps = render_value_maps(events, intrinsics, extrinsics, HEIGHT, WIDTH)
    assert maps.shape == (num_frames, HEIGHT, WIDTH, 3) and maps.dtype == np.uint8
    assert np.array_equal(maps[..., 0], maps[..., 1]) and np.array_equal(maps[..., 0], maps[..., 2])
    return maps[..., 0]


def peak(picture: np.ndarray) -> tuple[int, int]:
    row, column = np.unravel_index(picture.argmax(), picture.shape)
    return int(row), int(column)


def test_project_a_point_by_hand():
    intrinsics, extrinsics = camera_above(1, HEIGHT, WIDTH, focal=100.0, z=2.0)
    pixels, depth = project(np.array([[[0.1, 0.2, 1.0], [0.0, 0.0, 3.0]]]), intrinsics, extrinsics)
    assert depth[0].tolist() == [1.0, -1.0]
    np.testing.assert_allclose(pixels[0, 0], [48 + 10, 32 - 20])
    assert np.isinf(pixels[0, 1]).all(), "behind the camera"


def test_rotation_matrix_is_of_a_wxyz_quaternion():
    quarter_turn_about_z = [np.sqrt(0.5), 0, 0, np.sqrt(0.5)]
    np.testing.assert_allclose(rotation_matrix(quarter_turn_about_z) @ [1, 0, 0], [0, 1, 0], atol=1e-12)


def test_map_lies_on_the_contact_point_with_the_width_of_the_radius_at_its_depth():
    # A point 1 m below the camera, 0.105 m to the right and 0.055 m up: the centre of pixel (26, 58).
    picture = gray([event(5, resting_at(0.105, 0.055, 0.74, 10))])[0]
    assert peak(picture) == (26, 58) and picture.max() == 255
    sigma = 100 * RADIUS / 1.0
    distance = np.arange(-10, 11)
    expected = 255 * np.exp(-0.5 * (distance / sigma) ** 2)
    assert np.abs(picture[26, 58 + distance].astype(float) - expected).max() <= 0.51


@pytest.mark.parametrize(("focal", "sigma"), [(20.0, MIN_SIGMA), (5000.0, MAX_SIGMA * WIDTH)])
def test_width_is_clipped(focal, sigma):
    intrinsics, extrinsics = camera_above(1, HEIGHT, WIDTH, focal, 1.74)
    pose = resting_at(0.5 / focal, 0.5 / focal, 0.74, 1)
    picture = render_value_maps([event(0, pose)], intrinsics, extrinsics, HEIGHT, WIDTH)[0, ..., 0]
    assert peak(picture) == (31, 48)
    assert abs(picture[31, 48 + 3] - 255 * np.exp(-0.5 * (3 / sigma) ** 2)) <= 0.51


def test_map_follows_the_body_that_it_is_fixed_to():
    pose = resting_at(0.005, 0.005, 0.74, 10)
    pose[:, 0] += np.arange(10) * 0.02  # two pixels a frame
    pose[4:, 3:] = [0, 0, 0, 1]  # half a turn: the point, 0.1 m along the body's x, changes sides
    maps = gray([event(9, pose, [[0.1, 0, 0]])])
    assert [peak(picture)[1] for picture in maps] == [48 + 2 * f + (10 if f < 4 else -10) for f in range(10)]


def test_out_of_view_is_black():
    assert gray([event(9, resting_at(2, 0, 0.74, 10))]).max() == 0
    assert gray([event(9, resting_at(0, 0, 3, 10))]).max() == 0, "behind the camera"


def test_only_frames_in_view_are_drawn_when_the_body_enters_the_picture():
    pose = resting_at(-2, 0.005, 0.74, 10)
    pose[6:, 0] = 0.005
    assert [picture.max() == 255 for picture in gray([event(9, pose)])] == [False] * 6 + [True] * 4


def test_each_frame_shows_the_next_event_up_to_the_frame_in_which_it_happens():
    pick = event(3, resting_at(-0.2, 0, 0.74, 10))
    place = event(7, resting_at(0.2, 0, 0.74, 10), kind="place")
    left, right = (gray([pick, place])[..., half] for half in (slice(0, 48), slice(48, 96)))
    assert [picture.max() > 200 for picture in left] == [True] * 4 + [False] * 6
    assert [picture.max() > 200 for picture in right] == [False] * 4 + [True] * 4 + [False] * 2
    assert gray([pick, place])[8:].max() == 0, "black after the last event"


def test_order_of_the_list_of_events_does_not_matter():
    pick, place = event(3, resting_at(-0.2, 0, 0.74, 10)), event(7, resting_at(0.2, 0, 0.74, 10), kind="place")
    assert np.array_equal(gray([pick, place]), gray([place, pick]))


@pytest.mark.parametrize(("apart", "together"), [(0, True), (TOGETHER, True), (TOGETHER + 1, False)])
def test_both_arms_at_nearly_the_same_time_share_a_map(apart, together):
    num_frames = 20
    left = event(8, resting_at(-0.2, 0, 0.74, num_frames), arm="left")
    right = event(8 + apart, resting_at(0.2, 0, 0.74, num_frames), arm="right")
    shown = shown_events([left, right], num_frames)
    assert shown[0].tolist() == [True] * 9 + [False] * 11
    assert shown[1, :9].tolist() == [together] * 9
    assert shown[1, 9:].tolist() == [frame <= 8 + apart for frame in range(9, 20)]
    alone = np.maximum(gray([left], num_frames)[:9], gray([right], num_frames)[:9] if together else 0)
    assert np.array_equal(gray([left, right], num_frames)[:9], alone), "max over points"


def test_two_events_of_one_arm_are_never_shown_together():
    events = [event(frame, resting_at(0, 0, 0.74, 10)) for frame in (3, 4)]
    assert shown_events(events, 10).sum(axis=0).max() == 1


def test_four_corners_make_one_blob():
    corners = [[x, y, 0] for x in (-0.06, 0.06) for y in (-0.06, 0.06)]
    picture = gray([event(0, resting_at(0, 0, 0.74, 1), corners)], num_frames=1)[0]
    assert picture[26:38, 42:54].min() > 200, "the patch is filled"
    assert picture[32, 48 + 16] < 40, "and no larger than the contact"


@pytest.mark.parametrize("depth", [0.015, 0.02, 0.03, 0.05, 0.1])
def test_a_contact_right_before_the_camera_is_one_smooth_spot(depth):
    """A face that fills the picture. Spots can't be larger than `MAX_SIGMA`, so that its points must lie closer."""
    corners = [[x, y, 0] for x in (-0.03, 0.03) for y in (-0.03, 0.03)]
    intrinsics = np.tile(np.array([[40.0, 0, WIDTH / 2], [0, 40, HEIGHT / 2], [0, 0, 1]]), (1, 1, 1))
    extrinsics = np.array([[[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, depth]]])
    of_face = event(0, resting_at(0, 0, 0, 1), corners)
    picture = render_value_maps([of_face], intrinsics, extrinsics, HEIGHT, WIDTH)[0, ..., 0]
    half = int(min(HEIGHT / 2, 40 * 0.03 / depth))
    inside = picture[HEIGHT // 2 - half : HEIGHT // 2 + half, WIDTH // 2 - half : WIDTH // 2 + half]
    assert inside.min() > 225


@pytest.mark.parametrize(
    "size", [(0, 0, 0), (0.1, 0, 0), (0.05, 0.08, 0), (0.05, 0.03, 0.04)], ids=["point", "segment", "face", "solid"]
)
def test_fill_hull_is_dense_inside_the_hull_and_nowhere_else(size):
    points = np.unique(np.array(list(np.ndindex(2, 2, 2))) * size, axis=0)
    filled = fill_hull(points, spacing=0.01)
    assert (filled >= points.min(axis=0) - 1e-12).all() and (filled <= points.max(axis=0) + 1e-12).all()
    inside = np.random.default_rng(0).dirichlet(np.ones(len(points)), size=300) @ points
    assert np.linalg.norm(inside[:, None] - filled[None], axis=-1).min(axis=1).max() < 0.01 * np.sqrt(3)


def test_fill_hull_adds_the_midpoints_of_all_pairs():
    """In their order, and one point in each cell: whether of few points or many, some of them in the same cell."""

    def all_pairs(points, spacing):
        corner, count = points.min(axis=0), 0
        while len(points) > count:
            count = len(points)
            points = np.concatenate([points, ((points[:, None] + points[None]) / 2).reshape(-1, 3)])
            last = np.ceil((points.max(axis=0) - corner) / spacing)
            cells = np.minimum(np.floor((points - corner) / spacing), last)
            points = points[np.sort(np.unique(cells, axis=0, return_index=True)[1])]
        return points

    rng = np.random.default_rng(0)
    for count in range(1, 13):
        points = rng.normal(size=(count, 3)) * rng.choice([0.0005, 0.004, 0.015], size=3)
        points[-1] = points[0] + 0.0001
        expected = all_pairs(points, 0.005)
        np.testing.assert_array_equal(fill_hull(points, 0.005), expected)
    assert len(expected) > 3 * count


def test_splat_equals_the_gaussian_of_every_point_on_every_pixel():
    rng = np.random.default_rng(0)
    pixels = rng.uniform(-20, 110, size=(6, 9, 2))
    pixels[2, 3] = np.inf
    pixels[4] = np.inf
    sigma = rng.uniform(1.5, 8, size=(6, 9))
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    u, v, scale = (x[..., None, None] for x in (pixels[..., 0], pixels[..., 1], sigma))
    expected = np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / (2 * scale**2)).max(axis=1)
    drawn = splat(pixels, sigma, HEIGHT, WIDTH)
    assert np.abs(np.rint(255 * drawn) - 255 * expected).max() <= 0.501


def test_frames_in_which_nothing_moves_are_drawn_as_if_alone():
    rng = np.random.default_rng(1)
    pixels, sigma = rng.uniform(-20, 120, (3, 5, 2)), rng.uniform(2, 9, (3, 5))
    still = [0, 0, 1, 1, 1, 2, 0]
    together = splat(pixels[still], sigma[still], HEIGHT, WIDTH)
    for frame, source in zip(together, still, strict=True):
        alone = splat(pixels[source : source + 1], sigma[source : source + 1], HEIGHT, WIDTH)[0]
        assert np.array_equal(np.rint(255 * frame), np.rint(255 * alone))


def test_a_contact_is_visible_where_nothing_stands_before_it():
    """Two points 1 m below a camera at the height of 1.74 m; something 0.5 m below it covers the right half."""
    intrinsics, extrinsics = camera_above(4, HEIGHT, WIDTH, 100.0, 1.74)
    points = np.array([[-0.2, 0, 0], [0.2, 0, 0]])
    depth = np.full((4, HEIGHT, WIDTH), 1.0, dtype=np.float32)
    depth[1, :, WIDTH // 2 :] = 0.5
    depth[2] = 0.5
    outside = np.array([[2.0, 0, 0]])
    events = [event(2, resting_at(0, 0, 0.74, 4), points), event(3, resting_at(0, 0, 0.74, 4), outside)]
    shares = visible_shares(events, intrinsics, extrinsics, depth)
    assert shares[0].tolist() == [1, 0.5, 0, 0] and shares[1].tolist() == [0, 0, 0, 0]
