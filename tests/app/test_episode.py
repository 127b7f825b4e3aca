"""Episodes of the checkpoint in real simulator processes, without a page."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from aim_hf.app.episode import HeldOutScene, Trouble, held_out_scene
from aim_hf.pipeline.sampling_config import SamplingConfig
from aim_hf.rollout.policies import AIMPolicy

SEED = 100_000_000
BELL, CUBE = HeldOutScene("click_bell", "easy", SEED), HeldOutScene("place_a2b_left", "easy", SEED + 1)
QUICK = SamplingConfig(num_inference_steps=2, num_action_inference_steps=2)


def first_chunk(rollouts, scene, instruction=None, sampling=QUICK):
    episodes = rollouts.run(scene, instruction, sampling)
    next(episodes)
    board = next(episodes).board
    episodes.close()
    return board


def test_an_episode_is_told_chunk_by_chunk_up_to_its_success(rollouts):
    moments, chunks = [], rollouts.chunks
    for episode in rollouts.run(BELL, None, SamplingConfig()):
        assert not episode.done or episode.board.steps
        moments.append(len(episode.board.steps))
    board = episode.board
    assert episode.done and board.success and board.steps[-1] < board.step_limit
    assert moments[:2] == [0, len(chunks.moments)] and len(moments) == len(episode.seconds) + 1
    assert len(board.actions) == board.steps[-1]
    assert board.instruction == episode.own_instruction == rollouts.show(BELL).instruction
    changed = board.observed[-1]["head_camera"] != board.start["observation"]["head_camera"]["rgb"]
    assert changed.any()


def test_acts_as_the_evaluated_policy_does(rollouts):
    policy = AIMPolicy(rollouts.pipe, {"policy": "tiny"}, QUICK)
    start = rollouts.show(CUBE)
    policy.start([start.instruction], [CUBE.seed])
    evaluated = policy.predict([[start.observation]]).actions[0]
    np.testing.assert_allclose(first_chunk(rollouts, CUBE).actions, evaluated, atol=1e-4)


def test_words_and_sampling_reach_the_network(rollouts):
    own = first_chunk(rollouts, CUBE)
    assert np.array_equal(own.actions, first_chunk(rollouts, CUBE, own.instruction).actions)
    told = first_chunk(rollouts, CUBE, "Click the bell.")
    assert told.instruction == "Click the bell." and not np.array_equal(own.actions, told.actions)
    early = first_chunk(rollouts, CUBE, None, SamplingConfig(2, 2, stop_after=1))
    assert not np.array_equal(own.value_maps[0]["head_camera"], early.value_maps[0]["head_camera"])


def test_two_people_at_once_see_what_each_would_see_alone(rollouts):
    alone = [first_chunk(rollouts, scene).actions for scene in (BELL, CUBE)]
    with ThreadPoolExecutor(2) as people:
        together = [board.actions for board in people.map(lambda scene: first_chunk(rollouts, scene), (BELL, CUBE))]
    np.testing.assert_array_equal(alone[0], together[0])
    np.testing.assert_array_equal(alone[1], together[1])


def test_whoever_stops_frees_the_simulator(rollouts):
    episodes = [rollouts.run(scene, None, QUICK) for scene in (BELL, CUBE)]
    for running in episodes:
        next(running)
    with pytest.raises(Trouble, match="busy with someone else"):
        rollouts.show(BELL)
    episodes[0].close()
    assert rollouts.show(BELL).instruction
    episodes[1].close()


def test_a_lost_simulator_is_told_and_replaced(rollouts):
    first, second = rollouts.run(BELL, None, QUICK), rollouts.run(CUBE, None, QUICK)
    next(first), next(second)  # none is idle
    second.close()
    killed = rollouts.simulators._idle[0].workers[0].process
    again = rollouts.run(CUBE, None, QUICK)
    next(again)
    os.kill(killed.pid, signal.SIGKILL)
    with pytest.raises(Trouble, match=f"The simulator was lost: .* died in the episode of seed {CUBE.seed}. .* again"):
        next(again)
    assert len(next(first).board.steps) == 4  # nobody else notices
    first.close()
    assert first_chunk(rollouts, CUBE).steps == [2, 4, 6, 8]


def test_an_error_of_the_simulator_is_told_without_its_traceback(rollouts):
    with pytest.raises(Trouble) as trouble:
        rollouts.show(HeldOutScene("juggle", "easy", SEED))
    assert str(trouble.value).startswith("The simulator can't go on: task is 'juggle'; expected one of")


@pytest.mark.parametrize("seed", [None, 7, SEED + 0.5, float("inf"), float("nan"), 2e8, -SEED])
def test_only_whole_numbers_of_held_out_scenes_are_seeds(seed):
    with pytest.raises(Trouble, match="Choose a whole number from 100000000 to 199999999"):
        held_out_scene("click_bell", "easy", seed)


def test_a_seed_may_be_typed():
    assert held_out_scene("click_bell", "hard", float(SEED)) == HeldOutScene("click_bell", "hard", SEED)


@pytest.mark.parametrize(
    "words, told",
    [
        ("  ", "The instruction is empty"),
        (
            "click the bell " * 34,
            r"^instructions have at most 32 tokens \(about \d+ characters\); this one has \d+: '[^\n]{,50}…'. S",
        ),
    ],
)
def test_words_that_cannot_be_read_are_refused(rollouts, words, told):
    with pytest.raises(Trouble, match=told):
        next(rollouts.run(BELL, words, QUICK))


def test_an_early_end_lies_within_the_steps(rollouts):
    assert rollouts.sampling(5, 7, None) == replace(
        rollouts.pipe.sampling_config, num_inference_steps=5, num_action_inference_steps=7
    )
    with pytest.raises(Trouble, match="after step 7, but there are only 5"):
        rollouts.sampling(5, 10, 7)
    for steps in ((4.5, 10, None), (5, 7.5, None), (5, 10, 2.5)):
        with pytest.raises(Trouble, match=r"steps is \d.5; expected a whole|stop_after is 2.5; expected a whole"):
            rollouts.sampling(*steps)


def test_a_guided_policy_is_guided_as_in_the_evaluation(rollouts):
    guided = replace(QUICK, guidance_scale=2.0)
    policy = AIMPolicy(rollouts.pipe, {"policy": "tiny"}, guided)
    start = rollouts.show(CUBE)
    policy.start([start.instruction], [CUBE.seed])
    evaluated = policy.predict([[start.observation]]).actions[0]
    acted = np.array(first_chunk(rollouts, CUBE, sampling=guided).actions)
    np.testing.assert_allclose(acted, evaluated, atol=1e-4)
    assert not np.allclose(acted, first_chunk(rollouts, CUBE).actions, atol=1e-4)
