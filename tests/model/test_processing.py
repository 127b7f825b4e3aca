"""Pictures, value maps, actions and words: there and back, and what is refused."""

import json
import logging
import math

import numpy as np
import pytest
import torch

from aim_hf.model.canvas import t_pose_canvas
from aim_hf.model.processing_aim import AIMProcessor
from aim_hf.pipeline.inputs import as_actions

from ..fixtures_pipeline import CANVAS, HEAD, WRIST, make_observation, make_pose, make_processor, make_tokenizer


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def make_views(rng, leading=(2, 3), head=HEAD, wrist=WRIST) -> dict[str, np.ndarray]:
    sizes = {"head_camera": head, "left_camera": wrist, "right_camera": wrist}
    return {name: rng.integers(0, 256, (*leading, *size, 3), dtype=np.uint8) for name, size in sizes.items()}


# Pictures


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


# Observations


def test_observations_in_robotwins_layout(rng):
    processor, observation = make_processor(), make_observation(rng)
    views = processor.observation_views(observation)
    assert list(views) == ["head_camera", "left_camera", "right_camera"]
    pose = processor.initial_pose(observation)
    assert pose.shape == (16,) and pose.dtype == torch.float64
    assert np.array_equal(pose[8:15], observation["endpose"]["right_endpose"])
    assert pose[7] == observation["endpose"]["left_gripper"]
    del observation["observation"]["head_camera"], observation["endpose"]["left_gripper"]
    with pytest.raises(ValueError, match="no camera head_camera"):
        processor.observation_views(observation)
    with pytest.raises(ValueError, match="no left_gripper"):
        processor.initial_pose(observation)


# Actions


def rotation_matrix(quaternion: np.ndarray) -> np.ndarray:
    w, x, y, z = quaternion
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * skew + 2 * skew @ skew


def test_relative_actions_against_rotation_matrices(rng):
    """xyz difference along the world's axes, R0^T R with w >= 0, gripper untouched."""
    actions, initial = np.stack([make_pose(rng) for _ in range(20)]), make_pose(rng)
    relative = make_processor().relative_actions(actions, initial).numpy()
    for arm in (slice(0, 8), slice(8, 16)):
        a, i, r = actions[:, arm], initial[arm], relative[:, arm]
        assert r[:, :3] == pytest.approx(a[:, :3] - i[:3])
        for q, q_relative in zip(a[:, 3:7], r[:, 3:7], strict=True):
            expected = rotation_matrix(i[3:7]).T @ rotation_matrix(q)
            assert rotation_matrix(q_relative) == pytest.approx(expected, abs=1e-12)
        assert (r[:, 3] >= 0).all()
        assert np.array_equal(r[:, 7], a[:, 7])


def test_relative_to_itself_is_the_identity(rng):
    pose = make_pose(rng)
    arm = [0, 0, 0, 1, 0, 0, 0]
    relative = make_processor().relative_actions(pose[None], pose)[0].numpy()
    assert relative == pytest.approx([*arm, pose[7], *arm, pose[15]], abs=1e-12)


def test_relative_quaternions_don_t_know_their_sign_and_move_continuously(rng):
    """A turn of +-170 degrees about an axis, its sign flipped at random, becomes a smooth curve with w >= 0."""
    processor, initial = make_processor(), make_pose(rng)
    w, x, y, z = initial[3:7]
    times_q0 = np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]])
    half = np.radians(np.linspace(-85, 85, 200))
    turns = np.stack([np.cos(half), np.zeros(200), 0.6 * np.sin(half), 0.8 * np.sin(half)])
    actions = np.tile(initial, (200, 1))
    actions[:, 3:7] = (times_q0 @ turns).T
    flipped = actions.copy()
    flipped[:, 3:7] *= rng.choice([-1, 1], 200)[:, None]
    relative = processor.relative_actions(flipped, initial)
    assert torch.allclose(relative, processor.relative_actions(actions, initial), rtol=0, atol=1e-12)
    assert (relative[:, 3] >= 0).all()
    np.testing.assert_allclose(relative[:, 3:7], turns.T, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_unnormalizing_inverts_normalizing(rng, dtype, tolerance):
    processor = make_processor()
    actions = torch.tensor(np.stack([[make_pose(rng) for _ in range(6)] for _ in range(3)]), dtype=dtype)
    initial = torch.tensor(np.stack([make_pose(rng) for _ in range(3)]), dtype=dtype)
    normalized = processor.normalize_actions(actions, initial)
    assert normalized.shape == actions.shape and normalized.dtype == dtype
    back = processor.unnormalize_actions(normalized, initial)
    for arm in (0, 8):
        sign = (back[..., arm + 3 : arm + 7] * actions[..., arm + 3 : arm + 7]).sum(-1, keepdim=True).sign()
        actions[..., arm + 3 : arm + 7] *= sign  # q and -q are one rotation
        hemisphere = (back[..., arm + 3 : arm + 7] * initial[:, None, arm + 3 : arm + 7]).sum(-1)
        assert (hemisphere >= 0).all()
    assert torch.allclose(back, actions, rtol=0, atol=tolerance)


def test_network_quaternions_become_unit(rng):
    processor = make_processor()
    actions = processor.unnormalize_actions(torch.randn(5, 16, dtype=torch.float64), make_pose(rng))
    for arm in (0, 8):
        assert actions[:, arm + 3 : arm + 7].norm(dim=-1).numpy() == pytest.approx(np.ones(5))


def test_quantiles_map_to_one_and_nothing_is_clipped():
    processor = make_processor("qpos", action_statistics={"q01": [-2.0] * 14, "q99": [4.0] * 14})
    actions = torch.tensor([[-2.0] * 14, [1.0] * 14, [4.0] * 14, [10.0] * 14])
    assert processor.normalize_actions(actions)[:, 0].tolist() == [-1, 0, 1, 3]
    assert torch.equal(processor.unnormalize_actions(processor.normalize_actions(actions)), actions)


def test_whole_numbers_are_scaled_as_others_are():
    statistics = {"q01": [0.0] * 14, "q99": [1.0] * 14, "min": [0.0] * 14, "max": [1.0] * 14}
    processor = make_processor("qpos", action_statistics=statistics)
    ones = np.ones((2, 14), dtype=int)
    assert (processor.normalize_actions(ones) == 1).all() and (
        processor.scale_actions(torch.ones(2, 14).int()) == 1
    ).all()
    assert (processor.unnormalize_actions(np.zeros((2, 14), dtype=int)) == 0.5).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.astype(">f8"),
        lambda a: np.flip(np.flip(a, 0).copy(), 0),
        lambda a: np.asfortranarray(a),
        lambda a: a.astype(np.longdouble),
        lambda a: a.tolist(),
        lambda a: list(a),
        lambda a: torch.tensor(a),
    ],
    ids=["big-endian", "negative strides", "by columns", "extended", "lists", "list of arrays", "tensor"],
)
@pytest.mark.filterwarnings("error")
def test_numbers_may_lie_in_memory_as_they_like(rng, change):
    processor, actions = make_processor(), np.stack([make_pose(rng) for _ in range(3)])
    actions.flags.writeable = False
    given, pose = change(actions.copy()), make_pose(rng)
    expected = processor.normalize_actions(actions, pose)
    assert torch.equal(processor.normalize_actions(given, pose), expected) and expected.dtype == torch.float64
    assert processor.compute_action_statistics(given) == processor.compute_action_statistics(actions)
    executed = as_actions("executed_actions", given, rows=1)
    assert torch.equal(executed, torch.tensor(actions)[None]) and executed.dtype == torch.float64


@pytest.mark.parametrize("wrong", [[["x"] * 16], [[None] * 16], np.zeros((1, 16), complex), torch.zeros(1, 16) * 1j])
def test_what_are_no_numbers_is_named(rng, wrong):
    with pytest.raises(ValueError, match="^actions is .* of dtype .*; expected an array of numbers"):
        make_processor().normalize_actions(wrong, make_pose(rng))
    with pytest.raises(ValueError, match="executed_actions is .* of dtype .*; expected an array of numbers"):
        as_actions("executed_actions", wrong, rows=1)


@pytest.fixture
def coarse():
    """Torch's default dtype is bfloat16, as a script may set it that makes a model."""
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


def test_lists_are_read_exactly_under_every_default_dtype(coarse):
    processor = make_processor("qpos", action_statistics={"q01": [0.0] * 14, "q99": [1.0] * 14})
    actions = [[0.1 * row + 0.012345678 * number for number in range(14)] for row in range(3)]
    assert processor.relative_actions(actions).tolist() == processor.absolute_actions(actions).tolist() == actions
    assert np.allclose(processor.normalize_actions(actions), 2 * np.array(actions) - 1, rtol=0, atol=1e-15)
    assert np.allclose(processor.unnormalize_actions(actions), np.array(actions) / 2 + 0.5, rtol=0, atol=1e-15)
    assert processor.compute_action_statistics(actions)["max"] == actions[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"left_endpose": np.ones(6), "left_gripper": np.ones(2)},
            r"'left_endpose'\] has shape \(6,\); expected \(7,\)",
        ),
        ({"right_gripper": np.ones(0)}, r"'right_gripper'\] has shape \(0,\); expected \(1,\)"),
        ({"left_endpose": "abc"}, r"'left_endpose'\] is str of dtype <U3; expected an array of numbers"),
        ({"left_endpose": [[1.0], [2.0, 3.0]]}, r"'left_endpose'\] is no array .*; expected an array of numbers"),
    ],
)
def test_each_part_of_a_pose_has_its_size(rng, change, message):
    observation = make_observation(rng)
    with pytest.raises(ValueError, match=message):
        make_processor().initial_pose({"endpose": observation["endpose"] | change})
    for wrong in (None, np.zeros(16), [0.0] * 16):
        with pytest.raises(ValueError, match="has no left_endpose"):
            make_processor().initial_pose({"endpose": wrong})


ONE = {"head": {"size": [8, 8], "slot": [0, 0, 8, 8]}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": {}}, "cameras are none"),
        ({"cameras": [1]}, "cameras is of type list; expected Mapping"),
        ({"cameras": {"head": None}}, "camera head is of type NoneType; expected Mapping"),
        ({"cameras": {"head": {"size": [8, 8]}}}, "camera head has no slot"),
        ({"cameras": {"head": {"size": [0, 8], "slot": [0, 0, 8, 8]}}}, r"size of head is \[0, 8\]; expected 2 whole"),
        ({"cameras": {"head": {"size": [8, 8], "slot": [0, 0, 8]}}}, r"slot of head is \[0, 0, 8\]; expected 4 whole"),
        ({"canvas_size": [16.9, 16]}, r"canvas_size is \[16.9, 16\]; expected 2 whole numbers, each at least 1"),
        ({"canvas_size": 16}, "canvas_size is 16"),
        ({"action_space": "qpos", "action_dim": 0}, "action_dim is 0"),
        ({"action_space": "qpos", "action_dim": "x"}, "action_dim is 'x'"),
        ({"max_text_length": -1}, "max_text_length is -1"),
        ({"minimum_half_range": np.inf}, "minimum_half_range is inf"),
    ],
)
def test_fields_of_a_processor_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        AIMProcessor(make_tokenizer(), **{"canvas_size": [16, 16], "cameras": ONE} | changes)
    with pytest.raises(ValueError, match="tokenizer is of type str; expected PreTrainedTokenizerBase"):
        AIMProcessor("t5", [16, 16], ONE)


def test_a_rotation_of_no_length_is_refused(rng):
    with pytest.raises(ValueError, match="a rotation of length 0"):
        make_processor().absolute_actions(np.zeros((2, 16)), make_pose(rng))


@pytest.mark.parametrize("content", [None, "", "{}", '{"version": '], ids=["missing", "empty", "no fields", "cut"])
def test_a_damaged_tokenizer_is_named(content, tmp_path):
    make_processor().save_pretrained(tmp_path / "processor")
    file = tmp_path / "processor" / "tokenizer.json"
    file.unlink() if content is None else file.write_text(content)
    for source, options in ((tmp_path / "processor", {}), (tmp_path, {"subfolder": "processor"})):
        with pytest.raises(OSError, match=rf"tokenizer in {tmp_path}/processor/? can't be read .*checkpoint again"):
            AIMProcessor.from_pretrained(source, **options)


def test_pictures_and_words_that_are_none_are_named():
    processor = AIMProcessor(make_tokenizer(), [16, 16], ONE)
    with pytest.raises(ValueError, match="picture of head is no array"):
        processor.pack_canvas({"head": [[1, 2], [3]]})
    with pytest.raises(ValueError, match="picture of head is no array"):
        processor.pack_canvas({"head": torch.zeros(16, 16, 3, dtype=torch.uint8, device="meta")})  # as on a GPU
    for nothing in (None, "x"):
        with pytest.raises(ValueError, match="value map is (NoneType|str) of dtype .*; expected an array of numbers"):
            processor.value_to_rgb(nothing)
    with pytest.raises(ValueError, match="expected Unicode text without lone surrogates"):
        processor.tokenize("press \ud800")


def test_statistics_and_the_minimum_half_range(rng):
    processor = make_processor("qpos", action_statistics=None, minimum_half_range=0.02)
    actions = rng.uniform(-1, 3, (10_001, 14))
    actions[:, 3] = 0.7  # an idle joint
    statistics = processor.compute_action_statistics(actions)
    assert statistics["q01"] == pytest.approx(np.quantile(actions, 0.01, axis=0))
    assert statistics["q99"] == pytest.approx(np.quantile(actions, 0.99, axis=0))
    assert statistics["min"] == actions.min(axis=0).tolist() and statistics["max"] == actions.max(axis=0).tolist()
    processor.action_statistics = statistics
    normalized = processor.normalize_actions(actions)
    assert (normalized[:, 3] == 0).all()
    inside = (normalized[:, 0].abs() <= 1).double().mean()
    assert 0.97 < inside < 0.99
    moved = torch.full((1, 14), 0.72)
    assert processor.normalize_actions(moved)[0, 3] == pytest.approx(1, abs=1e-5)


def seldom(rng, still: np.ndarray, at: float) -> np.ndarray:
    """`still`, (10_000,), but for 0.6 % of its frames, where it is `at`."""
    return np.where(np.arange(10_000) < 60, at, still)


@pytest.mark.parametrize(
    ("number", "limit"),
    [
        (lambda rng: seldom(rng, np.ones(10_000), 0.0), 1),
        (lambda rng: seldom(rng, rng.normal(1, 1e-4, 10_000), 0.0), 1),  # it is measured, so it trembles
        (lambda rng: seldom(rng, np.zeros(10_000), 0.8), 1),
        (lambda rng: seldom(rng, rng.normal(0, 0.02, 10_000), 1.5), 1),
        (lambda rng: seldom(rng, np.zeros(10_000), 0.04), 5),  # hardly more than the minimum half range
        (lambda rng: rng.normal(size=10_000), 5),
    ],
    ids=["closes", "trembles and closes", "opens", "far away", "hardly", "normal"],
)
def test_what_a_number_seldom_does_is_scaled_sanely(rng, number, limit):
    """It moves, and nothing of it is far from what a network sees of the others; the inverse is exact."""
    actions = np.zeros((10_000, 16))
    actions[:, [3, 11]] = 1
    actions[:, 7] = number(rng)
    processor = make_processor(action_statistics=None)
    processor.action_statistics = processor.compute_action_statistics(actions)
    assert processor.moving_dimensions.tolist() == [index == 7 for index in range(16)]
    scaled = processor.scale_actions(torch.tensor(actions))
    assert scaled.abs().max() <= limit and scaled[:, 7].max() - scaled[:, 7].min() >= 1
    assert (scaled[:, :7] == 0).all()
    pose = actions[0]
    back = processor.unnormalize_actions(processor.normalize_actions(actions, pose), pose)
    np.testing.assert_allclose(back, actions, rtol=0, atol=1e-12)


def test_quantiles_alone_scale_as_ever(tmp_path):
    """Statistics of an older checkpoint: no range is known, and 5 is no bound."""
    processor = make_processor("qpos", action_statistics={"q01": [1.0] * 14, "q99": [1.0] * 14})
    processor.save_pretrained(tmp_path)
    processor = AIMProcessor.from_pretrained(tmp_path)
    assert set(processor.action_statistics) == {"q01", "q99"} and not processor.moving_dimensions.any()
    assert processor.normalize_actions(torch.zeros(1, 14, dtype=torch.float64))[0, 0] == -100


def test_qpos_is_absolute(rng):
    processor = make_processor("qpos")
    actions = rng.normal(size=(5, 14))
    assert np.array_equal(processor.relative_actions(actions), actions)
    assert np.array_equal(processor.absolute_actions(torch.tensor(actions)), actions)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda a: a[:, :14], r"shape \(4, 14\); expected \(\.\.\., 16\)"),
        (lambda a: np.where(np.arange(16) == 9, np.nan, a), "NaN"),
        (lambda a: np.where(np.arange(16) == 2, np.inf, a), "infinite"),
        (lambda a: np.where(np.arange(16) == 12, 5.0, a), "right quaternion of length .*wxyz"),
    ],
)
def test_wrong_actions_are_refused(rng, change, match):
    processor, initial = make_processor(), make_pose(rng)
    actions = np.stack([make_pose(rng) for _ in range(4)])
    with pytest.raises(ValueError, match=match):
        processor.normalize_actions(change(actions), initial)


def test_other_wrong_calls_are_refused(rng):
    processor, pose = make_processor(), make_pose(rng)
    with pytest.raises(ValueError, match="initial_pose is missing"):
        processor.normalize_actions(pose[None])
    with pytest.raises(ValueError, match="one pose an episode"):
        processor.normalize_actions(np.stack([[pose, pose]] * 3), pose)
    with pytest.raises(ValueError, match="normalized actions have NaN"):
        processor.unnormalize_actions(torch.full((1, 16), torch.nan), pose)
    for relative in (np.ones((2, 15)), np.ones((2, 24)), np.full((2, 16), np.nan)):
        with pytest.raises(ValueError, match=r"relative actions have (shape .*; expected \(\.\.\., 16\)|NaN)"):
            processor.absolute_actions(relative, pose)
    with pytest.raises(ValueError, match=r"expected \(N, 16\)"):
        processor.compute_action_statistics(np.zeros((0, 16)))
    with pytest.raises(ValueError, match="NaN"):
        processor.compute_action_statistics(np.full((3, 16), np.nan))
    with pytest.raises(ValueError, match="q01.*expected 16"):
        processor.action_statistics = {"q01": [0.0] * 14, "q99": [1.0] * 14}
    with pytest.raises(ValueError, match="q01 above its q99"):
        processor.action_statistics = {"q01": [1.0] * 16, "q99": [0.0] * 16}
    ordered = {"min": [0.0] * 16, "q01": [1.0] * 16, "q99": [2.0] * 16, "max": [3.0] * 16}
    for name, value, match in (
        ("min", 1.5, "min above its q01"),
        ("max", 1.5, "q99 above its max"),
        ("max", math.inf, "'max'.* is .*inf.*expected 16 finite"),
    ):
        with pytest.raises(ValueError, match=match):
            processor.action_statistics = ordered | {name: [value] * 16}
    for statistics in ({"q01": [0.0] * 16}, ordered | {"mean": [1.5] * 16}):
        with pytest.raises(ValueError, match="action_statistics have .*; expected q01, q99, min, max"):
            processor.action_statistics = statistics
    for value in ([None] * 16, None, "0123456789abcdef", [0.0] * 15, [float("nan")] * 16, 3.0):
        with pytest.raises(ValueError, match=r"action_statistics\['q01'\] is .*; expected 16 finite numbers"):
            processor.action_statistics = ordered | {"q01": value}
    for value in (5, [1.0], "q01"):
        with pytest.raises(ValueError, match="action_statistics is of type .*; expected Mapping"):
            processor.action_statistics = value
    processor.action_statistics = None
    with pytest.raises(ValueError, match="action_statistics are not set"):
        processor.normalize_actions(pose[None], pose)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"action_space": "joint"}, "action_space is 'joint'"),
        ({"action_space": "ee", "action_dim": 14, "action_statistics": None}, "'ee' have 16"),
        ({"minimum_half_range": 0.0}, "minimum_half_range is 0.0"),
        ({"minimum_half_range": "0.01"}, "minimum_half_range is '0.01'; expected a number above 0"),
    ],
)
def test_wrong_fields_are_refused(fields, match):
    arguments = dict(canvas_size=CANVAS, cameras=t_pose_canvas(CANVAS, HEAD, WRIST)) | fields
    with pytest.raises(ValueError, match=match):
        AIMProcessor(make_tokenizer(), **arguments)


# Words


def test_tokens_are_padded_at_the_end():
    tokens = make_processor().tokenize(["put the red block", "bell"])
    assert tokens.input_ids.shape == (2, 8)
    assert tokens.attention_mask.tolist() == [[1] * 5 + [0] * 3, [1] * 2 + [0] * 6]
    assert tokens.input_ids[1, :3].tolist() == [11, 1, 0]
    left = make_processor()
    left.tokenizer.padding_side = "left"
    padded = left.tokenize(["put the red block", "bell"])
    assert all(torch.equal(padded[name], tensor) for name, tensor in tokens.items())


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "instruction 0 is ''"),
        (["bell", "  "], "instruction 1"),
        ([None], "expected words"),
        (
            {"observation": {"head_camera": {"rgb": np.zeros((64, 96, 3), np.uint8)}}},
            "instruction is {'observation': .*words",
        ),
        (
            "put the red block on the blue one",
            "^instructions have at most 8 tokens .about 29 characters.; this one has 9: ",
        ),
    ],
)
def test_wrong_instructions_are_refused_in_one_line(text, match, caplog):
    """And the tokenizer adds none of its own."""
    logging.getLogger("transformers").propagate = True
    with pytest.raises(ValueError, match=match) as refused:
        make_processor().tokenize(text)
    assert len(str(refused.value)) < 200 and not caplog.records


# The whole processor


def test_call_gives_what_the_network_eats(rng):
    processor, views = make_processor(), make_views(rng)
    actions = np.stack([[make_pose(rng) for _ in range(4)] for _ in range(2)])
    initial = np.stack([make_pose(rng) for _ in range(2)])
    batch = processor(text=["bell", "pot"], images=views, actions=actions, initial_pose=initial)
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values", "actions"}
    assert batch.pixel_values.shape == (2, 3, 3, *CANVAS)
    assert torch.equal(batch.actions, processor.normalize_actions(actions, initial))
    with pytest.raises(ValueError, match="^pictures are ndarray; expected a dict, camera -> uint8"):
        processor(text="bell", images=views["head_camera"])


def test_numbers_of_numpy_are_saved(tmp_path):
    processor = make_processor(minimum_half_range=np.float32(0.5), fps=np.float32(25), max_text_length=np.int64(8))
    processor.save_pretrained(tmp_path)
    loaded = AIMProcessor.from_pretrained(tmp_path)
    assert (loaded.minimum_half_range, loaded.fps, loaded.max_text_length) == (0.5, 25, 8)


def test_saving_and_loading_is_bit_equal(tmp_path, rng):
    statistics = {"q01": rng.normal(size=16).tolist(), "q99": (5 + rng.random(16)).tolist()}
    statistics |= {"min": (-5 - rng.random(16)).tolist(), "max": (9 + rng.random(16)).tolist()}
    processor = make_processor(action_statistics=statistics, minimum_half_range=0.1 + 0.2)
    processor.save_pretrained(tmp_path)
    loaded = AIMProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.action_statistics == statistics
    assert list(loaded.cameras) == list(processor.cameras)
    assert loaded.tokenize("put the bell").input_ids.tolist() == processor.tokenize("put the bell").input_ids.tolist()
    pose, actions = make_pose(rng), np.stack([make_pose(rng) for _ in range(4)])
    assert torch.equal(loaded.normalize_actions(actions, pose), processor.normalize_actions(actions, pose))


def test_the_control_rate_is_kept_and_old_processors_do_not_know_theirs(tmp_path):
    processor = make_processor(fps=12.5)
    processor.save_pretrained(tmp_path)
    assert AIMProcessor.from_pretrained(tmp_path).fps == 12.5
    file = tmp_path / "processor_config.json"
    fields = json.loads(file.read_text())
    assert fields.pop("fps") == 12.5
    file.write_text(json.dumps(fields))
    assert AIMProcessor.from_pretrained(tmp_path).fps is None
    for wrong in (0, -1, np.nan, "12.5", True):
        with pytest.raises(ValueError, match=f"fps is {wrong!r}; expected a finite number"):
            processor.fps = wrong


def test_a_folder_without_a_configuration_is_no_processor(tmp_path):
    make_processor().save_pretrained(tmp_path / "processor")
    assert AIMProcessor.from_pretrained(tmp_path, subfolder="processor").cameras
    with pytest.raises(OSError, match=r'has no processor_config.json; .* or subfolder="processor"'):
        AIMProcessor.from_pretrained(tmp_path)
    (tmp_path / "processor" / "processor_config.json").unlink()
    with pytest.raises(OSError, match="processor has no processor_config.json; expected the processor of a pipeline"):
        AIMProcessor.from_pretrained(tmp_path / "processor")


@pytest.mark.parametrize("damage", ["lacks a field", "unknown field"])
def test_damaged_configurations_are_refused(tmp_path, damage):
    make_processor().save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    fields = json.loads(file.read_text())
    if damage == "lacks a field":
        del fields["action_statistics"]
        file.write_text(json.dumps(fields))
    else:
        file.write_text(json.dumps(fields | {"canvas": [48, 32]}))
    with pytest.raises(ValueError, match="processor_config.json lacks"):
        AIMProcessor.from_pretrained(tmp_path)
