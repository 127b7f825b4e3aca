"""Experts that miss an object once, notice it and try again."""

import numpy as np
import pytest

from aim_hf.data.episodes import Episode
from aim_hf.data.recorder import Failure, record_episode
from aim_hf.envs import make_environment
from aim_hf.envs.base import SeedRejected
from aim_hf.envs.seeds import scene_generator
from aim_hf.envs.tabletop.mistakes import ABOVE, BESIDE, HELD, MOST_UNAWARE, SHORT_PUSH, with_mistake

TASKS = ("click_bell", "stack_blocks_two", "place_a2b_left", "lift_pot", "handover_block", "pick_dual_bottles")
NOISE = 0.01


def demonstrated(env, seed, mistake=True):
    """The frames of a demonstration, and the opening of both grippers in each."""
    env.reset(seed)
    rng, mistake_rng = (scene_generator(env.task, env.split, seed, stream) for stream in ("noise", "mistake"))
    frames, openings = [], []
    for frame in env.demonstrate(NOISE, rng, observe=False, mistake_rng=mistake_rng if mistake else None):
        frames.append(frame)
        openings.append([env.observe()["endpose"][f"{arm}_gripper"] for arm in ("left", "right")])
    return frames, np.array(openings)


@pytest.fixture(params=TASKS)
def env(request):
    return make_environment("tabletop", request.param, "hard", render=False)


def test_the_expert_misses_once_and_fulfils_the_task_all_the_same(env):
    """Of twelve seeds at least four give a recovery; on the others the arm reaches the object, or knocks it away."""
    successes = 0
    for seed in range(12):
        try:
            frames, openings = demonstrated(env, seed)
        except SeedRejected as error:
            assert "has reached it" in error.reason
            continue
        (step,) = (step for step, frame in enumerate(frames) if frame.intervention)
        if step == 0:  # of an object that was placed wrongly
            successes += frames[-1].success
            continue
        actions, expert_actions = (
            np.array([getattr(frame, name) for frame in frames[:-1]]) for name in ("action", "expert_action")
        )
        moved = np.linalg.norm((actions - expert_actions).reshape(-1, 2, 8)[..., :3], axis=-1)
        turn = np.abs(expert_actions[step] - expert_actions[step - 1]).reshape(2, 8).max(axis=1)
        arm = int(turn.argmax())  # the one that goes back
        assert 0 < moved[step - 1, arm] < np.hypot(np.hypot(BESIDE, BESIDE), ABOVE) + 0.05
        assert openings[step, arm] <= HELD, "the hand is closed and empty"
        if env.task != "click_bell":
            assert expert_actions[step, 8 * arm + 7] == 1, "the recovery opens the hand"
        assert not frames[step].success
        successes += frames[-1].success
    assert successes >= 4


def test_until_the_recovery_the_expert_wants_what_it_wants_without_a_mistake(env):
    seed = next(seed for seed in range(12) if _recovers(env, seed))
    frames, _ = demonstrated(env, seed)
    nominal, _ = demonstrated(env, seed, mistake=False)
    step = next(step for step, frame in enumerate(frames) if frame.intervention)
    for frame, other in zip(frames[:step], nominal[:-1]):
        assert np.array_equal(frame.expert_action, other.expert_action)
    assert np.array_equal(frames[-2].expert_action, nominal[-2].expert_action), "both end alike"
    assert len(nominal) < len(frames) <= env.step_limit + 1


def _recovers(env, seed):
    """Whether the demonstration shows a mistake and the recovery from it."""
    try:
        return not demonstrated(env, seed)[0][0].intervention
    except SeedRejected:
        return False


def test_only_one_arm_recovers_while_the_other_waits_where_it_was():
    env = make_environment("tabletop", "lift_pot", "easy", render=False)
    env.reset(0)
    path = env.expert()
    assert [attempt.arm for attempt in path.attempts] == ["left", "right"]
    for seed in range(20):
        changed = with_mistake(path, np.random.default_rng(seed))
        attempt = next(attempt for attempt in path.attempts if attempt.arm == changed.mistake.arm)
        assert attempt.end <= changed.mistake.intervention <= attempt.end + MOST_UNAWARE
        other = slice(8, 16) if attempt.arm == "left" else slice(0, 8)
        added = len(changed.actions) - len(path.actions)
        assert np.array_equal(changed.actions[-5:], path.actions[-5:])
        resumed = changed.mistake.intervention + added - (changed.mistake.intervention - attempt.end)
        assert np.array_equal(changed.actions[resumed - 1, other], path.actions[attempt.end - 1, other])
        assert not changed.mistake.offset[:, other].any()
        assert not changed.mistake.offset[changed.mistake.intervention :].any()
        steps = np.abs(np.diff(changed.actions[:, [0, 1, 2, 8, 9, 10]], axis=0)).max()
        assert steps < 0.08, "no jump"


@pytest.mark.parametrize("task", ["place_a2b_left", "move_pillbottle_pad", "stack_blocks_two", "blocks_ranking_rgb"])
def test_a_demonstration_begins_beside_an_object_that_was_placed_wrongly(task):
    """The wrong place is no event, so that no map asks for it: the object is picked up there, and placed anew."""
    env = make_environment("tabletop", task, "hard", render=False)
    recovered = 0
    for seed in range(12):
        episode = record_episode(env, seed, NOISE, mistakes=1.0)
        if isinstance(episode, Failure) or episode.intervention != 0:
            continue
        recovered += 1
        nominal = record_episode(env, seed, NOISE).events
        kinds = [(event.kind, event.body_name) for event in episode.events]
        assert kinds == [(event.kind, event.body_name) for event in nominal[-len(kinds) :]], "the rest of the task"
        assert episode.success and kinds[0][0] == "pick"
        assert Episode.from_row(episode.to_row()).intervention == 0
        at, expected = (events[0].body_pose[0, :3] for events in (episode.events, nominal[-len(kinds) :]))
        assert np.linalg.norm(at - expected) > 0.05, "not where it was at first"
    assert recovered >= 2


@pytest.mark.parametrize("split", ["easy", "hard"])
def test_a_push_stops_short_and_goes_on_from_there(split):
    """Its map is shown to the end: another event begins with the second push."""
    env = make_environment("tabletop", "turn_switch", split, render=False)
    for seed in range(6):
        frames, _ = demonstrated(env, seed)
        (step,) = (step for step, frame in enumerate(frames) if frame.intervention)
        executed, wanted = (
            np.array([getattr(frame, name) for frame in frames[:-1]]) for name in ("action", "expert_action")
        )
        arm = slice(8, 11) if env.expert().attempts[0].arm == "right" else slice(0, 3)
        short = np.linalg.norm(wanted[step - 1, arm] - executed[step - 1, arm])
        assert SHORT_PUSH[0] - 1e-6 <= short <= SHORT_PUSH[1] + 1e-6
        onwards = np.diff(executed[step - 1 :, arm], axis=0)
        assert np.all(np.linalg.norm(onwards, axis=1) < 0.03), "no way back"
        assert frames[-1].success and not frames[step].success
        episode = record_episode(env, seed, NOISE, mistakes=1.0)
        assert {event.kind for event in episode.events} == {"push"}
        assert episode.events[-1].frame > episode.intervention


def test_a_share_of_the_recorded_episodes_has_a_mistake():
    """Those without one are what they are in a collection without mistakes."""
    env = make_environment("tabletop", "place_a2b_left", "easy", render=False)
    steps = []
    for seed in range(8):
        episode, plain = record_episode(env, seed, NOISE, mistakes=0.5), record_episode(env, seed, NOISE)
        if isinstance(episode, Failure):  # the arm reaches the object, or knocks it away
            continue
        steps.append(episode.intervention)
        if episode.intervention is None:
            assert np.array_equal(episode.action, plain.action) and np.array_equal(episode.state, plain.state)
        else:
            assert episode.success and (len(episode.action) > len(plain.action)) == (episode.intervention > 0)
            assert [event.kind for event in episode.events] == ["pick", "place"]
            assert episode.events[0].frame > episode.intervention
    assert any(step is None for step in steps) and any(step is not None for step in steps)
