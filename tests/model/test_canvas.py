"""Pictures and value maps: onto a canvas, into pixels and back, and what is refused."""

import numpy as np
import pytest
import torch

from aim_hf.model.canvas import t_pose_canvas

from ..fixtures_pipeline import CANVAS, HEAD, WRIST, make_processor, make_views


def test_t_pose_layout():
    cameras = t_pose_canvas((384, 320), head_size=(240, 320), wrist_size=(240, 320))
    assert {name: camera["slot"] for name, camera in cameras.items()} == {
        "head_camera": [0, 0, 256, 320],
        "left_camera": [256, 0, 128, 160],
        "right_camera": [256, 160, 128, 160],
    }
    assert t_pose_canvas((96, 96), (64, 96), (32, 48))["right_camera"]["slot"] == [64, 48, 32, 48]


@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
def test_unpacking_inverts_packing_exactly_at_native_size(rng, leading):
    processor, views = make_processor(), make_views(rng, leading)
    canvas = processor.pack_canvas(views)
    assert canvas.shape == (*leading, *CANVAS, 3) and canvas.dtype == np.uint8
    assert np.array_equal(canvas[..., :32, :, :], views["head_camera"])
    assert np.array_equal(canvas[..., 32:, :16, :], views["left_camera"])
    assert np.array_equal(canvas[..., 32:, 16:, :], views["right_camera"])
    for name, view in processor.unpack_canvas(canvas).items():
        assert np.array_equal(view, views[name])


def test_other_sizes_are_resized_by_area():
    cameras = t_pose_canvas(CANVAS, head_size=(128, 128), wrist_size=(8, 16))
    processor = make_processor(cameras=cameras)
    # Every fourth column white, at a quarter of the size, is the mean: antialiasing sees all pixels.
    stripes = np.tile((np.arange(128) % 4 == 0) * 252, (128, 1)).astype(np.uint8)
    gradient = np.tile(np.linspace(0, 240, 16).astype(np.uint8), (8, 1))
    views = {"head_camera": stripes, "left_camera": gradient, "right_camera": np.full((8, 16), 77, np.uint8)}
    canvas = processor.pack_canvas({name: np.repeat(v[..., None], 3, -1) for name, v in views.items()})
    assert np.abs(canvas[2:30, 2:30].astype(int) - 63).max() <= 1
    assert np.array_equal(canvas[32:, :16, 0], np.tile(gradient[:1], (16, 1)))
    assert (canvas[32:, 16:] == 77).all()
    back = processor.unpack_canvas(canvas)
    assert {name: v.shape for name, v in back.items()} == {
        "head_camera": (128, 128, 3),
        "left_camera": (8, 16, 3),
        "right_camera": (8, 16, 3),
    }
    assert np.array_equal(back["left_camera"][..., 0], gradient)


def test_float_canvases_unpack_without_rounding(rng):
    canvas = rng.random((4, *CANVAS, 3), dtype=np.float32)
    views = make_processor().unpack_canvas(canvas)
    assert np.array_equal(views["head_camera"], canvas[:, :32])


def test_pixels_and_back_are_exact(rng):
    processor = make_processor()
    canvas = rng.integers(0, 256, (2, 5, *CANVAS, 3), dtype=np.uint8)
    canvas[0, 0, 0, 0], canvas[0, 0, 0, 1] = 0, 255
    pixels = processor.canvas_to_pixels(canvas)
    assert pixels.shape == (2, 3, 5, *CANVAS) and pixels.dtype == torch.float32
    assert pixels[0, :, 0, 0, 0].tolist() == [-1] * 3 and pixels[0, :, 0, 0, 1].tolist() == [1] * 3
    assert np.array_equal((processor.pixels_to_canvas(pixels) * 255).round().astype(np.uint8), canvas)


def test_value_maps_to_rgb_and_back(rng):
    processor = make_processor()
    value = rng.random((2, 4, 8, 8), dtype=np.float32)
    rgb = processor.value_to_rgb(value)
    assert rgb.shape == (2, 4, 8, 8, 3) and rgb.dtype == np.uint8
    assert np.abs(processor.rgb_to_value(rgb) - value).max() <= 0.5 / 255 + 1e-6
    levels = np.arange(256) / 255
    assert np.array_equal(processor.rgb_to_value(processor.value_to_rgb(levels[None])) * 255, np.arange(256)[None])
    # A colored picture's scalar is its channel mean, clamped.
    assert processor.rgb_to_value(np.array([[0.3, 0.6, 0.9], [1.5, 1.2, 1.2]])) == pytest.approx([0.6, 1.0])
    with pytest.raises(ValueError, match="picture of a value map has dtype int64; expected uint8, or floats"):
        processor.rgb_to_value(rgb.astype(np.int64))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda v: v.pop("left_camera"), "cameras are .*expected .*left_camera"),
        (lambda v: v.update(front_camera=v["head_camera"]), "front_camera"),
        (lambda v: v.update(head_camera=v["head_camera"][..., :-1, :]), "head_camera has shape .*expected"),
        (lambda v: v.update(left_camera=v["left_camera"][:1]), "left_camera has shape .*expected"),
        (lambda v: v.update(head_camera=v["head_camera"].astype(np.float32) / 255), "dtype float32; expected uint8"),
        (lambda v: v.update(head_camera=np.moveaxis(v["head_camera"], -1, -3)), "RGB last"),
    ],
)
def test_wrong_views_are_refused(rng, change, match):
    views = make_views(rng)
    change(views)
    with pytest.raises(ValueError, match=match):
        make_processor().pack_canvas(views)


def test_wrong_canvases_and_maps_are_refused():
    processor = make_processor()
    with pytest.raises(ValueError, match=r"\[48, 32\]"):
        processor.unpack_canvas(np.zeros((4, 32, 48, 3)))
    with pytest.raises(ValueError, match="expected uint8"):
        processor.canvas_to_pixels(np.zeros((1, 1, *CANVAS, 3)))
    for bad in (1.5, -0.1, np.nan):
        with pytest.raises(ValueError, match="value map spans"):
            processor.value_to_rgb(np.array([[0.0, bad]]))


@pytest.mark.parametrize(
    ("slot", "match"),
    [([0, 0, 40, 32], "overlaps"), ([32, 0, 17, 16], "within the canvas"), ([-1, 0, 8, 8], "within")],
)
def test_slots_that_overlap_or_leave_the_canvas_are_refused(slot, match):
    cameras = t_pose_canvas(CANVAS, HEAD, WRIST)
    cameras["left_camera"]["slot"] = slot
    with pytest.raises(ValueError, match=match):
        make_processor(cameras=cameras)
