"""Scenes, experts, success checks and instructions of the tasks."""

import numpy as np
import pytest

from aim_hf.envs import TASKS, make_environment
from aim_hf.envs.base import ARMS
from aim_hf.envs.tabletop.tasks.base import COLORS

ALL_TASKS = TASKS["tabletop"]
CASES = [(task, split) for task in ALL_TASKS for split in ("easy", "hard")]


def run(environment, actions):
    return [environment.step(action, observe=False).success for action in actions]


def pose_of(environment, name):
    return next(body.pose for body in environment.bodies().values() if body.name == name)


def smooth_noise(path, seed, size=0.007):
    """A smooth perturbation of both arms' xyz (T, 16) that fades within five steps of a key step."""
    steps = np.arange(len(path.actions))
    distance = np.min([np.abs(steps - key) for key in path.key_steps], axis=0)
    generator = np.random.default_rng(seed)
    noise = np.zeros_like(path.actions)
    for start in (0, 8):
        frequency, phase = generator.uniform(0.1, 0.4), generator.uniform(0, 6, 3)
        direction = generator.normal(size=3)
        noise[:, start : start + 3] = size * direction * np.sin(frequency * steps[:, None] + phase)
    return noise * np.clip((distance - 3) / 5, 0, 1)[:, None]


@pytest.mark.parametrize(("task", "split"), CASES)
def test_expert_succeeds(task, split):
    """Also on a perturbed path; never before it has done anything; ending in success and in time."""
    environment = make_environment("tabletop", task, split, render=False)
    for seed, perturbed in ((100_000_000, False), (100_000_001, True), (100_000_002, True)):
        environment.reset(seed)
        path = environment.expert()
        actions = path.actions + smooth_noise(path, seed) if perturbed else path.actions
        success = run(environment, actions)
        assert success[-1], f"seed {seed}, perturbed={perturbed}"
        assert not any(success[: path.key_steps[0]])
        assert len(success) < 0.75 * environment.step_limit


@pytest.mark.parametrize("task", ALL_TASKS)
def test_path_is_smooth_and_keeps_the_tools_down(task):
    environment = make_environment("tabletop", task, "hard", render=False)
    for seed in range(5):
        environment.reset(seed)
        path = environment.expert()
        start = np.concatenate([[*environment.tcp(arm), 1.0] for arm in ARMS])
        positions = np.concatenate([start[None], path.actions]).reshape(-1, 2, 8)[..., :3]
        assert np.linalg.norm(np.diff(positions, axis=0), axis=-1).max() < 0.045
        quaternions = path.actions.reshape(-1, 2, 8)[..., 3:7]
        assert np.all(quaternions == quaternions[0, 0])
        assert np.all(path.actions[-1] == path.actions[-2])
        assert all(0 < key < len(path.actions) for key in path.key_steps)
        np.testing.assert_array_equal(environment.expert().actions, path.actions)


@pytest.mark.parametrize("task", ALL_TASKS)
def test_doing_nothing_fails(task):
    environment = make_environment("tabletop", task, "easy", render=False)
    environment.reset(0)
    action = np.concatenate([[*environment.tcp(arm), 1.0] for arm in ARMS])
    assert not any(run(environment, [action] * 20))


@pytest.mark.parametrize("task", ["place_a2b_left", "stack_blocks_two", "handover_block", "move_pillbottle_pad"])
def test_an_object_that_is_still_held_is_no_success(task):
    environment = make_environment("tabletop", task, "easy", render=False)
    environment.reset(1)
    path = environment.expert()
    held = path.actions[: path.key_steps[-1]]
    assert not any(run(environment, [*held, *[held[-1]] * 5]))


def test_words_decide_the_side():
    """The left task's scene, solved by placing the cube on the right, is no success."""
    environment = make_environment("tabletop", "place_a2b_left", "easy", render=False)
    environment.reset(4)
    assert "left" in environment.instruction() and "right" not in environment.instruction()
    path = environment.expert()
    mirrored = path.actions.copy()
    disc, cube = pose_of(environment, "disc"), pose_of(environment, "cube")
    arm = 0 if cube[0] < 0 else 8
    carried = slice(path.key_steps[0] + 3, None)  # from the grasp on, go to the other side instead
    share = (path.actions[carried, arm] - cube[0]) / (disc[0] - 0.10 - cube[0])
    mirrored[carried, arm] = cube[0] + share * (disc[0] + 0.10 - cube[0])
    assert not any(run(environment, mirrored))
    assert pose_of(environment, "cube")[0] == pytest.approx(pose_of(environment, "disc")[0] + 0.10, abs=0.02)


def test_left_and_right_share_their_scenes():
    offsets = {}
    for side in ("left", "right"):
        environment = make_environment("tabletop", f"place_a2b_{side}", "easy", render=False)
        offsets[side] = []
        for seed in range(60):
            environment.reset(seed)
            offsets[side].append((pose_of(environment, "cube") - pose_of(environment, "disc"))[0])
    # Were the scene to tell the side, these means would lie apart by much more than their standard errors.
    difference = np.mean(offsets["left"]) - np.mean(offsets["right"])
    error = np.sqrt(sum(np.var(values) / len(values) for values in offsets.values()))
    assert abs(difference) < 3 * error


def test_the_nearer_arm_acts():
    environment = make_environment("tabletop", "click_bell", "easy", render=False)
    sides = set()
    for seed in range(8):
        environment.reset(seed)
        actions = environment.expert().actions
        idle = "right" if pose_of(environment, "bell")[0] < 0 else "left"
        columns = slice(0, 7) if idle == "left" else slice(8, 15)
        assert np.all(actions[:, columns] == actions[0, columns])
        sides.add(idle)
    assert sides == {"left", "right"}


@pytest.mark.parametrize("task", ["lift_pot", "pick_dual_bottles"])
def test_one_arm_alone_does_not_do(task):
    environment = make_environment("tabletop", task, "easy", render=False)
    environment.reset(2)
    actions = environment.expert().actions.copy()
    actions[:, 8:] = actions[0, 8:]
    assert not any(run(environment, actions))


def test_handover_changes_hands():
    environment = make_environment("tabletop", "handover_block", "easy", render=False)
    environment.reset(3)
    block = next(i for i, body in environment.bodies().items() if body.name == "block")
    holders = []
    for action in environment.expert().actions:
        environment.step(action, observe=False)
        touched = {
            c.body_a if c.body_b == block else c.body_b
            for c in environment.contacts()
            if block in (c.body_a, c.body_b)
        }
        holders.append(tuple(arm for arm in ARMS if touched & set(environment.fingers()[arm])))
    order = [holder for holder, before in zip(holders, [None, *holders], strict=False) if holder != before]
    giver = order[1]
    receiver = ("right",) if giver == ("left",) else ("left",)
    assert order[0] == () and order[-1] == () and ARMS in order and order.index(giver) < order.index(receiver)


def test_a_stapler_is_pressed_on_its_head():
    """Not on the other end; and it lies at any angle."""
    environment = make_environment("tabletop", "press_stapler", "easy", render=False)
    directions = []
    for seed in range(4):
        environment.reset(seed)
        actions = environment.expert().actions.copy()
        stapler = pose_of(environment, "stapler")
        arm = 0 if np.ptp(actions[:, 0]) > 0 else 8
        head = actions[-1, arm : arm + 2] - stapler[:2]
        directions.append(head / np.linalg.norm(head))
        share = np.minimum(np.arange(1, len(actions) + 1) / (len(actions) // 2), 1)
        actions[:, arm : arm + 2] -= 2 * share[:, None] * head
        assert not any(run(environment, actions))
    assert np.ptp(directions, axis=0).max() > 1


def test_a_switch_is_pushed_to_its_end_and_stays_in_its_slot():
    environment = make_environment("tabletop", "turn_switch", "easy", render=False)
    for seed in range(2):
        environment.reset(seed)
        path = environment.expert()
        base, start = pose_of(environment, "base"), pose_of(environment, "knob")
        part = path.actions[: path.key_steps[-3]]
        assert not any(run(environment, [*part, *[part[-1]] * 5]))
        assert 0.01 < np.linalg.norm(pose_of(environment, "knob") - start) < 0.05
        assert run(environment, path.actions[len(part) :])[-1]
        end = pose_of(environment, "knob")
        np.testing.assert_allclose(end[2:], start[2:], atol=0.05)
        np.testing.assert_allclose((start + end)[:2] / 2, base[:2], atol=0.01)
        np.testing.assert_array_equal(pose_of(environment, "base"), base)


def test_cubes_in_another_order_are_not_ranked():
    environment = make_environment("tabletop", "blocks_ranking_rgb", "easy", render=False)
    environment.reset(0)
    environment._task._goals.reverse()
    assert not any(run(environment, environment.expert().actions))
    cubes = np.array([pose_of(environment, f"{color}_cube")[:3] for color in ("blue", "green", "red")])
    np.testing.assert_allclose(np.diff(cubes, axis=0), [[0.10, 0, 0]] * 2, atol=0.02)


@pytest.mark.parametrize("task", ALL_TASKS)
def test_instructions(task):
    environment = make_environment("tabletop", task, "easy", render=False)
    texts = {"seen": set(), "unseen": set()}
    for seed in range(30):
        environment.reset(seed)
        for split, found in texts.items():
            text = environment.instruction(split)
            assert text == environment.instruction(split) and "{" not in text
            found.add(text)
    assert len(texts["seen"]) > 2 and len(texts["unseen"]) > 1
    assert not texts["seen"] & texts["unseen"]


def test_instruction_names_the_colors_in_the_scene():
    environment = make_environment("tabletop", "place_a2b_right", "easy")
    for seed in range(3):
        picture = environment.reset(seed)["observation"]["head_camera"]["rgb"].astype(float)
        named = [color for color in COLORS if color in environment.instruction()]
        assert len(named) == 1
        distances = {color: np.abs(picture - 255 * np.array(rgb)).sum(axis=-1).min() for color, rgb in COLORS.items()}
        assert min(distances, key=distances.get) == named[0]


def test_hard_varies_what_easy_keeps():
    looks = {}
    for split in ("easy", "hard"):
        environment = make_environment("tabletop", "click_bell", split, render=False)
        heights, cameras, counts = set(), set(), set()
        for seed in range(5):
            environment.reset(seed)
            heights.add(round(pose_of(environment, "bell")[2], 4))
            cameras.add(environment.cameras()["head_camera"].extrinsics.tobytes())
            counts.add(sum("distractor" in body.name for body in environment.bodies().values()))
        looks[split] = heights, cameras, counts
    assert [len(values) for values in looks["easy"]] == [1, 1, 1] and looks["easy"][2] == {0}
    heights, cameras, counts = looks["hard"]
    assert len(heights) == 5 and len(cameras) == 5 and min(counts) >= 1
    assert max(abs(height - 0.74) for height in heights) <= 0.0155


def test_distractors_keep_their_distance():
    environment = make_environment("tabletop", "stack_blocks_two", "hard", render=False)
    for seed in range(10):
        environment.reset(seed)
        poses = {body.name: body.pose[:2] for body in environment.bodies().values()}
        for name, position in poses.items():
            if "distractor" in name:
                for target in ("red_cube", "green_cube", "mark"):
                    assert np.linalg.norm(position - poses[target]) > 0.11
