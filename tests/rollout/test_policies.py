"""What the evaluator drives, on a tiny random pipeline."""

import re

import numpy as np
import pytest
import torch

from aim_hf import AIM_TINY, AIMPipeline
from aim_hf.envs import interface, make_environment
from aim_hf.envs.base import Interface
from aim_hf.pipeline.signals import frame_drift, map_entropy
from aim_hf.rollout.policies import check_fits, interface_of

from .fixtures_policy import make_policy


@pytest.fixture(scope="module")
def observations() -> list[dict]:
    """A first observation, and the four that follow it."""
    env = make_environment("tabletop", "click_bell")
    first = env.reset(100_000_000)
    actions = env.expert().actions
    env.reset(100_000_000)
    return [first, *[env.step(action).observation for action in actions[:8]][1::2]]


def two_chunks(observations, **kwargs) -> tuple[np.ndarray, np.ndarray]:
    """Actions of the first two chunks, of two rows."""
    policy = make_policy(action_lookahead_frames=1, **kwargs)
    policy.start(["ring the bell", "ring the bell"], [1, 2])
    first = policy.predict([observations[:1]] * 2)
    return first.actions, policy.predict([observations[1:]] * 2, first.actions).actions


def test_a_delay_is_bridged_by_what_was_foreseen(observations):
    """The first actions of a chunk come from the lookahead of the one before; the rest is conditioned on them, or
    not."""
    first, punctual = two_chunks(observations)
    other_first, bridged = two_chunks(observations, delay=3)
    _, naive = two_chunks(observations, delay=3, real_time_chunking=False)
    np.testing.assert_allclose(first, other_first, rtol=0, atol=1e-6)
    np.testing.assert_allclose(bridged[:, :3], naive[:, :3], atol=1e-6)
    assert np.abs(bridged[:, :3] - punctual[:, :3]).max() > 1e-3
    np.testing.assert_allclose(naive[:, 3:], punctual[:, 3:], rtol=0, atol=1e-6)
    assert np.abs(bridged[:, 3:] - punctual[:, 3:]).max() > 1e-3


def test_a_delay_beyond_the_lookahead_is_refused():
    with pytest.raises(ValueError, match="delay is 1 control steps; this model looks 0 ahead"):
        make_policy(delay=1)
    with pytest.raises(ValueError, match="delay is 9 control steps; this model looks 16 ahead, in chunks of 8"):
        make_policy(action_lookahead_frames=2, delay=9)
    with pytest.raises(ValueError, match="delay is 5 control steps, and n_action_steps 4: a plan would begin before"):
        make_policy(action_lookahead_frames=1, delay=5, n_action_steps=4)


def test_a_seed_that_torch_cannot_take_is_refused():
    with pytest.raises(ValueError, match=f"^seed is {2**64}; expected a whole number, 0 to {2**63 - 1}"):
        make_policy().start(["ring the bell"], [2**64])


@pytest.mark.parametrize("signal", ["replan_drift", "replan_entropy"])
def test_no_plan_begins_before_the_one_that_it_continues_has_arrived(observations, signal):
    """Every frame, of two actions, is a reason to plan again, and a plan takes five actions to compute."""
    policy = make_policy(action_lookahead_frames=1, delay=5, **{signal: 0.0})
    policy.start(["ring the bell"], [1])
    predictions = [policy.predict([observations[:1]])]
    for frame in (1, 2, 3, 4):
        predictions.append(policy.predict([observations[frame : frame + 1]], predictions[-1].actions))
    assert [bool(prediction.planned) for prediction in predictions] == [True, False, False, True, False]


def test_a_part_of_a_chunk_is_executed_and_planned_again(observations):
    """Four of eight actions, then the chunk of a session to which their two frames were appended."""
    policy = make_policy(n_action_steps=4)
    policy.start(["ring the bell"], [1])
    first = policy.predict([observations[:1]], pictures="value_maps")
    assert first.actions.shape == (1, 4, 16) and first.value_maps["head_camera"].shape == (1, 4, 64, 96)
    second = policy.predict([observations[1:3]], first.actions)
    assert first.planned == second.planned == [True]

    pipe, generator = policy.pipe, torch.Generator().manual_seed(1)
    session = pipe.start("ring the bell")
    sampling = policy.sampling_config
    whole = pipe(observations[0], session=session, generator=generator, sampling_config=sampling)
    pipe.append(session, observations[1:3], first.actions)
    again = pipe(session=session, generator=generator, sampling_config=sampling)
    np.testing.assert_allclose(first.actions, whole.actions[:, :4], rtol=0, atol=1e-5)
    np.testing.assert_allclose(second.actions, again.actions[:, :4], rtol=0, atol=1e-5)


@pytest.mark.parametrize("signal", ["replan_drift", "replan_entropy"])
def test_a_signal_decides_when_to_plan_again(observations, signal):
    """No threshold is reached at 1, every one at 0; in between, each row decides for itself."""

    def run(threshold, rows=1):
        policy = make_policy(**{signal: threshold})
        policy.start(["ring the bell"] * rows, list(range(rows)))
        predictions = [policy.predict([observations[:1]] * rows)]
        for frame in range(1, 5):
            seen = [observations[frame : frame + 1]] * rows
            predictions.append(policy.predict(seen, predictions[-1].actions))
        actions = [prediction.actions for prediction in predictions]
        assert all(part.shape == (rows, 2, 16) for part in actions)
        plans = sum(int(prediction.planned.sum()) for prediction in predictions)
        return policy, np.concatenate(actions, axis=1), plans

    never, one_chunk, plans = run(1.0)
    assert plans == 2 and run(0.0)[2] == 5
    plain = make_policy()
    plain.start(["ring the bell"], [0])
    np.testing.assert_allclose(one_chunk[:, :8], plain.predict([observations[:1]]).actions, rtol=0, atol=1e-6)
    row = never._rows[0]
    values = sorted(  # of the plan's four frames
        frame_drift({name: clip[None] for name, clip in row.frames.items()}, [observations[1:5]])[0]
        if signal == "replan_drift"
        else map_entropy({name: clip[None] for name, clip in row.value_maps.items()})[0]
    )
    assert values[0] < values[-1] and 3 * 2 <= run(float(np.mean(values)), rows=3)[2] <= 3 * 5


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"n_action_steps": 3}, "n_action_steps is 3; expected a multiple of 2"),
        ({"n_action_steps": 10}, "n_action_steps is 10; .*at most 8"),
        ({"n_action_steps": 0}, "n_action_steps is 0"),
        ({"replan_drift": -0.1}, "replan_drift is -0.1"),
        ({"replan_entropy": float("nan")}, "replan_entropy is nan"),
    ],
)
def test_an_execution_that_does_not_fit_is_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        make_policy(**arguments)


@pytest.mark.parametrize(
    "arguments", [{"num_inference_steps": 2.5}, {"stop_after": 3}, {"guidance_scale": "2"}, {"delay": -1}]
)
def test_a_schedule_that_does_not_fit_is_refused_at_once(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"{name} is {arguments[name]!r}; expected"):
        make_policy(**arguments)


def test_guidance_starts_from_no_instruction(observations):
    plain, guided = (make_policy(guidance_scale=scale) for scale in (1.0, 3.0))
    actions = []
    for policy in (plain, guided):
        policy.start(["ring the bell"], [1])
        actions.append(policy.predict([observations[:1]]).actions)
    assert plain.settings["guidance_scale"] == 1 and guided.settings["guidance_scale"] == 3
    assert np.abs(actions[0] - actions[1]).max() > 1e-4


@pytest.mark.parametrize("cast", ["loaded", "moved"])
def test_aim_tiny_acts_in_bfloat16_as_in_float32(observations, cast):
    def act(pipe):
        pipe.set_progress_bar_config(disable=True)
        session = pipe.start("Click the bell.")
        return pipe(observations[0], session=session, generator=torch.Generator().manual_seed(0)).actions[0]

    exact = act(AIMPipeline.from_pretrained(AIM_TINY))
    if cast == "loaded":
        coarse = act(AIMPipeline.from_pretrained(AIM_TINY, dtype=torch.bfloat16))
    else:
        coarse = act(AIMPipeline.from_pretrained(AIM_TINY).to("cpu", torch.bfloat16))
    difference = np.abs(coarse - exact)
    assert difference.max() > 0 and difference[:, [0, 1, 2, 8, 9, 10]].max() < 0.01  # m
    assert difference.max() < 0.05


def test_what_suites_say_of_themselves_is_what_they_do(observations):
    told, env = interface("tabletop", "easy"), make_environment("tabletop", "click_bell")
    pictures = {name: view["rgb"].shape[:2] for name, view in observations[0]["observation"].items()}
    assert told == Interface(env.action_dims, pictures, 1 / env.control_dt)


@pytest.mark.parametrize(
    ("needed", "suite", "match"),
    [
        (Interface({"ee": 16}, {"head_camera": (64, 96)}, 12.5), "tabletop", None),
        (Interface({"qpos": 14}, {}, None), "tabletop", None),
        (Interface({"qpos": None}, {}, 12.4), "tabletop", None),
        (Interface({"qpos": 16}, {}, None), "robotwin", None),
        (Interface({"qpos": 6}), "tabletop", "an action 'qpos' has 6 numbers, and there 14"),
        (Interface({"ee": 14}), "robotwin", "an action 'ee' has 14 numbers, and there 16"),
        (Interface({"ee": 16}, {"front_camera": (64, 96)}), "tabletop", "looks at front_camera, and there are head_c"),
        (Interface({"ee": 16}, {"head_camera": (240, 320)}), "tabletop", "head_camera is 240 x 320 and there 64 x 96"),
        (Interface({"ee": 16}, {}, 50), "tabletop", "acts 50 times a second, and there are 12.5 control steps"),
        (Interface({"ee": 16}, {}, 12.5), "robotwin", "12.5 times a second, and there are 16.6667 control steps"),
    ],
)
def test_a_policy_that_does_not_fit_a_suite_is_refused(needed, suite, match, monkeypatch):
    monkeypatch.delenv("ROBOTWIN_ROOT", raising=False)
    if match is None:
        return check_fits(needed, suite, "easy")
    with pytest.raises(ValueError, match=f"doesn't fit suite '{suite}': .*{re.escape(match)}"):
        check_fits(needed, suite, "easy")


def test_what_a_pipeline_needs():
    pipe = make_policy().pipe
    sizes = {"head_camera": (64, 96), "left_camera": (32, 48), "right_camera": (32, 48)}
    assert interface_of(pipe) == Interface({"ee": 16}, sizes, None)
    pipe.processor.fps = 12.5
    assert pipe.fps == interface_of(pipe).fps == 12.5
