import numpy as np
import pytest
from PIL import Image

from aim_hf.data.video import decode_video
from aim_hf.rollout.policies import Prediction
from aim_hf.rollout.storyboard import (
    SHEET_PANEL,
    Storyboard,
    canvas,
    hand_plot,
    overlay,
    write_contact_sheet,
    write_strip,
    write_video,
)

SIZES = {"head_camera": (64, 96), "left_camera": (32, 48), "right_camera": (32, 48)}


def observation(value):
    views = {name: {"rgb": np.full((*size, 3), value, dtype=np.uint8)} for name, size in SIZES.items()}
    return {"observation": views}


@pytest.fixture
def board():
    """Two chunks of eight actions, the second of which ended after three of them."""
    board = Storyboard("click_bell (easy, seed 1)", "Ring the bell.", observation(200), control_dt=0.08, step_limit=40)
    prediction = Prediction(
        actions=np.tile(np.arange(8.0)[None, :, None], (2, 1, 16)),
        frames={name: np.full((2, 4, *size, 3), 0.5) for name, size in SIZES.items()},
        value_maps={name: np.zeros((2, 4, *size)) for name, size in SIZES.items()},
    )
    board.add_chunk(prediction, 1, [observation(150 + i) for i in range(4)], 8)
    board.add_chunk(prediction, 1, [observation(160 + i) for i in range(4)], 3)
    board.success = True
    return board


def test_a_storyboard_ends_with_its_episode(board):
    assert board.steps == [2, 4, 6, 8, 10, 11]
    assert [views["head_camera"][0, 0, 0] for views in board.observed] == [150, 151, 152, 153, 160, 161]
    assert np.array(board.actions)[:, 0].tolist() == [*range(8), 0, 1, 2]


def test_overlay_is_hot_where_the_map_is_and_gray_elsewhere():
    rgb = np.full((8, 8, 3), (20, 200, 90), dtype=np.uint8)
    value = np.zeros((8, 8))
    value[2, 3], value[5, 5] = 1.0, 0.4
    picture = overlay(rgb, value)
    assert len(set(picture[0, 0])) == 1
    red, green, blue = picture[2, 3].astype(int)
    assert red >= green > blue and red > 200
    assert picture[0, 0, 0] < picture[5, 5, 0] < picture[2, 3, 0]


def test_canvas_repeats_pixels():
    views = {
        name: np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8) for name, size in SIZES.items()
    }
    picture = canvas(views, 384)
    assert picture.shape == (384, 384, 3)
    np.testing.assert_array_equal(picture[2:254:4, 2::4], views["head_camera"][:63])
    np.testing.assert_array_equal(picture[262::4, 2:186:4], views["left_camera"][1:, :46])
    np.testing.assert_array_equal(picture[262::4, 198::4], views["right_camera"][1:, 1:])


def test_video_shows_three_panels_in_real_time(board, tmp_path):
    write_video(tmp_path / "videos" / "episode.mp4", board)
    frames = decode_video((tmp_path / "videos" / "episode.mp4").read_bytes())
    held = round(1.5 * 6 / (0.08 * 11))  # at 6 moments in 11 steps
    assert len(frames) == 6 + held
    panels = [frames[0][150, x].astype(int).mean() for x in (200, 592, 984)]
    assert panels == pytest.approx([150, 127, 35 + 0.5 * 127], abs=6)
    assert list((tmp_path / "videos").iterdir()) == [tmp_path / "videos" / "episode.mp4"]


def test_strips_make_a_contact_sheet(board, tmp_path):
    for name in ("a", "b"):
        write_strip(tmp_path / f"{name}.png", board)
    write_contact_sheet(tmp_path / "sheet.png", [tmp_path / "a.png", tmp_path / "b.png"])
    strip, sheet = Image.open(tmp_path / "a.png"), Image.open(tmp_path / "sheet.png")
    assert strip.height >= SHEET_PANEL
    assert sheet.width == strip.width and sheet.height > 2 * strip.height
    np.testing.assert_array_equal(np.asarray(sheet)[-strip.height :], np.asarray(strip))


def test_curves_of_a_hand_are_its_own(board):
    board.start["endpose"] = {"left_endpose": np.zeros(7), "right_endpose": np.zeros(7)}
    board.actions = [np.concatenate([action[:8], -action[8:]]) for action in board.actions]
    left, right = (hand_plot(board, arm, 200, 100) for arm in ("left", "right"))
    assert left.shape == right.shape == (200, 400, 3) and (left != right).any()
    red, green, blue = left.reshape(-1, 3).astype(int).T
    assert ((red > 180) & (green < 100)).any() and ((blue > 150) & (red < 80)).any()  # x and z at least
