"""The oracle on real scenes: along the expert's path its maps are those of the data, off it they still make sense."""

import numpy as np
import pytest

from aim_hf.data.recorder import record_episode
from aim_hf.envs import make_environment
from aim_hf.envs.base import CAMERAS
from aim_hf.value_maps.oracle import ValueMapOracle, record_expert
from aim_hf.value_maps.peak import SeenContact, value_peak_error
from aim_hf.value_maps.render import project

SEED = 100_000_001
SAME_SIDE = 100_000_004  # where one arm stacks both cubes
STEPS = [2, 4, 6, 8]


@pytest.fixture(scope="module", params=["click_bell", "stack_blocks_two"])
def recorded(request):
    """An environment, and the recordings of a scene by the dataset's recorder and by the oracle."""
    env = make_environment("tabletop", request.param)
    episode = record_episode(env, SEED, 0.0)
    maps = {camera: episode.value_maps(camera)[..., 0] for camera in CAMERAS}
    return env, episode, maps, record_expert(env, SEED)


def test_first_chunk_shows_what_the_dataset_holds(recorded):
    env, episode, maps, run = recorded
    env.reset(SEED)
    oracle = ValueMapOracle(env, run)
    shown = oracle.value_maps([0, *STEPS])
    oracle.close()
    assert run.success and not env.on_physics_step
    assert [event.kind for event in run.events] == [event.kind for event in episode.events]
    for camera in CAMERAS:
        np.testing.assert_array_equal(shown[camera], maps[camera][[0, *STEPS]])


def test_contacts_lie_where_the_data_has_its_peaks(recorded):
    env, episode, maps, run = recorded
    contacts = run.contacts(8)
    assert len(contacts["head_camera"]) == 1
    share, distance = value_peak_error(maps["head_camera"][8], contacts["head_camera"], (1 / 96, 1 / 96))
    assert share < 0.03 and distance < 2
    after_all = run.contacts(10_000)
    lasts = run.events[-1].kind == "press"  # to the end of the episode
    assert len(after_all["head_camera"]) == lasts


def test_follows_the_expert_through_all_events(recorded):
    env, episode, maps, run = recorded
    env.reset(SEED)
    oracle = ValueMapOracle(env, run)
    for start in range(0, len(episode.action) - 8, 8):
        shown = oracle.value_maps(STEPS)
        for camera in CAMERAS:
            # A frame's slack: while a hand rests, no one can tell which of the expert's frames this is.
            candidates = [maps[camera][start + np.array(STEPS) + slack] for slack in (-1, 0)]
            difference = [np.abs(shown[camera].astype(int) - frames).max(axis=(1, 2)) for frames in candidates]
            assert np.min(difference, axis=0).max() <= 1, (start, camera)
        for action in episode.action[start : start + 8]:
            oracle.before_step((action[7], action[15]))
            env.step(action, observe=False)
    oracle.close()
    assert oracle.happened[: len(run.events) - 1] == list(range(len(run.events) - 1))


class Rollout:
    """Follows the expert's path, or goes elsewhere, and lets an oracle watch."""

    def __init__(self, task, seed=SEED):
        self.env = make_environment("tabletop", task, render=False)
        self.run = record_expert(self.env, seed)
        self.env.reset(seed)
        self.env.step_limit = 1000
        self.path, self.oracle = self.env.expert().actions, ValueMapOracle(self.env, self.run)

    def act(self, actions):
        for action in actions:
            self.oracle.before_step((action[7], action[15]))
            self.env.step(action, observe=False)
            self.oracle.value_maps([2])
        self.last = np.array(actions[-1])

    def go(self, arm, position, gripper, steps):
        """Moves an arm straight to a position."""
        start, end = self.last, self.last.copy()
        first = 0 if arm == "left" else 8
        end[first : first + 3], end[first + 7] = position, gripper
        actions = start + np.arange(1, steps + 1)[:, None] / steps * (end - start)
        actions[:, first + 7] = gripper
        self.act(actions)

    def carry(self, arm, body, offset):
        """Picks a cube of 5.5 cm up and sets it down beside its place."""
        here = next(state.pose for state in self.env.bodies().values() if state.name == body)[:3] + [0, 0, 0.0275]
        up = np.array([0, 0, 0.1])
        for position, gripper, steps in (
            *((here + up, 1, 8), (here, 1, 6), (here, 0, 5), (here + up, 0, 6)),
            *((here + offset + up, 0, 8), (here + offset, 0, 6), (here + offset, 1, 6), (here + offset + up, 1, 10)),
        ):
            self.go(arm, position, gripper, steps)


def test_a_cube_that_is_taken_from_its_place_is_to_be_picked_and_placed_again():
    rollout = Rollout("stack_blocks_two")
    pick, place = rollout.run.events[:2]
    assert rollout.run.bodies == ["red_cube", "red_cube", "green_cube", "green_cube"]
    rollout.act(rollout.path[: place.frame + 4])
    assert rollout.oracle.happened == [0, 1]
    away = np.array([-0.15 if pick.arm == "left" else 0.15, 0, 0.004])
    rollout.carry(pick.arm, "red_cube", away)
    assert rollout.oracle.happened == []
    rollout.carry(pick.arm, "red_cube", -away)
    assert rollout.oracle.happened == [0, 1]


def test_a_cube_that_is_taken_and_set_down_at_its_place_again_stays_placed():
    rollout = Rollout("stack_blocks_two")
    rollout.act(rollout.path[: rollout.run.events[1].frame + 4])
    rollout.carry(rollout.run.events[0].arm, "red_cube", np.array([0, 0, 0.004]))
    assert len(rollout.oracle._detector.made) == 4 and rollout.oracle.happened == [0, 1]


def test_another_cube_at_the_place_of_the_first_does_not_count():
    rollout = Rollout("stack_blocks_two", SAME_SIDE)
    (arm,) = {event.arm for event in rollout.run.events}
    green = next(body.pose for body in rollout.env.bodies().values() if body.name == "green_cube")
    rollout.act(rollout.path[:1])
    rollout.carry(arm, "green_cube", np.array([0.0, -0.02, 0.004]) - [*green[:2], 0])
    assert [made.kind for made in rollout.oracle._detector.made] == ["pick", "place"]
    assert rollout.oracle.happened == []


def test_a_pot_that_both_arms_drop_is_to_be_picked_by_both_again():
    rollout = Rollout("lift_pot")
    picked = max(event.frame for event in rollout.run.events) + 1
    rollout.act(rollout.path[:picked])
    assert sorted(rollout.oracle.happened) == [0, 1]
    released = rollout.last.copy()
    released[[7, 15]] = 1
    rollout.act([released] * 15)
    assert rollout.oracle.happened == []


@pytest.mark.parametrize("seed", range(SEED, SEED + 4))
def test_a_push_that_stops_short_is_to_go_on(seed):
    rollout = Rollout("turn_switch", seed)
    events, (attempt,) = rollout.run.events, rollout.env.expert().attempts
    rollout.act(rollout.path[: attempt.end - 2])
    rollout.act([rollout.last] * 6)
    assert len(rollout.oracle._detector.made) >= 1 and len(events) - 1 not in rollout.oracle.happened
    assert rollout.oracle.value_maps(STEPS)["head_camera"].max() > 200
    rollout.act(rollout.path[attempt.end - 2 :])
    up = rollout.last.copy()
    up[[2, 10]] += 0.1
    rollout.act([up] * 6)
    assert rollout.oracle.happened == list(range(len(events)))
    assert rollout.oracle.value_maps(STEPS)["head_camera"].max() == 0


def test_a_dropped_cube_is_to_be_picked_again():
    env = make_environment("tabletop", "place_a2b_left")
    run = record_expert(env, SEED)
    pick, place = run.events
    env.reset(SEED)
    path = env.expert().actions
    oracle = ValueMapOracle(env, run)
    gripper = 7 if pick.arm == "left" else 15

    def act(action, times):
        for _ in range(times):
            oracle.before_step((action[7], action[15]))
            env.step(action, observe=False)
        return oracle.value_maps([2])["head_camera"][0]

    for action in path[: pick.frame + 2]:
        shown = act(action, 1)
    assert oracle.happened == [0]
    assert value_peak_error(shown, run.contacts(pick.frame + 2)["head_camera"], (1 / 96, 1 / 96))[0] < 0.05
    released = path[pick.frame + 1].copy()
    released[gripper] = 1.0
    shown = act(released, 20)
    assert oracle.happened == []
    cube = next(body for body in env.bodies().values() if body.name == pick.body_name)
    camera = env.cameras()["head_camera"]
    top = cube.pose[:3] + [0, 0, 0.03]
    ((u, v),), _ = project(top[None], camera.intrinsics, camera.extrinsics)
    there = SeenContact((u, v), top, camera.intrinsics, camera.extrinsics)
    assert value_peak_error(shown, [there], (1 / 96, 1 / 96))[0] < 0.05
    oracle.close()
