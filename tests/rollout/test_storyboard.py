import numpy as np
import pytest
from PIL import Image

from aim_hf.data.video import decode_video
from aim_hf.rollout import storyboard
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
    board = Storyboard("click_bell (easy, seed 1)", "Ring the bell.", observation(200), 0.08, 40, action_mode="ee")
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
    with pytest.raises(ValueError, match="value is uint8; expected floating-point"):
        overlay(rgb, (255 * value).astype(np.uint8))


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


def curves(monkeypatch, draw) -> list[tuple[str, list[float]]]:
    """Unit of the axis, and label and values of each curve that `draw` draws."""
    drawn = []
    monkeypatch.setattr(storyboard, "_drawn", lambda figure: drawn.append(figure.axes[0]))
    draw()
    (axes,) = drawn
    return axes.get_ylabel(), [(line.get_label(), line.get_ydata().tolist()) for line in axes.lines]


def test_joint_angles_are_drawn_as_such(board, monkeypatch):
    """Two arms of seven joints have 16 numbers, as many as two poses."""
    board.action_mode, board.actions = "qpos", [np.arange(16) / 10, np.arange(16) / 5]
    unit, lines = curves(monkeypatch, lambda: storyboard._action_plot(board, 100))
    assert unit == "joints, rad" and [label for label, _ in lines[::2]] == list("1234567")
    assert [values for _, values in lines[1::2]] == [[(8 + i) / 10, (8 + i) / 5] for i in range(7)]
    board.start["joint_action"] = {"vector": np.arange(16) / 10}
    unit, lines = curves(monkeypatch, lambda: hand_plot(board, "right", 200, 100))
    assert unit == "joints, degrees" and len(lines) == 7
    for index, (_, values) in enumerate(lines):
        np.testing.assert_allclose(values, np.degrees([0, (8 + index) / 10]))


def test_positions_are_drawn_in_metres_and_from_the_start_in_centimetres(board, monkeypatch):
    board.actions = [np.arange(16.0), np.arange(16) + 1.0]
    unit, lines = curves(monkeypatch, lambda: storyboard._action_plot(board, 100))
    assert unit == "m" and [values[0] for _, values in lines] == [0, 8, 1, 9, 2, 10]
    board.start["endpose"] = {"right_endpose": np.full(7, 8.0)}
    unit, lines = curves(monkeypatch, lambda: hand_plot(board, "right", 200, 100))
    assert unit == "cm" and lines == [("x", [0, 100]), ("y", [100, 200]), ("z", [200, 300])]


def test_cameras_that_a_policy_does_not_look_at_are_black(tmp_path):
    board = Storyboard("a (easy, seed 1)", "Ring.", observation(200), 0.08, 40, action_mode="ee")
    frames, value_maps = np.full((1, 2, 32, 48, 3), 0.5), np.ones((1, 2, 32, 48))
    prediction = Prediction(np.zeros((1, 4, 16)), {"right_camera": value_maps}, {"right_camera": frames})
    board.add_chunk(prediction, 0, [observation(150), observation(160)], 4)
    assert [board.imagined[1][name].max() for name in SIZES] == [0, 0, 128]
    assert [board.value_maps[1][name].max() for name in SIZES] == [0, 0, 1]
    write_video(tmp_path / "episode.mp4", board)
    write_strip(tmp_path / "strip.png", board)
    assert {path.name for path in tmp_path.iterdir()} == {"episode.mp4", "strip.png"}
