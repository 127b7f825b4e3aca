"""Clips: what goes in comes out, and the same frames always give the same bytes."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from aim_hf.data.video import decode_video, encode_video, read_header

from .fixtures_episodes import make_episode


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((first.astype(float) - second.astype(float)) ** 2))


@pytest.mark.parametrize("camera", ["head_camera", "left_camera"])
def test_round_trip_keeps_frames_and_pictures(camera):
    frames = make_episode().rgb[camera]
    video = encode_video(frames, 12.5)
    decoded = decode_video(video)
    assert decoded.shape == frames.shape and decoded.dtype == np.uint8
    assert read_header(video) == frames.shape[:3]
    assert psnr(frames, decoded) > 38


def test_any_frames_are_decoded_alone():
    frames = np.repeat(make_episode().rgb["head_camera"], 8, axis=0)  # several key frames
    video = encode_video(frames, 12.5)
    wanted = [40, 3, 17]
    assert np.array_equal(decode_video(video, wanted), decode_video(video)[wanted])


def rolling_blocks() -> np.ndarray:
    """A small picture with much to predict, moved by a pixel a frame: (20, 32, 48, 3)."""
    blocks = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    return np.stack([np.roll(blocks, frame, axis=1) for frame in range(20)])


def test_the_same_frames_give_the_same_bytes_whatever_lies_in_memory(tmp_path):
    # Memory is filled with a pattern when it is handed out: a codec that reads before it writes gives itself away.
    np.save(tmp_path / "frames.npy", rolling_blocks())
    program = (
        "import hashlib, sys, numpy; from aim_hf.data.video import encode_video\n"
        "print(hashlib.sha256(encode_video(numpy.load(sys.argv[1]), 12.5)).hexdigest())"
    )
    environment = os.environ | {"MALLOC_PERTURB_": "165", "MALLOC_MMAP_THRESHOLD_": "1000000000"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", program, tmp_path / "frames.npy"]
    filled = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()
    assert filled == hashlib.sha256(encode_video(rolling_blocks(), 12.5)).hexdigest()


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="float64"):
        encode_video(np.zeros((3, 32, 48, 3)), 12.5)
    with pytest.raises(ValueError, match="num_frames >= 1"):
        encode_video(np.zeros((0, 32, 48, 3), np.uint8), 12.5)
    video = encode_video(np.zeros((3, 32, 48, 3), np.uint8), 12.5)
    with pytest.raises(IndexError, match="frame 3 of a video of 3"):
        decode_video(video, [3])
    for read in (decode_video, read_header):
        for length in (100, 0):
            with pytest.raises(ValueError, match=f"got {length} bytes that do not open"):
                read(video[:length])
    with pytest.raises(ValueError, match="got 0 bytes that do not open"):
        decode_video({"bytes": None, "path": None})
