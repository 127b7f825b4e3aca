"""Rewards of eq. (12) on maps and cameras whose answer is known."""

from functools import partial

import numpy as np
import pytest

from aim_hf.rl.rewards import Outcome, bilinear, evaluate_rewards, success_reward, value_hits, value_map_reward

HEIGHT, WIDTH, FOCAL = 8, 12, 6.0
INTRINSICS = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
EXTRINSICS = np.eye(3, 4)  # at the origin, looking along z


def point(u: float, v: float, depth: float = 2.0) -> np.ndarray:
    """The world point that the camera sees at a pixel."""
    return np.array([(u - WIDTH / 2) / FOCAL * depth, (v - HEIGHT / 2) / FOCAL * depth, depth])


def make_outcome(targets: np.ndarray, maps: dict[str, np.ndarray], success: bool = True) -> Outcome:
    """targets (C, F, 2, 3); maps: camera -> (C, F, H, W)."""
    shape = targets.shape[:2]
    return Outcome(
        task="click_bell",
        seed=1_000_000,
        instruction="ring the bell",
        success=success,
        steps=8,
        targets=targets,
        contacts=[],
        actions_per_frame=2,
        value_maps=maps,
        intrinsics={camera: np.broadcast_to(INTRINSICS, (*shape, 3, 3)) for camera in maps},
        extrinsics={camera: np.broadcast_to(EXTRINSICS, (*shape, 3, 4)) for camera in maps},
    )


def test_bilinear_between_pixels_and_at_the_border():
    picture = np.arange(12.0).reshape(3, 4)
    places = np.array(
        [[0.5, 0.5], [3.5, 2.5], [1.0, 0.5], [1.5, 1.0], [0.0, 0.0], [4.0, 3.0], [4.1, 1.0], [1.0, -0.1]]
    )
    expected = [0, 11, 0.5, 3, 0, 11, np.nan, np.nan]
    np.testing.assert_allclose(bilinear(picture, places), expected)
    np.testing.assert_allclose(bilinear(np.stack([picture, 2 * picture]), places[:2]), [0, 22])
    assert np.isnan(bilinear(picture, np.array([[np.inf, 1.0]])))


def test_the_map_is_read_where_the_better_arm_lands():
    """The lowest of its targets, z being height."""
    maps = np.zeros((2, 3, HEIGHT, WIDTH))
    maps[0, :, 3, 4] = 0.8
    maps[1, 2, 5, 9] = 0.6
    targets = np.empty((2, 3, 2, 3))
    targets[...] = point(0.5, 0.5)
    targets[0, 0, 1] = point(4.5, 3.5)  # the right arm passes the peak,
    targets[0, 1, 1] = point(5.0, 3.5, depth=1.0)  # lands half a pixel beside it,
    targets[0, 2, 1] = point(4.5, 3.5, depth=1.5)  # and rises over it again
    targets[1, 2, 1] = point(0, 0, -2.0)  # lands behind the camera
    targets[1, 1, 0] = point(50, 50, depth=1.0)  # outside the picture
    (reward,) = value_map_reward([make_outcome(targets, {"head_camera": maps})])
    np.testing.assert_allclose(reward, [0.4, 0.0], atol=1e-9)


def test_cameras_are_averaged_where_they_see_a_tool():
    head, wrist = np.zeros((2, 1, 1, HEIGHT, WIDTH))
    head[..., 3, 4], wrist[..., 3, 4] = 1.0, 0.5
    seen = make_outcome(np.broadcast_to(point(4.5, 3.5), (1, 1, 2, 3)), {"head_camera": head, "left_camera": wrist})
    both = partial(value_map_reward, cameras=("head_camera", "left_camera"))
    np.testing.assert_allclose(value_map_reward([seen])[0], [1.0])
    np.testing.assert_allclose(both([seen])[0], [0.75])
    with pytest.raises(ValueError, match=r"cameras are \['front'\]"):
        value_map_reward([seen], cameras=("front",))


def test_success_is_one_number_an_episode():
    targets, maps = np.zeros((1, 1, 2, 3)), {"head_camera": np.zeros((1, 1, HEIGHT, WIDTH))}
    assert success_reward([make_outcome(targets, maps), make_outcome(targets, maps, success=False)]) == [1.0, 0.0]


def test_hits_are_counted_where_a_map_shows_something():
    maps = np.zeros((3, 2, HEIGHT, WIDTH))
    maps[0, -1, 3, 4], maps[1, -1, 3, 4], maps[2, -1, 3, 4] = 1.0, 1.0, 0.2
    targets = np.empty((3, 2, 2, 3))
    targets[...] = point(0.5, 0.5)
    targets[:, -1] = point(0.5, 0.5, depth=1.0)  # all land at the last frame
    targets[0, -1, 1] = targets[2, -1, 1] = point(4.6, 3.5, depth=1.0)
    assert value_hits(make_outcome(targets, {"head_camera": maps})) == (1, 2)


def test_rewards_are_numbers_of_one_kind():
    outcomes = [make_outcome(np.zeros((3, 2, 2, 3)), {"head": np.zeros((3, 2, HEIGHT, WIDTH))})] * 2

    def mixed_reward(outcomes):
        return [1.0, [0.0, 0.0, 1.0]]

    def long_reward(outcomes):
        return [[0.0] * 4] * 2

    with pytest.raises(ValueError, match="mixed_reward gave a number for some episodes and one for each chunk"):
        evaluate_rewards([mixed_reward], outcomes)
    with pytest.raises(ValueError, match=r"long_reward gave a reward of shape \(4,\) to an episode of 3 chunks"):
        evaluate_rewards([long_reward], outcomes)
