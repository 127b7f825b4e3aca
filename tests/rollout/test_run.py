"""The closed loop of a tiny random pipeline on real environments."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from aim_hf.envs import make_environment
from aim_hf.model.canvas import t_pose_canvas
from aim_hf.rollout.run import run_episodes
from aim_hf.rollout.vector_env import Chunks
from aim_hf.utils.extras import SimulatorFailed

from .fixtures_policy import CANVAS, HEAD, WRIST, make_policy

TASK, SEEDS = "click_bell", [100_000_000, 100_000_001, 100_000_002]


def run(policy, environments, seeds, **options):
    """The results of `seeds`, in this order."""
    results = {result.seed: result for result in run_episodes(policy, environments, TASK, seeds, **options)}
    return [results[seed] for seed in seeds]


class Traced:
    """A policy that keeps what it was shown and what it did, and may do something before a chunk.

    actions: seed -> those of each chunk, as long as the episode ran.
    """

    def __init__(self, policy, before_chunk=lambda chunk: None):
        self.policy, self.before_chunk, self.chunks = policy, before_chunk, 0

    def __getattr__(self, name):
        return getattr(self.policy, name)

    def start(self, instructions, seeds):
        self.seeds, self.chunks, self.maps, self.actions = list(seeds), 0, [], {seed: [] for seed in seeds}
        self.policy.start(instructions, seeds)

    def keep(self, rows):
        self.seeds = [self.seeds[row] for row in rows]
        self.policy.keep(rows)

    def predict(self, observations, executed_actions=None, value_maps=None, pictures="none"):
        self.before_chunk(self.chunks)
        prediction = self.policy.predict(observations, executed_actions, value_maps, pictures)
        for seed, actions in zip(self.seeds, prediction.actions, strict=True):
            self.actions[seed].append(actions)
        self.maps.append(value_maps)
        self.chunks += 1
        return prediction

    def of(self, seeds):
        """Actions of whole episodes, of equal length: (episodes, steps, 16)."""
        return np.stack([np.concatenate(self.actions[seed]) for seed in seeds])


class Helped:
    """A policy whose actions the expert's replace in the episodes of some seeds."""

    def __init__(self, policy, seeds):
        self.policy, self.paths = policy, {}
        env = make_environment("tabletop", TASK, render=False)
        for seed in seeds:
            env.reset(seed)
            self.paths[seed] = env.expert().actions

    def __getattr__(self, name):
        return getattr(self.policy, name)

    def start(self, instructions, seeds):
        self.seeds, self.step = list(seeds), 0
        self.policy.start(instructions, seeds)

    def keep(self, rows):
        self.seeds = [self.seeds[row] for row in rows]
        self.policy.keep(rows)

    def predict(self, *args, **kwargs):
        prediction = self.policy.predict(*args, **kwargs)
        steps = np.arange(self.step, self.step + 8)
        self.step += 8
        for row, seed in enumerate(self.seeds):
            if seed in self.paths:
                prediction.actions[row] = self.paths[seed][np.minimum(steps, len(self.paths[seed]) - 1)]
        return prediction


@pytest.fixture(scope="module")
def reference(policy, environments):
    """Three episodes run together."""
    traced = Traced(policy)
    results = run(traced, environments, SEEDS)
    return results, traced.of(SEEDS)


def test_the_experts_actions_succeed_and_a_row_that_has_ended_disturbs_no_other(policy, environments, reference):
    traced = Traced(Helped(policy, [SEEDS[1]]))
    results = run(traced, environments, SEEDS)
    assert results[1].success and 8 < results[1].steps <= 16
    assert [results[0], results[2]] == [reference[0][0], reference[0][2]]
    np.testing.assert_array_equal(traced.of([SEEDS[0], SEEDS[2]]), reference[1][[0, 2]])
    assert len(traced.actions[SEEDS[1]]) == 2 and traced.chunks == 5  # the policy acted for it until it had ended


def test_runs_to_the_step_limit_and_measures_the_first_peak(reference):
    results, actions = reference
    assert actions.shape == (3, 40, 16)
    for result in results:
        assert not result.success and result.steps == 40
        assert 0 <= result.peak_error["head_camera"] < 1.2
        # The bell is on one side of the table: one hand's camera sees it, the other doesn't.
        assert sum(result.peak_error[f"{arm}_camera"] is None for arm in ("left", "right")) >= 1


@pytest.mark.parametrize("seeds", [SEEDS[:2], SEEDS[2:], [*reversed(SEEDS)]], ids=["two", "alone", "reversed"])
def test_results_do_not_depend_on_the_batch(policy, environments, reference, seeds):
    results, actions = reference
    traced = Traced(policy)
    again = run(traced, environments, list(seeds))
    rows = [SEEDS.index(seed) for seed in seeds]
    assert again == [results[row] for row in rows]
    np.testing.assert_array_equal(traced.of(seeds), actions[rows])


def test_the_network_always_runs_with_the_same_rows(environments, policy):
    """Nine episodes take two calls of eight rows, and the ninth acts as if it were alone."""
    seeds = list(range(100_000_000, 100_000_009))
    starts = environments.reset(TASK, seeds, "seen", Chunks(8, 2))
    policy.start([start.instruction for start in starts], seeds)
    together = policy.predict([[start.observation] for start in starts], pictures="all")
    policy.start([starts[8].instruction], seeds[8:])
    alone = policy.predict([[starts[8].observation]], pictures="all")
    assert together.actions.shape[0] == 9
    np.testing.assert_array_equal(together.actions[8:], alone.actions)
    for camera in together.frames:
        np.testing.assert_array_equal(together.frames[camera][8:], alone.frames[camera])
        np.testing.assert_array_equal(together.value_maps[camera][8:], alone.value_maps[camera])


def test_rows_that_are_left_share_a_call_and_act_as_if_they_had_been_alone(environments, policy, monkeypatch):
    seeds = list(range(100_000_000, 100_000_009))
    starts = environments.reset(TASK, seeds, "seen", Chunks(8, 2))
    observations = [[start.observation] for start in starts]
    later = [row * 4 for row in observations]
    calls = []

    def second_chunks(rows, kept):
        """Actions of the second chunk, of the rows `kept` of `rows`."""
        policy.start([starts[row].instruction for row in rows], [seeds[row] for row in rows])
        first = policy.predict([observations[row] for row in rows]).actions
        policy.keep(kept)
        monkeypatch.setattr(
            policy.pipe, "append", lambda *args: calls.append(args) or type(policy.pipe).append(policy.pipe, *args)
        )
        left = [rows[row] for row in kept]
        return policy.predict([later[row] for row in left], first[kept]).actions

    kept = second_chunks(list(range(9)), [1, 8])
    assert len(calls) == 1  # instead of two
    np.testing.assert_array_equal(kept, second_chunks([1, 8], [0, 1]))


def test_seed_and_weights_decide(environments, reference):
    results, actions = reference
    traced = Traced(make_policy(seed=1))
    run(traced, environments, SEEDS[:1])
    assert not np.allclose(traced.of(SEEDS[:1])[0], actions[0])
    assert not np.allclose(actions[0], actions[1])


def test_acts_on_true_value_maps_when_told(environments, policy, reference):
    traced = Traced(policy)
    run(traced, environments, SEEDS[:1], value_maps="true")
    assert len(traced.maps) == 5
    for maps in traced.maps:  # random actions never press the bell, so every chunk shows it
        assert maps["head_camera"].shape == (1, 4, 64, 96) and maps["head_camera"].max() > 0.99
    assert not np.array_equal(traced.actions[SEEDS[0]][0], reference[1][0, :8])


def test_a_policy_of_some_cameras_is_given_their_true_maps_alone(environments):
    cameras = t_pose_canvas(CANVAS, HEAD, WRIST)
    del cameras["head_camera"]
    policy = make_policy(cameras=cameras)
    traced = Traced(policy)
    (result,) = run(traced, environments, SEEDS[:1], value_maps="true")
    assert result.steps == 40 and result.peak_error.keys() == {"left_camera", "right_camera"}
    assert [maps.keys() for maps in traced.maps] == [{"left_camera", "right_camera"}] * 5


def test_a_worker_that_dies_changes_nothing(environments, policy, reference):
    results, actions = reference
    killed = []

    def kill_once(chunk):
        if chunk == 2 and not killed:
            killed.append(environments.workers[1].process.pid)
            os.kill(killed[0], signal.SIGKILL)

    traced = Traced(policy, kill_once)
    assert run(traced, environments, SEEDS[:2]) == results[:2]
    np.testing.assert_array_equal(traced.of(SEEDS[:2]), actions[:2])
    assert killed and environments.workers[1].process.pid != killed[0]


def test_a_worker_that_dies_twice_is_an_error_that_names_the_seed(environments, policy):
    def kill(chunk):
        os.kill(environments.workers[0].process.pid, signal.SIGKILL)

    with pytest.raises(SimulatorFailed, match="died in the episode of seed 100000002 of click_bell .* 2 times"):
        run(Traced(policy, kill), environments, SEEDS[2:])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda actions: actions[..., :14], r"shape \(1, 8, 14\); suite 'tabletop' expects .*, 16\) in mode 'ee'"),
        (lambda actions: actions * np.nan, "have NaN or infinite numbers"),
    ],
)
def test_actions_that_no_environment_takes_are_refused(environments, policy, monkeypatch, change, match):
    predict = policy.predict
    monkeypatch.setattr(
        policy, "predict", lambda *given: replace(told := predict(*given), actions=change(told.actions))
    )
    with pytest.raises(ValueError, match=match):
        run(policy, environments, SEEDS[:1])


def test_parts_of_chunks_in_closed_loop(environments):
    """Twice as many plans, and the same number of moments in the film."""
    traced = Traced(make_policy(n_action_steps=4))
    (result,) = run(traced, environments, SEEDS[:1], filmed=SEEDS[:1])
    assert traced.chunks == result.plans == 10 and result.steps == 40
    board = result.storyboard
    assert board.steps == list(range(2, 41, 2)) and len(board.observed) == len(board.imagined) == 20
    assert 0 <= result.peak_error["head_camera"] < 1.2
    np.testing.assert_array_equal(np.array(board.actions), traced.of(SEEDS[:1])[0])


def test_films_what_was_asked_for(environments, policy, reference):
    results = run(policy, environments, SEEDS[:2], filmed=[SEEDS[1]])
    assert results[0] == reference[0][0] and results[0].storyboard is None
    board = results[1].storyboard
    assert board.steps == list(range(2, 41, 2)) and len(board.actions) == 40
    assert len(board.observed) == len(board.imagined) == len(board.value_maps) == 20
    np.testing.assert_array_equal(np.array(board.actions), reference[1][1])
