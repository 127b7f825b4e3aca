"""Actions: relative, scaled and back, and what is refused."""

import math

import numpy as np
import pytest
import torch

from aim_hf.model.processing_aim import AIMProcessor
from aim_hf.pipeline.inputs import as_actions

from ..fixtures_pipeline import make_pose, make_processor


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


def test_a_rotation_of_no_length_is_refused(rng):
    with pytest.raises(ValueError, match="a rotation of length 0"):
        make_processor().absolute_actions(np.zeros((2, 16)), make_pose(rng))


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
    with pytest.raises(ValueError, match=r"initial_pose has shape \(16,\) and actions \(16,\); expected"):
        processor.normalize_actions(pose, pose)
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
