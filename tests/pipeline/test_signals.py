"""Signals of doubt, on pictures whose values are known."""

import numpy as np
import pytest

from aim_hf.pipeline.signals import frame_drift, map_entropy


def test_entropy_of_a_point_half_a_map_and_a_black_one():
    maps = np.zeros((1, 4, 8, 8))
    maps[0, 0, 3, 3] = 0.7
    maps[0, 1, :4] = 0.2
    maps[0, 2] = 1
    entropy = map_entropy({"head_camera": maps})
    np.testing.assert_allclose(entropy, [[0, np.log(32) / np.log(64), 1, 1]], atol=1e-12)
    # The most decided camera counts.
    point = np.zeros_like(maps)
    point[:, :, 0, 0] = 1
    np.testing.assert_allclose(map_entropy({"head_camera": maps, "left_camera": point}), 0, atol=1e-12)


def test_drift_is_the_rms_over_all_pixels():
    frames = {"head_camera": np.zeros((2, 3, 4, 6, 3)), "left_camera": np.zeros((2, 3, 4, 2, 3))}

    def seen(level):
        return {
            "observation": {name: {"rgb": np.full(clip.shape[2:], level, np.uint8)} for name, clip in frames.items()}
        }

    observations = [[seen(0), seen(255)], [seen(51), seen(0)]]
    np.testing.assert_allclose(frame_drift(frames, observations), [[0, 1], [0.2, 0]], atol=1e-12)
    half = frames | {"left_camera": np.ones((2, 3, 4, 2, 3))}
    np.testing.assert_allclose(frame_drift(half, [[seen(0)]] * 2), np.sqrt(0.25), atol=1e-12)
    for wrong in ([observations[0]], [observations[0], observations[1][:1]], [[seen(0)] * 4] * 2):
        with pytest.raises(ValueError, match="expected equally many for each of 2 rows, at most 3"):
            frame_drift(frames, wrong)
    floats = seen(0)
    floats["observation"]["left_camera"]["rgb"] = np.full((4, 2, 3), 0.5)
    with pytest.raises(ValueError, match="pictures of left_camera have dtype float64; expected uint8"):
        frame_drift(frames, [[floats]] * 2)
